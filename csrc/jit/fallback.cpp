#include "jit/fallback.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/constant_pooling.h>

#include <algorithm>
#include <array>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "jit/builder.h"
#include "jit/effects.h"
#include "jit/nodes.h"
#include "jit/prepare.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
using torch::jit::WithInsertPoint;

constexpr std::size_t kOriginal = 0, kOverwriting = 1;  // blocks of the If

bool IsModule(const Value* value) {
  return value->type()->is_module();
}

// What gradients may be recorded for; `is_complete`: for nothing else.
struct Sources {
  std::vector<Value*> inputs, attributes;
  bool is_complete = true;
};

// The way to the attribute from an input; nothing if it is not read from modules alone.
std::optional<std::vector<Node*>> PathOf(Value* attribute, const Graph& graph) {
  std::vector<Node*> path;
  for (Value* value = attribute; value->node() != graph.param_node();) {
    Node* node = value->node();
    if (node->kind() != c10::prim::GetAttr || !IsModule(node->input())) return std::nullopt;
    path.insert(path.begin(), node);
    value = node->input();
  }
  return path;
}

Sources FindSources(Graph& graph) {
  Sources sources;
  for (Value* input : graph.inputs()) {
    if (input->type()->kind() == c10::TypeKind::TensorType) {
      sources.inputs.push_back(input);
    } else if (!IsModule(input) && MayHoldTensors(input->type())) {
      sources.is_complete = false;
    }
  }
  ForEachNode(graph.block(), [&](Node* node) {
    if (node->kind() == c10::prim::GetAttr && MayHoldTensors(node->output()->type())) {
      if (node->output()->type()->kind() == c10::TypeKind::TensorType &&
          PathOf(node->output(), graph)) {
        sources.attributes.push_back(node->output());
      } else {
        sources.is_complete &= IsModule(node->output());
      }
    }
    // Leaves of its own, or nobody knows.
    const c10::FunctionSchema* schema = node->maybeSchema();
    const bool makes_leaves =
        schema != nullptr && (schema->argumentIndexWithName("requires_grad") ||
                              schema->name() == "aten::requires_grad_");
    sources.is_complete &= !makes_leaves && EffectsOf(node).undeclared.empty();
  });
  return sources;
}

class Condition : public Builder {
 public:
  using Builder::Builder;

  Value* Attribute(const std::vector<Node*>& path) {
    Value* value = path.front()->input();
    for (const Node* node : path) {
      Node* get = graph().createGetAttr(value, node->s(c10::attr::name));
      value = graph().insertNode(get)->output();
    }
    return value;
  }

  // A product tells: it is rounded under autocast. torch's own question, is_autocast_cpu_enabled,
  // ends the process when the graph is compiled under autocast (its node is destroyed while the
  // compiler walks over it). The product is of 0 x 0 numbers, or 1 x 1 where gradients are on: of a
  // size that is no constant, or the executor would answer once and for all.
  Value* IsAutocast(Value* gradients_are_on) {
    Value* float32 = Constant(c10::ScalarType::Float);
    Value* side = Number("aten::Int", {gradients_are_on});
    Value* sizes = Numbers("prim::ListConstruct", {side, side});
    Value* square = Empty(sizes, float32);
    return Ask("aten::ne", {Dtype(Tensor("aten::mm", {square, square})), float32});
  }

  // Asks about the sources only where gradients are on.
  Value* RecordsGradients(const Sources& sources, Value* is_on) {
    if (!sources.is_complete) return is_on;
    const auto any_requires_grad = [&] {
      std::vector<Value*> requires_grad;
      for (Value* input : sources.inputs) {
        requires_grad.push_back(Ask("prim::requires_grad", {input}));
      }
      for (Value* attribute : sources.attributes) {
        Value* tensor = Attribute(*PathOf(attribute, graph()));
        requires_grad.push_back(Ask("prim::requires_grad", {tensor}));
      }
      return Any(requires_grad);
    };
    return If(is_on, c10::BoolType::get(), any_requires_grad, [&] { return Constant(false); });
  }

  Value* MustFallBack(const Sources& sources, const InputSizes& sizes,
                      const OverwriteRules& rules) {
    Value* gradients_are_on = Ask("aten::is_grad_enabled", {});
    std::vector<Value*> reasons;
    if (rules.autocast) reasons.push_back(IsAutocast(gradients_are_on));

    Value* strided = Constant(static_cast<std::int64_t>(c10::kStrided));
    for (Value* input : sources.inputs) {
      reasons.push_back(Ask("aten::__not__", {Ask("prim::is_cpu", {input})}));
      reasons.push_back(Ask("prim::is_nested", {input}));
      reasons.push_back(Ask("aten::ne", {Number("prim::layout", {input}), strided}));
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (!sizes[i]) continue;
      reasons.push_back(Ask("aten::ne", {Sizes(graph().inputs()[i]), Constant(*sizes[i])}));
    }
    if (rules.gradients) reasons.push_back(RecordsGradients(sources, gradients_are_on));
    return Any(reasons);
  }
};

