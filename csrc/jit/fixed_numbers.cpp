#include "jit/fixed_numbers.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <unordered_set>

#include "jit/effects.h"
#include "jit/nodes.h"
#include "jit/observe.h"
#include "program/operators/slicing.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

std::string KindOf(const Node* node) {
  std::string kind = node->kind().toQualString();
  if (kind.ends_with('_')) kind.pop_back();
  return kind;
}

// Of numbers alone, or of tensors that hold one.
bool IsArithmetic(const Node* node) {
  static const std::set<std::string> kArithmetic = {
      "aten::Bool",       "aten::Float",  "aten::Int",       "aten::ScalarImplicit",
      "aten::__and__",    "aten::__or__", "aten::__not__",   "aten::add",
      "aten::ceil",       "aten::div",    "aten::eq",        "aten::floor",
      "aten::floordiv",   "aten::ge",     "aten::gt",        "aten::floor_divide",
      "aten::le",         "aten::lt",     "aten::mul",       "aten::ne",
      "aten::neg",        "aten::rsub",   "aten::remainder", "aten::sub",
      "prim::Constant",   "prim::max",    "prim::min",       "prim::NumToTensor",
      "aten::IntImplicit"};
  return kArithmetic.contains(node->kind().toQualString());
}

bool IsTensor(const Value* value) {
  return value->type()->isSubtypeOf(*c10::TensorType::get());
}

// Sizes of what it makes follow from sizes and numbers that it is given.
bool MakesSizes(const Node* node) {
  static const std::set<std::string> kLists = {"aten::chunk", "aten::split", "aten::unbind"};
  static const std::set<std::string> kTensors = [] {
    std::set<std::string> kinds = {
        "aten::arange",     "aten::copy",       "aten::empty",         "aten::fill",
        "aten::full",       "aten::full_like",  "aten::instance_norm", "aten::new_empty",
        "aten::new_full",   "aten::new_ones",   "aten::new_zeros",     "aten::ones",
        "aten::repeat",     "aten::ones_like",  "aten::scalar_tensor", "aten::to",
        "aten::tril",       "aten::triu",       "aten::type_as",       "aten::zeros",
        "aten::zeros_like", "prim::ListUnpack", "aten::bitwise_not"};
    for (const std::string& oper : program::SliceableOperators()) kinds.insert(oper);
    return kinds;
  }();
  const std::string kind = KindOf(node);
  // An overload of another type is another operator: `where` of a condition alone tells places.
  const bool are_tensors = std::ranges::all_of(node->outputs(), IsTensor);
  return kLists.contains(kind) || (are_tensors && kTensors.contains(kind));
}

bool IsNumber(const Value* value) {
  const c10::TypeKind kind = value->type()->kind();
  return kind == c10::TypeKind::IntType || kind == c10::TypeKind::BoolType ||
         kind == c10::TypeKind::FloatType;
}

// Everybody reads the list, and nobody keeps it or writes to it.
bool IsOnlyRead(const Value* list) {
  return std::ranges::all_of(list->uses(), [&](const torch::jit::Use& use) {
    if (use.user->kind() == c10::prim::ListUnpack) return true;
    const c10::FunctionSchema* schema = use.user->maybeSchema();
    return schema != nullptr && use.offset < schema->arguments().size() &&
           schema->arguments()[use.offset].alias_info() == nullptr &&
           use.user->kind() != c10::prim::ListConstruct;
  });
}

// May somebody put something into it later?
bool MayGrow(const Value* value) {
  return value->type()->kind() == c10::TypeKind::ListType &&
         value->node()->kind() != c10::prim::Constant && !IsOnlyRead(value);
}

// What follows from the sizes of the inputs.
class Decided {
 public:
  explicit Decided(Graph& graph) {
    for (const Value* input : graph.inputs()) {
      if (IsTensor(input)) sized_.insert(input);
    }
    for (Node* node : graph.block()->nodes()) Add(node);
  }

  bool IsKnown(const Value* value) const { return known_.contains(value); }

 private:
  bool IsSized(const Value* value) const { return sized_.contains(value); }

