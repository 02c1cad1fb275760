# Installs the libraries for other CMake projects:
#
#   find_package(TorchExt REQUIRED COMPONENTS jit)    # or memory, which needs c10 alone of LibTorch,
#   target_link_libraries(program PRIVATE TorchExt::jit)               # or sched, which needs none
#
# Where the Python modules are built, `cmake --install` is how setup.py gets these, and these alone:
# the libraries then want `--component development`.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(DEVELOPMENT COMPONENT development)
if(TORCH_EXT_PYTHON)
  list(APPEND DEVELOPMENT EXCLUDE_FROM_ALL)
endif()
set(PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/TorchExt)

# Each library has an export of its own, so that sched can be found where torch cannot.
function(torch_ext_install name)
  set_target_properties(torch_ext_${name} PROPERTIES EXPORT_NAME ${name})
  install(TARGETS torch_ext_${name} EXPORT TorchExt-${name}
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} ${DEVELOPMENT}
          FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torch_ext ${DEVELOPMENT})
  install(EXPORT TorchExt-${name} NAMESPACE TorchExt:: DESTINATION ${PACKAGE_DIR} ${DEVELOPMENT})
endfunction()
torch_ext_install(sched)
torch_ext_install(program)
if(TORCH_EXT_JIT)
  torch_ext_install(jit)
endif()
if(TARGET torch_ext_memory)
  torch_ext_install(memory)
  # LibTorch promises no binary compatibility between minor versions.
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" TORCH_EXT_TORCH_MINOR "${Torch_VERSION}")
endif()

configure_package_config_file(cmake/TorchExtConfig.cmake.in TorchExtConfig.cmake
                              INSTALL_DESTINATION ${PACKAGE_DIR})
write_basic_package_version_file(TorchExtConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES cmake/torch_without_cuda.cmake
              "${CMAKE_CURRENT_BINARY_DIR}/TorchExtConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/TorchExtConfigVersion.cmake"
        DESTINATION ${PACKAGE_DIR} ${DEVELOPMENT})

# `cpack --config build/CPackConfig.cmake`: all that is installed, as one archive.
set(CPACK_GENERATOR TGZ)
set(CPACK_PACKAGE_VENDOR "the torch_ext authors")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
include(CPack)
