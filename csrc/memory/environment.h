// What the environment asks of all of torch_ext.
#pragma once

#include <cstdlib>
#include <string_view>

namespace torch_ext::memory {

// TORCH_EXT_DISABLE=1; empty and 0 are no.
inline bool IsDisabledByEnvironment() {
  const char* value = std::getenv("TORCH_EXT_DISABLE");
  return value != nullptr && std::string_view(value) != "" && std::string_view(value) != "0";
}

}  // namespace torch_ext::memory
