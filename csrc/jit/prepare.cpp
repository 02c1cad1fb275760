#include "jit/prepare.h"

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/common_subexpression_elimination.h>
#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/loop_unrolling.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>
#include <torch/csrc/jit/passes/peephole_list_idioms.h>
#include <torch/csrc/jit/passes/remove_expands.h>
#include <torch/csrc/jit/passes/remove_mutation.h>
#include <torch/csrc/jit/passes/shape_analysis.h>
#include <torch/csrc/jit/python/update_graph_executor_opt.h>
#include <torch/csrc/jit/runtime/graph_executor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "jit/effects.h"
#include "jit/nodes.h"

namespace torch_ext::jit {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

namespace {

struct NormCounts {
  std::size_t all = 0;
  std::size_t updating = 0;
};

NormCounts CountNorms(Block* block) {
  NormCounts counts;
  ForEachNode(block, [&](Node* node) {
    counts.all += HasStatistics(node);
    counts.updating += !EffectsOf(node).statistics.empty();
  });
  return counts;
}

// How many values with tensors are returned or put into attributes, lists and tuples taken apart?
std::size_t CountEscaping(Block* block) {
  std::vector<const Value*> open(block->outputs().begin(), block->outputs().end());
  ForEachNode(block, [&](const Node* node) {
    if (node->kind() == c10::prim::SetAttr) open.push_back(node->input(1));
  });
  std::unordered_set<const Value*> seen;
  std::size_t count = 0;
  while (!open.empty()) {
    const Value* value = open.back();
    open.pop_back();
    if (!MayHoldTensors(value->type()) || !seen.insert(value).second) continue;
    const Node* maker = value->node();
    if (maker->kind() == c10::prim::ListConstruct || maker->kind() == c10::prim::TupleConstruct ||
        maker->kind() == c10::prim::DictConstruct) {
      open.insert(open.end(), maker->inputs().begin(), maker->inputs().end());
    } else {
      ++count;
    }
  }
  return count;
}

bool DeclaresTooLittle(Block* block) {
  const auto is_undeclared = [](Node* inner) { return !EffectsOf(inner).undeclared.empty(); };
  return std::ranges::any_of(block->nodes(),
                             [&](Node* node) { return AnyInnerNode(node, is_undeclared); });
}

void CleanUp(std::shared_ptr<Graph>& graph) {
  torch::jit::EraseShapeInformation(graph);
  torch::jit::RemoveExpands(graph);
  torch::jit::EliminateDeadCode(graph);
  torch::jit::ConstantPropagationImmutableTypes(graph);
  torch::jit::EliminateCommonSubexpression(graph);
  torch::jit::ConstantPooling(graph);
  torch::jit::PeepholeOptimize(graph);
  torch::jit::EliminateDeadCode(graph);
  torch::jit::LowerSimpleTuples(graph);
}

bool EntersAutocast(Node* node) {
  if (node->kind() != c10::prim::Enter) return false;
  const auto type = node->input()->type()->cast<c10::ClassType>();
  return type && type->name() && type->name()->name() == "autocast";
}

// Under autocast the executor casts the inputs of these ops to float32, unless it knows the dtype
// of each and none is float32. Graphs that were traced know dtypes.
bool IsWidenedUnderAutocast(const Node* node) {
  static constexpr std::array kWidened = {
      c10::aten::add,      c10::aten::sub,     c10::aten::mul,   c10::aten::div,
      c10::aten::addcdiv,  c10::aten::addcmul, c10::aten::atan2, c10::aten::bilinear,
      c10::aten::cross,    c10::aten::dot,     c10::aten::equal, c10::aten::index_put,
      c10::aten::tensordot};
  return std::ranges::find(kWidened, node->kind()) != kWidened.end();
}

using KnownDtype = std::optional<c10::ScalarType>;  // none: float32 or not known, which is the same

// Of each input of the ops that care; by the number of the op's output, which outlives passes.
using ReadDtypes = std::unordered_map<std::size_t, std::vector<KnownDtype>>;

ReadDtypes DtypesRead(Block* block) {
  ReadDtypes read;
  ForEachNode(block, [&](Node* node) {
    if (!IsWidenedUnderAutocast(node)) return;
    std::vector<KnownDtype>& dtypes = read[node->output()->unique()];
    for (const Value* input : node->inputs()) {
      const auto type = input->type()->cast<c10::TensorType>();
      KnownDtype dtype = type ? type->scalarType() : std::nullopt;
      if (dtype == c10::ScalarType::Float) dtype.reset();
      dtypes.push_back(dtype);
    }
  });
  return read;
}

// The ops know again what they knew of their inputs before the passes. A value that was several
// ones before has one type now, and its readers may not agree.
void RestoreDtypes(Block* block, const ReadDtypes& read) {
  std::unordered_map<Value*, KnownDtype> dtypes;
  ForEachNode(block, [&](Node* node) {
    if (!IsWidenedUnderAutocast(node)) return;
    const auto before = read.find(node->output()->unique());
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      if (node->input(i)->type()->kind() != c10::TypeKind::TensorType) continue;
      const KnownDtype dtype = before == read.end() ? std::nullopt : before->second.at(i);
      const auto [known, is_new] = dtypes.emplace(node->input(i), dtype);
      TORCH_CHECK(is_new || known->second == dtype,
                  "torch's own passes merge values of which autocast would round one");
    }
  });
  for (const auto& [value, dtype] : dtypes) {
    if (dtype) value->setType(c10::TensorType::get()->withScalarType(*dtype));
  }
}

// Both executors of torch that optimise do; the simple one, without profiling, does not.
bool ExecutorFolds() {
  return torch::jit::getGraphExecutorOptimize() &&
         (torch::jit::getProfilingMode() || !torch::jit::getExecutorMode());
}

}  // namespace

