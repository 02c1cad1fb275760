// Small TorchScript modules for tests.
#pragma once

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>

#include <memory>
#include <string>

namespace torch_ext::jit {

// A module with the methods in `source`, which may be indented as a whole.
inline torch::jit::Module Define(const std::string& source) {
  torch::jit::Module module("TestModule");
  if (!source.empty()) module.define(source);
  return module;
}

inline std::shared_ptr<torch::jit::Graph> ForwardGraphOf(const torch::jit::Module& module) {
  return torch::jit::toGraphFunction(module.get_method("forward").function()).graph();
}

}  // namespace torch_ext::jit
