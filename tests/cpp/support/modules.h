// Small TorchScript modules for tests.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/irparser.h>

#include <memory>
#include <string>

namespace torch_ext::jit {

// A module with the methods in `source`, which may be indented as a whole.
inline torch::jit::Module Define(const std::string& source) {
  torch::jit::Module module("TestModule");
  if (!source.empty()) module.define(source);
  return module;
}

// A module whose forward is a graph in TorchScript's own text form; its first input is %self.
inline torch::jit::Module DefineFromIr(const std::string& ir) {
  torch::jit::Module module("TestModule");
  auto graph = std::make_shared<torch::jit::Graph>();
  torch::jit::parseIR(ir, graph.get());
  graph->inputs()[0]->setType(module.type());
  const c10::QualifiedName name(*module.type()->name(), "forward");
  module.type()->addMethod(module._ivalue()->compilation_unit()->create_function(name, graph));
  return module;
}

}  // namespace torch_ext::jit
