#include "jit/to_program.h"

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "jit/nodes.h"

namespace torch_ext::jit {

using torch::jit::Node;
using torch::jit::Value;

namespace {

// The name as a token of the text format, unlike all names given before.
std::string UniqueName(std::string name, std::unordered_set<std::string>& taken) {
  for (char& c : name) {
    if (c == ' ' || c == '\t' || c == '#' || c == '\n') c = '_';
  }
  try {
    sched::CheckName(name);
  } catch (const std::invalid_argument&) {
    name += "_";
  }
  std::string unique = name;
  for (int i = 2; !taken.insert(unique).second; ++i) unique = name + ":" + std::to_string(i);
  return unique;
}

std::map<std::string, program::Constant> ConstantsOf(const Node* node) {
  std::map<std::string, program::Constant> constants;
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr) return constants;
  for (std::size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
    const auto value = torch::jit::toIValue(node->input(i));
    if (!value) continue;
    const std::string& name = schema->arguments()[i].name();
    if (value->isBool()) constants[name] = value->toBool();
    if (value->isInt()) constants[name] = value->toInt();
    if (value->isDouble()) constants[name] = value->toDouble();
  }
  return constants;
}

}  // namespace

program::Program ToProgram(const std::vector<Node*>& nodes, const Probe& probe,
                           const Interference& interference) {
  program::Program program;
  std::unordered_set<std::string> taken;
  for (const Allocation& a : probe.allocations) {
    program.buffers.push_back(
        {.name = UniqueName(a.value_name.empty() ? "hidden" : a.value_name, taken),
         .bytes = a.bytes,
         .kept = a.kept,
         .shape = a.shape,
         .dtype = a.dtype});
  }
  std::unordered_map<const Node*, program::OpId> id_of;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    Node* node = nodes[i];
    program::Op& op = program.ops.emplace_back();
    op.name = OpName(node, i);
    op.oper = node->kind().toQualString();
    op.constants = ConstantsOf(node);
    for (Value* value : ReadValues(node)) {
      if (value->node()->kind() != c10::prim::Constant) op.inputs.push_back(value->debugName());
      const auto maker = id_of.find(value->node());
      if (maker != id_of.end()) op.makers.push_back(maker->second);
    }
    for (const Value* value : node->outputs()) op.outputs.push_back(value->debugName());
    id_of.emplace(node, static_cast<program::OpId>(i));
    const NodeProbe& seen = probe.nodes[i];
    op.reads.assign(seen.reads.begin(), seen.reads.end());
    op.writes.assign(seen.writes.begin(), seen.writes.end());
    op.workspace_bytes = seen.hill_bytes;
    for (const std::int32_t a : seen.writes) op.workspace_bytes -= probe.allocations[a].bytes;
    if (!interference.effects.empty()) op.effects = interference.effects[i];
  }
  program.conflicts = interference.conflicts;
  return program;
}

void Label(program::Program& program, const std::vector<Node*>& nodes,
           const torch::jit::Module& module) {
  const ModulePaths paths = PathsByType(module);
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    program.ops[i].label = {SourceOf(nodes[i]), ModulePathOf(nodes[i], paths)};
  }
}

bool KeepCertain(const std::vector<char>& certain, Probe& probe) {
  bool is_less = false;
  for (std::size_t i = 0; i < certain.size(); ++i) {
    NodeProbe& node = probe.nodes[i];
    const auto is_uncertain = [&](std::int32_t a) {
      return !certain[i] || std::ranges::count(node.released_before_hill, a) > 0;
    };
    is_less |= std::erase_if(node.reads, is_uncertain) > 0;
    if (certain[i]) continue;
    is_less |= std::exchange(node.hill_bytes, 0) > 0;
    for (const std::int32_t a : node.writes) probe.allocations[a].bytes = 0;
  }
  return is_less;
}

}  // namespace torch_ext::jit
