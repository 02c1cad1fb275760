#include "jit/sliceable.h"

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "jit/nodes.h"

namespace torch_ext::jit {
namespace {

using program::Need;
using program::Program;
using program::Slicing;
using torch::jit::Node;
using torch::jit::Value;

void AddTensor(Program& program, const Value* value, const SeenTensor& seen) {
  const c10::ScalarType dtype = c10::getStringToDtypeMap().at(seen.dtype);
  if (c10::isQIntType(dtype) || c10::isComplexType(dtype)) return;  // more than their numbers
  program.tensors[value->debugName()] = {seen.shape, seen.allocation,
                                         seen.fills_it && seen.HasNewStrides()};
}

void AddTensors(Program& program, Node* node, const NodeProbe& seen) {
  const std::vector<Value*> read = ReadValues(node);
  for (std::size_t i = 0; i < read.size(); ++i) {
    if (seen.read[i]) AddTensor(program, read[i], *seen.read[i]);
  }
  for (std::size_t i = 0; i < node->outputs().size(); ++i) {
    if (seen.written[i]) AddTensor(program, node->output(i), *seen.written[i]);
  }
}

std::optional<program::CallConstant> ConstantOf(const Value* value) {
  const auto constant = torch::jit::toIValue(value);
  if (!constant) return std::nullopt;
  if (constant->isBool()) return constant->toBool();
  if (constant->isInt()) return constant->toInt();
  if (constant->isDouble()) return constant->toDouble();
  if (constant->isIntList()) return constant->toIntVector();
  return std::nullopt;
}

// A list of tensors, each in the same parts.
std::optional<Slicing> SlicingOfList(const Program& program, const Node* node, int dimension) {
  Slicing slicing{.may_be_view = true};
  const std::vector<std::int64_t>& shape = program.tensors.at(node->output()->debugName()).shape;
  for (const Value* value : node->inputs()) {
    const std::vector<std::int64_t>& other = program.tensors.at(value->debugName()).shape;
    if (other.size() != shape.size() || other[dimension] != shape[dimension]) return std::nullopt;
    slicing.needs.push_back({value->debugName(), {.dimension = dimension}});
  }
  return slicing;
}

// The list is seen as its first tensor: dimensions in which the others differ cannot be sliced.
bool AddList(Program& program, const Node* node) {
  const auto is_known = [&](const Value* value) {
    return program.tensors.contains(value->debugName());
  };
  if (node->kind() != c10::prim::ListConstruct || node->inputs().empty() ||
      !std::ranges::all_of(node->inputs(), is_known)) {
    return false;
  }
  program.tensors[node->output()->debugName()] = {
      .shape = program.tensors.at(node->input(0)->debugName()).shape, .is_list = true};
  return true;
}

program::Call CallOf(const Program& program, const Node* node) {
  program::Call call{.oper = node->kind().toQualString(),
                     .result = program.tensors.at(node->output()->debugName()).shape};
  const std::vector<c10::Argument>& arguments = node->schema().arguments();
  for (std::size_t i = 0; i < arguments.size() && i < node->inputs().size(); ++i) {
    const auto tensor = program.tensors.find(node->input(i)->debugName());
    if (tensor != program.tensors.end()) call.shapes[arguments[i].name()] = tensor->second.shape;
    if (const auto constant = ConstantOf(node->input(i))) {
      call.constants[arguments[i].name()] = *constant;
    }
  }
  return call;
}

// By values, where the table names arguments. Nothing if an argument is needed that is no tensor
// that the probe has seen.
std::optional<Slicing> OfValues(const Program& program, Slicing slicing, const Node* node) {
  for (auto& [name, need] : slicing.needs) {
    const auto argument = node->schema().argumentIndexWithName(name);
    if (!argument) return std::nullopt;
    name = node->input(*argument)->debugName();
    const auto tensor = program.tensors.find(name);
    if (tensor == program.tensors.end()) return std::nullopt;
    if (need.dimension >= static_cast<int>(tensor->second.shape.size())) return std::nullopt;
  }
  return slicing;
}

}  // namespace

void AddSlicings(Program& program, const std::vector<Node*>& nodes, const Probe& probe) {
  for (std::size_t i = 0; i < nodes.size(); ++i) AddTensors(program, nodes[i], probe.nodes[i]);
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const Node* node = nodes[i];
    if (node->outputs().size() != 1 || !node->blocks().empty()) continue;
    std::vector<std::optional<Slicing>>& slicings = program.ops[i].slicings;
    const bool is_list = AddList(program, node);
    const auto tensor = program.tensors.find(node->output()->debugName());
    if (tensor == program.tensors.end()) continue;
    if (!is_list && node->maybeSchema() == nullptr) continue;
    for (int d = 0; d < static_cast<int>(tensor->second.shape.size()); ++d) {
      std::optional<Slicing> slicing =
          is_list ? SlicingOfList(program, node, d) : program::SlicingOf(CallOf(program, node), d);
      if (slicing && !is_list) slicing = OfValues(program, std::move(*slicing), node);
      slicings.push_back(std::move(slicing));
    }
  }
  if (nodes.empty()) return;
  for (const Value* result : nodes[0]->owningBlock()->outputs()) {
    program.results.push_back(result->debugName());
  }
}

}  // namespace torch_ext::jit
