#include "jit/prepare.h"

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/common_subexpression_elimination.h>
#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>
#include <torch/csrc/jit/passes/remove_expands.h>
#include <torch/csrc/jit/passes/shape_analysis.h>

#include <algorithm>
#include <unordered_set>

#include "jit/effects.h"
#include "jit/nodes.h"

namespace torch_ext::jit {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;

namespace {

struct NormCounts {
  std::size_t all = 0;
  std::size_t updating = 0;
};

NormCounts CountNorms(Block* block) {
  NormCounts counts;
  for (Node* node : block->nodes()) {
    ForEachInnerNode(node, [&](Node* inner) {
      counts.all += HasStatistics(inner);
      counts.updating += !EffectsOf(inner).statistics.empty();
    });
  }
  return counts;
}

bool DeclaresTooLittle(Block* block) {
  const auto is_undeclared = [](Node* inner) { return !EffectsOf(inner).undeclared.empty(); };
  return std::ranges::any_of(block->nodes(),
                             [&](Node* node) { return AnyInnerNode(node, is_undeclared); });
}

}  // namespace

std::shared_ptr<Graph> ForwardGraph(const torch::jit::Module& module) {
  TORCH_CHECK(module.find_method("forward").has_value(),
              "the module has no method 'forward'; nothing to optimise");
  return torch::jit::toGraphFunction(module.get_method("forward").function()).graph();
}

void PrepareGraph(std::shared_ptr<Graph>& graph) {
  torch::jit::Inline(*graph);
  if (DeclaresTooLittle(graph->block())) return;
  const NormCounts before = CountNorms(graph->block());
  torch::jit::EraseShapeInformation(graph);
  torch::jit::RemoveExpands(graph);
  torch::jit::EliminateDeadCode(graph);
  torch::jit::ConstantPropagationImmutableTypes(graph);
  torch::jit::EliminateCommonSubexpression(graph);
  torch::jit::ConstantPooling(graph);
  torch::jit::PeepholeOptimize(graph);
  torch::jit::EliminateDeadCode(graph);
  torch::jit::LowerSimpleTuples(graph);
  const NormCounts after = CountNorms(graph->block());
  TORCH_CHECK(after.all == before.all || after.updating == before.updating,
              "they drop a norm that updates running statistics");
}

std::vector<char> FoldedNodes(const std::shared_ptr<Graph>& graph) {
  std::shared_ptr<Graph> copy = graph->copy();
  const std::vector<Node*> before = OpNodes(copy->block());
  std::vector<char> folded;
  for (const Node* node : before) folded.push_back(node->blocks().empty());
  torch::jit::ConstantPropagation(copy);
  const std::vector<Node*> after = OpNodes(copy->block());
  const std::unordered_set<const Node*> left(after.begin(), after.end());
  for (std::size_t i = 0; i < before.size(); ++i) folded[i] &= !left.contains(before[i]);
  return folded;
}

}  // namespace torch_ext::jit
