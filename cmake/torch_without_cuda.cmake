# Before find_package(Torch): lets it find the CUDA build of torch, which is what PyPI has for Linux,
# without a CUDA toolkit. torch asks for one unless torch::cudart exists, but who calls nothing of
# CUDA needs none: torch's libraries find those that they need by themselves. A project that uses
# CUDA has its find_package(Torch) before this, and keeps what that found.
if(NOT TARGET torch::cudart)
  add_library(torch::cudart INTERFACE IMPORTED)
endif()
