#include "jit/timing.h"

#include <torch/csrc/jit/runtime/interpreter.h>

#include <algorithm>
#include <chrono>

#include "jit/nodes.h"
#include "jit/observe.h"
#include "jit/prepare.h"

namespace torch_ext::jit {

using torch::jit::Graph;
using torch::jit::Node;

namespace {

std::int64_t RoundedMedian(std::vector<std::int64_t> values) {
  std::ranges::sort(values);
  const std::int64_t median = values[values.size() / 2];
  std::int64_t unit = 1;
  while (median / unit >= 100) unit *= 10;
  return (median + unit / 2) / unit * unit;
}

}  // namespace

std::vector<std::int64_t> TimeNodes(const std::shared_ptr<Graph>& graph,
                                    const std::function<Stack()>& make_inputs) {
  constexpr int kUnsettled = 1, kCounted = 3;
  using Clock = std::chrono::steady_clock;
  const std::shared_ptr<Graph> copy = graph->copy();
  const std::vector<Node*> nodes = OpNodes(copy->block());
  std::vector<std::vector<std::int64_t>> seen(nodes.size());
  Observers observers;
  Clock::time_point start;
  bool counts = false;
  const auto begin = [&](at::ArrayRef<c10::IValue>) { start = Clock::now(); };
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    observers.Create(*copy, {}, begin)->insertBefore(nodes[i]);
    observers
        .Create(*copy, {},
                [&, i](at::ArrayRef<c10::IValue>) {
                  const std::chrono::nanoseconds taken = Clock::now() - start;
                  if (counts) seen[i].push_back(taken.count());
                })
        ->insertAfter(nodes[i]);
  }
  const torch::jit::Code code(copy, "times");
  for (int turn = 0; turn < kUnsettled + kCounted; ++turn) {
    counts = turn >= kUnsettled;
    Stack stack = make_inputs();
    torch::jit::InterpreterState(code).run(stack);
  }
  const std::vector<char> folded = FoldedNodes(graph);
  std::vector<std::int64_t> nanoseconds;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    nanoseconds.push_back(folded[i] ? 0 : RoundedMedian(seen[i]));
  }
  return nanoseconds;
}

}  // namespace torch_ext::jit
