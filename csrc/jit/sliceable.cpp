#include "jit/sliceable.h"

#include <ATen/Parallel.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "jit/nodes.h"

namespace torch_ext::jit {
namespace {

using program::Need;
using program::Program;
using program::Slicing;
using program::Tensor;
using torch::jit::Node;
using torch::jit::Value;

void AddTensor(Program& program, const Value* value, const SeenTensor& seen) {
  const c10::ScalarType dtype = c10::getStringToDtypeMap().at(seen.dtype);
  if (c10::isQIntType(dtype) || c10::isComplexType(dtype)) return;  // more than their numbers
  program.tensors[value->debugName()] = {seen.shape, seen.dtype, seen.allocation,
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

// Does every run with equal tensors make equal results, in sizes and dtypes? Numbers that are no
// constants may decide on both, and so does the default dtype where integers become floats.
bool IsDecidedByTensors(const Program& program, const Node* node) {
  bool has_float = false;
  for (const Value* input : node->inputs()) {
    const auto tensor = program.tensors.find(input->debugName());
    if (tensor != program.tensors.end()) {
      has_float |= tensor->second.dtype.find("float") != std::string::npos;
    }
    const bool is_tensor = input->type()->kind() == c10::TypeKind::TensorType ||
                           (tensor != program.tensors.end() && tensor->second.is_list);
    if (!is_tensor && input->node()->kind() != c10::prim::Constant) return false;
  }
  const Tensor& result = program.tensors.at(node->output()->debugName());
  return has_float || result.is_list || result.dtype.find("float") == std::string::npos;
}

// By values, where the table names arguments. Nothing if an argument is needed that is no tensor
// that the probe has seen, or if a value is several arguments of which other parts are needed.
std::optional<Slicing> OfValues(const Program& program, const Slicing& slicing, const Node* node) {
  Slicing of_values = slicing;
  of_values.needs.clear();
  std::map<std::string, Need> need_of;
  const std::vector<c10::Argument>& arguments = node->schema().arguments();
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    const std::string value = node->input(i)->debugName();
    const auto need =
        std::ranges::find(slicing.needs, arguments[i].name(), &std::pair<std::string, Need>::first);
    const Need wanted = need == slicing.needs.end() ? Need() : need->second;
    const auto [known, is_new] = need_of.emplace(value, wanted);
    if (known->second != wanted) return std::nullopt;
    if (!is_new || wanted.dimension == Need::kWhole) continue;
    const auto tensor = program.tensors.find(value);
    if (tensor == program.tensors.end()) return std::nullopt;
    if (wanted.dimension >= static_cast<int>(tensor->second.shape.size())) return std::nullopt;
    of_values.needs.emplace_back(value, wanted);
  }
  return of_values;
}

// Twice the longest vector of floats, for each share of a run that up to as many threads as there
// are may get.
std::int64_t RunElements() {
  std::int64_t elements = 32;
  for (std::int64_t threads = 2; threads <= at::get_num_threads(); ++threads) {
    elements = std::lcm(elements, 32 * threads);
    if (elements > (std::int64_t{1} << 40)) break;  // none is that long
  }
  return elements;
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
    if (!IsDecidedByTensors(program, node)) continue;
    for (int d = 0; d < static_cast<int>(tensor->second.shape.size()); ++d) {
      std::optional<Slicing> slicing =
          is_list ? SlicingOfList(program, node, d) : program::SlicingOf(CallOf(program, node), d);
      if (slicing && !is_list) slicing = OfValues(program, *slicing, node);
      slicings.push_back(std::move(slicing));
    }
  }
  program.run_elements = RunElements();
  program.threads = at::get_num_threads();
  if (nodes.empty()) return;
  for (const Value* result : nodes[0]->owningBlock()->outputs()) {
    program.results.push_back(result->debugName());
  }
}

}  // namespace torch_ext::jit