bool IsOfCondition(Node* node) {
  static constexpr auto kKinds = std::to_array<std::string_view>(
      {"prim::Constant", "aten::is_grad_enabled", "aten::Int", "prim::ListConstruct", "aten::empty",
       "aten::mm", "prim::dtype", "aten::ne", "prim::is_cpu", "prim::is_nested", "prim::layout",
       "prim::requires_grad", "prim::GetAttr", "prim::If", "aten::__or__", "aten::__not__",
       "aten::size"});
  return std::ranges::find(kKinds, node->kind().toQualString()) != kKinds.end();
}

// A constant; or a list of them, which a file that was saved makes of a constant.
bool IsConstant(const Node* node) {
  if (node->kind() == c10::prim::Constant) return true;
  return node->kind() == c10::prim::ListConstruct &&
         std::ranges::all_of(node->inputs(), [](const Value* value) {
           return value->node()->kind() == c10::prim::Constant;
         });
}

// The If of AddFallback, if there is one.
Node* FindChoice(Graph& graph) {
  Node* choice = graph.return_node()->prev();
  if (choice->kind() != c10::prim::If || choice->outputs().size() != graph.outputs().size() ||
      graph.outputs().empty()) {
    return nullptr;
  }
  for (std::size_t i = 0; i < choice->outputs().size(); ++i) {
    if (graph.outputs()[i] != choice->output(i)) return nullptr;
  }
  bool asks_for_gradients = false, asks_for_autocast = false;
  for (Node* node : graph.nodes()) {
    if (node == choice) break;
    if (AnyInnerNode(node, [](Node* inner) { return !IsOfCondition(inner); })) return nullptr;
    asks_for_gradients |= node->matches("aten::is_grad_enabled() -> bool");
    asks_for_autocast |= node->kind() == c10::aten::mm;
  }
  const auto is_for_all = [&](const Value* value) {
    return value == choice->input() || value->node() == graph.param_node() ||
           IsConstant(value->node());
  };
  const bool is_ours = asks_for_gradients && asks_for_autocast &&
                       std::ranges::all_of(ReadValues(choice), is_for_all);
  return is_ours ? choice : nullptr;
}

// Appends copies of the nodes of a block, and registers its outputs.
void CopyInto(Block* target, Block* source, std::unordered_map<Value*, Value*> values) {
  const auto copy_of = [&](Value* value) { return values.at(value); };
  for (Node* node : source->nodes()) {
    Node* copy = target->appendNode(target->owningGraph()->createClone(node, copy_of));
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      values[node->output(i)] = copy->output(i);
    }
  }
  for (Value* output : source->outputs()) target->registerOutput(copy_of(output));
}

// The same of a whole graph, whose inputs are those of the target's.
void CopyInto(Block* target, Graph& source) {
  std::unordered_map<Value*, Value*> inputs;
  for (std::size_t i = 0; i < source.inputs().size(); ++i) {
    inputs[source.inputs()[i]] = target->owningGraph()->inputs()[i];
  }
  CopyInto(target, source.block(), std::move(inputs));
}

// One side of the choice as a graph of its own, with the constants that stand before the choice.
std::shared_ptr<Graph> GraphOf(Node* choice, std::size_t side) {
  auto graph = std::make_shared<Graph>();
  std::unordered_map<Value*, Value*> values;
  for (Value* input : choice->owningGraph()->inputs()) {
    values[input] = graph->addInput()->copyMetadata(input);
  }
  for (Node* node : choice->owningGraph()->nodes()) {
    if (node == choice) break;
    if (!IsConstant(node)) continue;
    Node* constant = graph->createClone(node, [&](Value* value) { return values.at(value); });
    values[node->output()] = graph->insertNode(constant)->output();
  }
  CopyInto(graph->block(), choice->blocks()[side], std::move(values));
  return graph;
}

// Nodes in the order of their block: those that read go before what they read.
void Destroy(const std::vector<Node*>& nodes) {
  for (auto node = nodes.rbegin(); node != nodes.rend(); ++node) (*node)->destroy();
}

void DropUnreadConstants(Block* block) {
  const std::vector<Node*> nodes(block->nodes().begin(), block->nodes().end());
  for (auto node = nodes.rbegin(); node != nodes.rend(); ++node) {
    if (IsConstant(*node) && !(*node)->hasUses()) (*node)->destroy();
  }
}

// Leaves a method of that name where it is, with another graph: nodes that were inlined from it
// look there when they raise. Nobody has called it, or it would be run as it was.
void DefineMethod(const torch::jit::Module& module, const std::string& name,
                  std::shared_ptr<Graph> body) {
  if (const auto known = module.find_method(name)) {
    auto& function = torch::jit::toGraphFunction(known->function());
    PutBack(*function.graph(), {std::move(body), {}});
    function.clear_optimized_graphs();
    return;
  }
  torch::jit::Function* method = module._ivalue()->compilation_unit()->create_function(
      c10::QualifiedName(*module.type()->name(), name), std::move(body));
  method->setSchema(ForwardMethod(module).function().getSchema().cloneWithName(name, ""));
  module.type()->addMethod(method);
}

