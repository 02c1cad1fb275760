#include "jit/sliceable.h"

#include <ATen/Parallel.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "jit/nodes.h"
#include "program/sliceable.h"

namespace torch_ext::jit {
namespace {

using program::Program;
using program::Slicing;
using torch::jit::Node;
using torch::jit::Value;

void AddTensor(Program& program, const Value* value, const SeenTensor& seen) {
  const c10::ScalarType dtype = c10::getStringToDtypeMap().at(seen.dtype);
  if (c10::isQIntType(dtype) || c10::isComplexType(dtype)) return;  // more than their numbers
  program::Tensor& tensor = program.tensors[value->debugName()];
  tensor = {seen.shape, seen.dtype, seen.allocation, seen.fills_it};
  if (!seen.HasNewStrides()) tensor.strides = seen.strides;
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

// Attention has weights as a second result, an undefined tensor where they are not asked for.
bool MakesFirstAlone(const Node* node, const NodeProbe& seen) {
  for (std::size_t i = 1; i < node->outputs().size(); ++i) {
    if (seen.written[i] || node->output(i)->hasUses()) return false;
  }
  return !node->outputs().empty();
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
  const program::Tensor& first = program.tensors.at(node->input(0)->debugName());
  const program::Tensor list{.shape = first.shape, .dtype = first.dtype, .is_list = true};
  program.tensors[node->output()->debugName()] = list;
  return true;
}

// The tensors and constants that a node is called with; nothing if there is more, which may differ
// from run to run.
struct CalledWith {
  std::vector<program::Argument> arguments;
  std::map<std::string, program::CallConstant> constants;
};

std::optional<CalledWith> ArgumentsOf(const Program& program, const Node* node) {
  CalledWith with;
  const std::vector<c10::Argument>& arguments = node->schema().arguments();
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    const Value* input = node->input(i);
    const auto tensor = program.tensors.find(input->debugName());
    const bool is_tensor = input->type()->kind() == c10::TypeKind::TensorType ||
                           (tensor != program.tensors.end() && tensor->second.is_list);
    const bool is_constant = input->node()->kind() == c10::prim::Constant;
    if (!is_tensor && !is_constant) return std::nullopt;
    const auto constant = ConstantOf(input);
    if (constant) with.constants[arguments[i].name()] = *constant;
    if (!constant) with.arguments.push_back({arguments[i].name(), {input->debugName()}});
  }
  return with;
}

}  // namespace

void AddSlicings(Program& program, const std::vector<Node*>& nodes, const Probe& probe) {
  for (std::size_t i = 0; i < nodes.size(); ++i) AddTensors(program, nodes[i], probe.nodes[i]);
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const Node* node = nodes[i];
    if (!MakesFirstAlone(node, probe.nodes[i]) || !node->blocks().empty()) continue;
    program.ops[i].outputs.resize(1);
    const bool is_list = AddList(program, node);
    const auto tensor = program.tensors.find(node->output(0)->debugName());
    if (tensor == program.tensors.end()) continue;
    if (is_list) {
      for (int d = 0; d < static_cast<int>(tensor->second.shape.size()); ++d) {
        program.ops[i].slicings.push_back(SlicingOfList(program, node, d));
      }
    } else if (node->maybeSchema() != nullptr) {
      const std::optional<CalledWith> with = ArgumentsOf(program, node);
      const auto op = static_cast<program::OpId>(i);
      if (with) program::AddSlicings(program, op, with->arguments, with->constants);
    }
  }
  program::SetThreads(program, at::get_num_threads());
  if (nodes.empty()) return;
  for (const Value* result : nodes[0]->owningBlock()->outputs()) {
    program.results.push_back(result->debugName());
  }
}

}  // namespace torch_ext::jit
