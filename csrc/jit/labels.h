// What an op is called in the user's program: for reports and advice, never for planning.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace torch_ext::jit {

struct OpLabel {
  std::string kind;                  // of the operator, without its overload: "aten::relu"
  std::string source;                // the user's line, "file:line", or empty
  std::string module_path;           // e.g. "layer1.0.conv1", or empty
  std::vector<std::string> inputs;   // values, constants left out
  std::vector<std::string> outputs;  // values
  // Arguments that are constants of the program, by name, so far as they are plain numbers.
  std::map<std::string, std::variant<bool, std::int64_t, double>> constants;
};

// The nodes' graph is one of the module's.
std::vector<OpLabel> LabelsOf(const std::vector<torch::jit::Node*>& nodes,
                              const torch::jit::Module& module);

}  // namespace torch_ext::jit