// Makes one side of the choice a method, and that side a call of it.
void MoveToMethod(const torch::jit::Module& module, Node* choice, std::size_t side,
                  const std::string& name) {
  std::shared_ptr<Graph> body = GraphOf(choice, side);
  DropUnreadConstants(body->block());
  DefineMethod(module, name, std::move(body));

  Block* block = choice->blocks()[side];
  const std::vector<Node*> nodes(block->nodes().begin(), block->nodes().end());
  Node* call =
      choice->owningGraph()->create(c10::prim::CallMethod, choice->owningGraph()->inputs());
  call->s_(c10::attr::name, name);
  call->output()->setType(block->outputs()[0]->type());
  block->appendNode(call);
  block->return_node()->replaceInput(0, call->output());
  Destroy(nodes);
}

// A list of constants, whatever a file has made of it.
std::optional<std::vector<std::int64_t>> NumbersOf(Value* list) {
  if (const auto constant = torch::jit::toIValue(list)) return constant->toIntVector();
  std::vector<std::int64_t> numbers;
  for (Value* value : list->node()->inputs()) {
    const auto constant = torch::jit::toIValue(value);
    if (!constant || !constant->isInt()) return std::nullopt;
    numbers.push_back(constant->toInt());
  }
  return numbers;
}

// In front of the choice.
InputSizes SizesAskedFor(Graph& graph) {
  InputSizes sizes;
  for (Node* node : graph.nodes()) {
    if (node->kind() != c10::aten::size || node->input(0)->node() != graph.param_node()) continue;
    Node* comparison = node->output()->uses().at(0).user;
    sizes.resize(graph.inputs().size());
    sizes[node->input(0)->offset()] = NumbersOf(comparison->input(1));
  }
  return sizes;
}

}  // namespace

void AddFallback(const std::shared_ptr<Graph>& graph, const Fallback& fallback,
                 const OverwriteRules& rules) {
  const std::vector<Node*> nodes = OpNodes(graph->block());
  const Sources sources = FindSources(*graph);
  const WithInsertPoint at_end(graph->return_node());
  Value* must_fall_back = Condition(*graph).MustFallBack(sources, fallback.sizes, rules);
  Node* choice =
      graph->insertNode(graph->create(c10::prim::If, {must_fall_back}, graph->outputs().size()));
  Block* original = choice->addBlock();
  Block* overwriting = choice->addBlock();
  for (std::size_t i = 0; i < graph->outputs().size(); ++i) {
    Value* result = graph->outputs()[i];
    overwriting->registerOutput(result);
    choice->output(i)->setType(result->type());
    graph->return_node()->replaceInput(i, choice->output(i));
  }
  for (Node* node : nodes) node->moveBefore(overwriting->return_node());
  CopyInto(original, *fallback.graph);
  torch::jit::ConstantPooling(graph);
  graph->lint();
}

void MoveToMethods(const torch::jit::Module& module, Graph& graph) {
  Node* choice = FindChoice(graph);
  if (choice == nullptr || choice->outputs().size() != 1) return;  // what a method returns
  MoveToMethod(module, choice, kOriginal, "torch_ext_original");
  MoveToMethod(module, choice, kOverwriting, "torch_ext_edited");
  DropUnreadConstants(graph.block());
}

Fallback TakeFallback(Graph& graph) {
  Node* choice = FindChoice(graph);
  if (choice == nullptr) return {};
  Fallback taken{GraphOf(choice, kOriginal), SizesAskedFor(graph)};
  std::vector<Node*> condition;
  for (Node* node : graph.nodes()) {
    if (node == choice) break;
    if (!IsConstant(node)) condition.push_back(node);
  }
  Block* overwriting = choice->blocks()[kOverwriting];
  for (std::size_t i = 0; i < choice->outputs().size(); ++i) {
    choice->output(i)->replaceAllUsesWith(overwriting->outputs()[i]);
  }
  const std::vector<Node*> nodes(overwriting->nodes().begin(), overwriting->nodes().end());
  for (Node* node : nodes) node->moveBefore(choice);
  choice->destroy();
  Destroy(condition);
  return taken;
}

void PutBack(Graph& graph, const Fallback& fallback) {
  while (!graph.outputs().empty()) graph.eraseOutput(graph.outputs().size() - 1);
  const std::vector<Node*> nodes(graph.nodes().begin(), graph.nodes().end());
  Destroy(nodes);
  CopyInto(graph.block(), *fallback.graph);
}

bool RunFallbackAlone(Graph& graph) {
  Node* choice = FindChoice(graph);
  if (choice == nullptr) return false;
  const WithInsertPoint before(choice);
  choice->replaceInput(0, graph.insertConstant(true));
  return true;
}

}  // namespace torch_ext::jit
