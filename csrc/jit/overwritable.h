// What ops of a TorchScript block may write over, by the table of operators and by what may alias:
// never by one run alone. What only runs can tell (sizes, dtypes, strides) is seen in the probes
// and asked again in every call (ApplyOverwrite).
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "jit/interference.h"
#include "jit/overwrite_rules.h"
#include "jit/probe.h"
#include "program/operators/overwriting.h"
#include "program/program.h"

namespace torch_ext::jit {

struct OverwriteForm {
  torch::jit::Node* node;
  const program::OverwritingForm* form;
  bool has_new_strides;  // argument and operands in all probes; else the layout is another one
};

// The i-th overwrite of each probe and `forms[i]` are the same.
struct Overwritable {
  std::string refusal;  // why nothing may be overwritten, if so
  std::vector<OverwriteForm> forms;
  std::vector<std::vector<program::Overwrite>> overwrites;  // of each probe
};

// Why no op of such a graph may be edited; empty if some may.
std::string WhyNotEdited(const std::vector<torch::jit::Node*>& nodes,
                         const Interference& interference);

// `nodes` are OpNodes of the graph's block, whose values `interference` tells of without refusal.
Overwritable FindOverwritable(const std::shared_ptr<torch::jit::Graph>& graph,
                              const std::vector<torch::jit::Node*>& nodes,
                              const std::vector<Probe>& probes, const Interference& interference,
                              const OverwriteRules& rules = {});

// Of each op, and place of an argument that it may write over, the form by which it does. Copies of
// the graph have the same, and not the same names of values.
using FormsOfArguments =
    std::map<std::pair<program::OpId, std::size_t>, const program::OverwritingForm*>;
FormsOfArguments FormsByArgument(const Overwritable& overwritable);

// Puts the form in the node's place, for a node that is called as the form takes for granted.
// Returns the node of the form, whose first output is the result.
torch::jit::Node* PutForm(torch::jit::Node* node, const program::OverwritingForm& form);

// Replaces the node by an If: the form that overwrites, or, where sizes, dtypes or strides of the
// argument would not be those of the result, the node as it was.
void ApplyOverwrite(const OverwriteForm& overwrite, const OverwriteRules& rules = {});

}  // namespace torch_ext::jit
