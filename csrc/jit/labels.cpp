#include "jit/labels.h"

#include <torch/csrc/jit/ir/constants.h>

#include "jit/nodes.h"

namespace torch_ext::jit {

using torch::jit::Node;
using torch::jit::Value;

namespace {

OpLabel LabelOf(Node* node, const ModulePaths& paths) {
  OpLabel label;
  label.kind = node->kind().toQualString();
  label.source = SourceOf(node);
  label.module_path = ModulePathOf(node, paths);
  for (const Value* value : ReadValues(node)) {
    if (value->node()->kind() != c10::prim::Constant) label.inputs.push_back(value->debugName());
  }
  for (const Value* value : node->outputs()) label.outputs.push_back(value->debugName());
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr) return label;
  for (std::size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
    const auto value = torch::jit::toIValue(node->input(i));
    if (!value) continue;
    auto& constants = label.constants;
    const std::string& name = schema->arguments()[i].name();
    if (value->isBool()) constants[name] = value->toBool();
    if (value->isInt()) constants[name] = value->toInt();
    if (value->isDouble()) constants[name] = value->toDouble();
  }
  return label;
}

}  // namespace

std::vector<OpLabel> LabelsOf(const std::vector<Node*>& nodes, const torch::jit::Module& module) {
  const ModulePaths paths = PathsByType(module);
  std::vector<OpLabel> labels;
  labels.reserve(nodes.size());
  for (Node* node : nodes) labels.push_back(LabelOf(node, paths));
  return labels;
}

}  // namespace torch_ext::jit