  void Add(Node* node) {
    if (!node->blocks().empty() || std::ranges::any_of(node->outputs(), MayGrow)) return;
    const auto is_known = [&](const Value* value) { return IsKnown(value); };
    const auto is_decided = [&](const Value* value) { return IsKnown(value) || IsSized(value); };
    const auto inputs = node->inputs();
    const bool are_known = std::ranges::all_of(inputs, is_known);
    const std::string kind = node->kind().toQualString();
    const bool is_size = (kind == "aten::size" || kind == "aten::dim" || kind == "aten::len") &&
                         IsSized(inputs[0]) &&
                         std::all_of(inputs.begin() + 1, inputs.end(), is_known);
    if (is_size || (are_known && (IsArithmetic(node) || kind == "prim::ListConstruct"))) {
      for (const Value* output : node->outputs()) known_.insert(output);
    }
    const bool is_sized =
        node->kind() == c10::prim::Constant ||
        ((MakesSizes(node) || kind == "prim::ListConstruct" || kind == "prim::NumToTensor") &&
         std::ranges::all_of(inputs, is_decided));
    if (is_sized) {
      for (const Value* output : node->outputs()) sized_.insert(output);
    }
  }

  std::unordered_set<const Value*> sized_, known_;
};

bool ChangesSizes(Graph& graph) {
  bool any = false;
  ForEachNode(graph.block(), [&](Node* node) {
    const OperatorEffects effects = EffectsOf(node);
    any |= effects.changes_metadata || !effects.undeclared.empty();
  });
  return any;
}

// A tensor of a number may be changed in place, by what is no number.
bool WritesToKnown(Graph& graph, const Decided& decided) {
  bool any = false;
  ForEachNode(graph.block(), [&](Node* node) {
    const c10::FunctionSchema* schema = node->maybeSchema();
    if (schema == nullptr) return;
    for (std::size_t i = 0; i < node->inputs().size() && i < schema->arguments().size(); ++i) {
      const c10::AliasInfo* alias = schema->arguments()[i].alias_info();
      any |= alias != nullptr && alias->isWrite() && decided.IsKnown(node->input(i));
    }
  });
  return any;
}

InputSizes SizesOf(const Graph& graph, const Stack& inputs) {
  InputSizes sizes(graph.inputs().size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (IsTensor(graph.inputs()[i]) && inputs[i].isTensor()) {
      sizes[i] = inputs[i].toTensor().sizes().vec();
    }
  }
  return sizes;
}

}  // namespace

FixedNumbers FindFixedNumbers(const std::shared_ptr<Graph>& graph, Stack inputs) {
  FixedNumbers numbers;
  if (ChangesSizes(*graph)) return numbers;
  const std::shared_ptr<Graph> copy = graph->copy();
  const Decided decided(*copy);
  if (WritesToKnown(*copy, decided)) return numbers;
  std::vector<Node*> nodes(copy->block()->nodes().begin(), copy->block()->nodes().end());
  Observers observers;
  for (std::size_t place = 0; place < nodes.size(); ++place) {
    Node* node = nodes[place];
    if (node->kind() == c10::prim::Constant || node->outputs().size() != 1) continue;
    const Value* output = node->output();
    const bool is_list = node->kind() == c10::prim::ListConstruct &&
                         output->type()->isSubtypeOf(*c10::ListType::ofInts());
    if (!decided.IsKnown(output) || !(IsNumber(output) || is_list)) continue;
    observers
        .Create(*copy, {node->output()},
                [&numbers, place](at::ArrayRef<c10::IValue> values) {
                  numbers.constants.emplace_back(place, values[0].deepcopy());
                })
        ->insertAfter(node);
  }
  numbers.sizes = SizesOf(*graph, inputs);
  const torch::jit::Code code(copy, "numbers");
  torch::jit::InterpreterState(code).run(inputs);
  return numbers;
}

void FixNumbers(const std::shared_ptr<Graph>& graph, const FixedNumbers& numbers) {
  if (numbers.empty()) return;
  const std::vector<Node*> nodes(graph->block()->nodes().begin(), graph->block()->nodes().end());
  for (const auto& [place, constant] : numbers.constants) {
    const torch::jit::WithInsertPoint before(nodes[place]);
    nodes[place]->output()->replaceAllUsesWith(graph->insertConstant(constant));
  }
  torch::jit::EliminateDeadCode(graph);
}

}  // namespace torch_ext::jit
