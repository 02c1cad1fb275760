#include "jit/shuffle.h"

#include <random>
#include <utility>

#include "jit/interference.h"
#include "jit/nodes.h"
#include "jit/prepare.h"
#include "jit/to_program.h"
#include "program/lower.h"

namespace torch_ext::jit {
namespace {

sched::Order RandomOrder(const sched::Graph& graph, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::size_t> missing;
  std::vector<sched::OpId> ready;
  for (sched::OpId v = 0; v < graph.num_ops(); ++v) {
    missing.push_back(graph.op(v).predecessors.size());
    if (missing.back() == 0) ready.push_back(v);
  }
  sched::Order order;
  while (!ready.empty()) {
    std::swap(ready[random() % ready.size()], ready.back());
    const sched::OpId v = ready.back();
    ready.pop_back();
    order.push_back(v);
    for (sched::OpId s : graph.op(v).successors) {
      if (--missing[s] == 0) ready.push_back(s);
    }
  }
  return order;
}

}  // namespace

torch::jit::Module Shuffle(const torch::jit::Module& module, std::uint64_t seed,
                           const program::HazardRules& rules) {
  torch::jit::Module shuffled = module.clone(/*inplace=*/true);
  std::shared_ptr<torch::jit::Graph> graph = ForwardGraph(shuffled);
  PrepareGraph(graph);
  const std::vector<torch::jit::Node*> nodes = OpNodes(graph->block());
  const Interference interference = FindInterference(graph, nodes, {});
  TORCH_CHECK(interference.refusal.empty(), interference.refusal);
  Probe no_memory;
  no_memory.nodes.resize(nodes.size());
  const program::Program program = ToProgram(nodes, no_memory, interference);
  ApplyOrder(graph->block(), nodes, RandomOrder(program::Lower(program, rules), seed));
  return shuffled;
}

}  // namespace torch_ext::jit