torch::jit::Method ForwardMethod(const torch::jit::Module& module) {
  const auto method = module.find_method("forward");
  TORCH_CHECK(method.has_value(), "the module has no method 'forward'; nothing to optimise");
  return *method;
}

std::shared_ptr<Graph> ForwardGraph(const torch::jit::Module& module) {
  return torch::jit::toGraphFunction(ForwardMethod(module).function()).graph();
}

Fallback PrepareGraph(std::shared_ptr<Graph>& graph) {
  torch::jit::Inline(*graph);
  Fallback fallback = TakeFallback(*graph);
  ForEachNode(graph->block(), [](Node* node) {
    TORCH_CHECK(!EntersAutocast(node),
                "it enters torch.autocast, whose casts are added when the graph is compiled: let "
                "torch_ext.enable() order it then, or trace the module, which writes the casts "
                "into its graph");
  });
  if (DeclaresTooLittle(graph->block())) return fallback;
  const NormCounts before = CountNorms(graph->block());
  const std::size_t escaping = CountEscaping(graph->block());
  const ReadDtypes read = DtypesRead(graph->block());
  CleanUp(graph);
  TORCH_CHECK(CountEscaping(graph->block()) >= escaping,
              "torch's own passes merge two results that have equal values");
  const NormCounts after = CountNorms(graph->block());
  TORCH_CHECK(after.all == before.all || after.updating == before.updating,
              "torch's own passes drop a norm that updates running statistics");
  RestoreDtypes(graph->block(), read);
  return fallback;
}

namespace {

// A node that was there before passes ran: its address may be that of another one afterwards, but
// the number of its output is not given again.
using NodeId = std::pair<const Node*, std::size_t>;

NodeId IdOf(const Node* node) {
  return {node, node->outputs().empty() ? 0 : node->outputs()[0]->unique()};
}

// May the node hold memory, or change what others hold?
bool TouchesMemory(const Node* node) {
  const auto may_hold = [](const Value* value) { return MayHoldTensors(value->type()); };
  return std::ranges::any_of(node->outputs(), may_hold) ||
         std::ranges::any_of(node->inputs(), may_hold);
}

// Which of OpNodes(graph->block()) are still there after some passes over a copy, with all in their
// blocks that touches memory?
template <typename Run>
std::vector<char> NodesLeft(const std::shared_ptr<Graph>& graph, const Run& run_passes) {
  std::shared_ptr<Graph> copy = graph->copy();
  std::vector<std::vector<NodeId>> before;
  for (Node* node : OpNodes(copy->block())) {
    std::vector<NodeId>& ids = before.emplace_back(1, IdOf(node));
    ForEachInnerNode(node, [&](const Node* inner) {
      const bool is_constant = inner->kind() == c10::prim::Constant;
      if (!is_constant && TouchesMemory(inner)) ids.push_back(IdOf(inner));
    });
  }
  run_passes(copy);
  std::set<NodeId> left;
  ForEachNode(copy->block(), [&](const Node* node) { left.insert(IdOf(node)); });
  std::vector<char> is_left;
  for (const std::vector<NodeId>& ids : before) {
    is_left.push_back(
        std::ranges::all_of(ids, [&](const NodeId& id) { return left.contains(id); }));
  }
  return is_left;
}

}  // namespace

std::vector<char> FoldedNodes(const std::shared_ptr<Graph>& graph) {
  const std::vector<Node*> nodes = OpNodes(graph->block());
  std::vector<char> folded = NodesLeft(graph, [](std::shared_ptr<Graph>& copy) {
    if (ExecutorFolds()) torch::jit::ConstantPropagation(copy);
  });
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    folded[i] = !folded[i] && nodes[i]->blocks().empty();
  }
  return folded;
}

std::vector<char> CertainNodes(const std::shared_ptr<Graph>& graph) {
  const std::vector<Node*> nodes = OpNodes(graph->block());
  const auto is_fork = [](const Node* node) { return node->kind() == c10::prim::fork; };
  if (std::ranges::any_of(nodes, [&](Node* node) { return AnyInnerNode(node, is_fork); })) {
    return std::vector<char>(nodes.size(), 0);
  }
  std::vector<char> certain;
  try {
    certain = NodesLeft(graph, [](std::shared_ptr<Graph>& copy) {
      torch::jit::ConstantPropagation(copy);
      torch::jit::UnrollLoops(copy);
      for (int round = 0; round < 2; ++round) {  // what lists hide is folded and merged after them
        torch::jit::RemoveListMutation(copy);
        torch::jit::PeepholeOptimizeListIdioms(copy);
        CleanUp(copy);
        torch::jit::ConstantPropagation(copy);
      }
    });
  } catch (const std::exception&) {
    return std::vector<char>(nodes.size(), 0);  // torch's own passes fail
  }
  const auto is_unrolled = [](Node* node) {
    return node->kind() == c10::prim::Loop && AnyInnerNode(node, TouchesMemory);
  };
  // What depends on constants alone may be folded, by whatever pass, unless it draws.
  std::unordered_set<const Node*> foldable;
  const auto is_constant = [&](const Value* value) {
    return value->node()->kind() == c10::prim::Constant || foldable.contains(value->node());
  };
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const bool draws = EffectsOf(nodes[i]).draws_random_numbers;
    if (!draws && std::ranges::all_of(ReadValues(nodes[i]), is_constant)) foldable.insert(nodes[i]);
    certain[i] &= !foldable.contains(nodes[i]) && !AnyInnerNode(nodes[i], is_unrolled);
  }
  return certain;
}

}  // namespace torch_ext::jit
