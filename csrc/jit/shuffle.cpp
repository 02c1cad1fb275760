#include "jit/shuffle.h"

#include "jit/apply.h"
#include "jit/execute.h"
#include "jit/fallback.h"
#include "jit/fixed_numbers.h"
#include "jit/interference.h"
#include "jit/nodes.h"
#include "jit/prepare.h"
#include "jit/repeats.h"
#include "jit/slices.h"
#include "jit/to_program.h"
#include "program/shuffle.h"

namespace torch_ext::jit {

using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;

namespace {

// An order that data flow and hazards allow, sizes unseen.
sched::Order OrderAtRandom(const std::shared_ptr<Graph>& graph, const std::vector<Node*>& nodes,
                           std::uint64_t seed, const program::HazardRules& rules = {}) {
  const Interference interference = FindInterference(graph, nodes, {});
  TORCH_CHECK(interference.refusal.empty(), interference.refusal);
  Probe no_memory;
  no_memory.nodes.resize(nodes.size());
  return program::Shuffled(ToProgram(nodes, no_memory, interference), seed, rules).order;
}

}  // namespace

Module Shuffle(const Module& module, std::uint64_t seed, const program::HazardRules& rules) {
  Module shuffled = module.clone(/*inplace=*/true);
  std::shared_ptr<Graph> graph = ForwardGraph(shuffled);
  PrepareGraph(graph);
  const std::vector<Node*> nodes = OpNodes(graph->block());
  ApplyOrder(graph->block(), nodes, OrderAtRandom(graph, nodes, seed, rules));
  return shuffled;
}

Module ShuffleOverwriting(const Module& module, const Stack& example, std::uint64_t seed,
                          const OverwriteRules& rules) {
  Module shuffled = module.clone(/*inplace=*/true);
  std::shared_ptr<Graph> graph = ForwardGraph(shuffled);
  PrepareGraph(graph);
  const std::vector<Node*> nodes = OpNodes(graph->block());
  const QuietRun quiet;
  const std::vector<Probe> probes{RunProbe(graph, [&] {
    quiet.RewindRandomState();
    return CopiedInputs(shuffled, example, /*copy_state=*/true);
  })};
  const Interference interference = FindInterference(graph, nodes, probes);
  TORCH_CHECK(interference.refusal.empty(), interference.refusal);
  const Overwritable overwritable = FindOverwritable(graph, nodes, probes, interference, rules);
  program::Program program = ToProgram(nodes, probes[0], interference);
  program.overwritable = overwritable.overwrites[0];
  Copyable copyable;
  if (overwritable.refusal.empty()) {
    copyable = FindCopyable(nodes, probes);
    program.copyable = copyable.copies[0];
  }
  const auto [order, edits] = program::Shuffled(program, seed);
  const Fallback fallback{graph->copy(), {}};
  ApplyEdits(graph->block(), nodes, order, edits, overwritable, copyable, rules);
  if (!edits.empty()) AddFallback(graph, fallback, rules);
  MoveToMethods(shuffled, *graph);
  return shuffled;
}

Module ShuffleSlicing(const Module& module, const Stack& example, std::uint64_t seed) {
  Module shuffled = module.clone(/*inplace=*/true);
  std::shared_ptr<Graph> graph = ForwardGraph(shuffled);
  PrepareGraph(graph);
  const QuietRun quiet;
  const auto make_inputs = [&] {
    quiet.RewindRandomState();
    return CopiedInputs(module, example, /*copy_state=*/true);
  };
  const FixedNumbers numbers = FindFixedNumbers(graph, make_inputs());
  const Fallback fallback{graph->copy(), numbers.sizes};
  FixNumbers(graph, numbers);
  const std::vector<Node*> nodes = OpNodes(graph->block());
  sched::Order order = OrderAtRandom(graph, nodes, seed);
  Probe probe = RunProbe(graph, make_inputs);
  Interference interference = FindInterference(graph, nodes, {probe});
  Slicer slicer(graph->copy(), std::move(order), std::move(probe), std::move(interference),
                make_inputs);
  const std::vector<program::Stretch> stretches = slicer.Random(seed);
  slicer.Apply(graph, stretches);
  TakeMarks(OpNodes(graph->block()));
  if (!stretches.empty() || !numbers.empty()) AddFallback(graph, fallback);
  MoveToMethods(shuffled, *graph);
  return shuffled;
}

Module ShuffleRepeating(const Module& module, const Stack& example, std::uint64_t seed) {
  Module shuffled = module.clone(/*inplace=*/true);
  std::shared_ptr<Graph> graph = ForwardGraph(shuffled);
  PrepareGraph(graph);
  const std::vector<Node*> nodes = OpNodes(graph->block());
  const QuietRun quiet;
  const Probe probe = RunProbe(graph, [&] {
    quiet.RewindRandomState();
    return CopiedInputs(shuffled, example, /*copy_state=*/true);
  });
  const Interference interference = FindInterference(graph, nodes, {probe});
  TORCH_CHECK(interference.refusal.empty(), interference.refusal);
  if (nodes.empty() || !WhyNotEdited(nodes, interference).empty()) return shuffled;
  program::Program program = ToProgram(nodes, probe, interference);
  AddRepeating(program, graph, nodes, probe);
  const Fallback fallback{graph->copy(), {}};
  ApplyRuns(graph->block(), nodes, program::RandomRuns(program, seed));
  TakeMarks(OpNodes(graph->block()));
  AddFallback(graph, fallback);
  MoveToMethods(shuffled, *graph);
  return shuffled;
}

}  // namespace torch_ext::jit
