#include "sched/tighten.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

#include "sched/bound.h"

namespace torch_ext::sched {
namespace {

// Marks what can be reached from `op` backwards or forwards, without it.
void MarkReachable(const Graph& graph, OpId op, bool backward, std::vector<char>& marked) {
  std::vector<OpId> stack{op};
  while (!stack.empty()) {
    const Op& at = graph.op(stack.back());
    stack.pop_back();
    for (OpId u : backward ? at.predecessors : at.successors) {
      if (marked[u]) continue;
      marked[u] = 1;
      stack.push_back(u);
    }
  }
}

}  // namespace

Tightener::Tightener(Graph graph) : graph_(std::move(graph)), ops_(graph_.OriginalOrder()) {}

Tightener::Result Tightener::Tighten(std::int64_t below_bytes, Budget& budget) {
  for (bool found = true; found;) {
    found = false;
    // The ops that need most at least come first: they leave least room.
    std::vector<std::int64_t> lowest;
    for (OpId v = 0; v < graph_.num_ops(); ++v) {
      lowest.push_back(FindLowestHill(graph_, v, {}, {}, budget).bytes);
      if (lowest.back() >= below_bytes) return Result::kImpossible;
      if (!budget.HasWork()) return Result::kOutOfBudget;
    }
    std::vector<OpId> by_need = graph_.OriginalOrder();
    std::ranges::stable_sort(by_need, std::greater<>(), [&](OpId v) { return lowest[v]; });
    for (OpId& v : by_need) v = ops_[v];  // ids change with what is added
    for (OpId original : by_need) {
      const auto v =
          static_cast<OpId>(std::ranges::find(ops_, original) - ops_.begin());
      std::vector<char> comparable(graph_.ops().size(), 0);
      comparable[v] = 1;
      MarkReachable(graph_, v, /*backward=*/true, comparable);
      MarkReachable(graph_, v, /*backward=*/false, comparable);
      // Per x: is there a state below the peak in which v may run and x has run, or has not?
      std::vector<char> may_have_run(graph_.ops().size(), 0), may_wait(graph_.ops().size(), 0);
      const auto is_possible = [&](std::span<const OpId> done, std::span<const OpId> waiting) {
        const LowestHill hill = FindLowestHill(graph_, v, done, waiting, budget);
        if (hill.bytes >= below_bytes) return false;
        for (OpId x = 0; x < graph_.num_ops(); ++x) (hill.has_run[x] ? may_have_run : may_wait)[x] = 1;
        return true;
      };
      if (!is_possible({}, {})) return Result::kImpossible;
      if (!budget.HasWork()) return Result::kOutOfBudget;
      std::vector<std::pair<OpId, OpId>> pairs;
      for (OpId x = 0; x < graph_.num_ops(); ++x) {
        if (comparable[x]) continue;
        const OpId only[] = {x};
        const bool before = may_have_run[x] || is_possible(only, {});
        const bool after = may_wait[x] || is_possible({}, only);
        if (!budget.HasWork()) return Result::kOutOfBudget;
        if (!before && !after) return Result::kImpossible;
        if (!before) pairs.emplace_back(v, x);
        if (!after) pairs.emplace_back(x, v);
      }
      if (pairs.empty()) continue;
      found = true;
      if (!AddPrecedences(pairs)) return Result::kImpossible;
    }
  }
  return Result::kExhausted;
}

// Rebuilds the graph; false if the pairs close a cycle.
bool Tightener::AddPrecedences(const std::vector<std::pair<OpId, OpId>>& pairs) {
  const auto n = static_cast<std::size_t>(graph_.num_ops());
  std::vector<std::vector<OpId>> after(n), before(n);
  std::vector<std::int32_t> waits_for(n, 0);
  for (const auto& [first, second] : pairs) {
    after[second].push_back(first);
    before[first].push_back(second);
    ++waits_for[second];
  }
  std::priority_queue<OpId, std::vector<OpId>, std::greater<>> ready;
  for (std::size_t v = 0; v < n; ++v) {
    waits_for[v] += static_cast<std::int32_t>(graph_.op(static_cast<OpId>(v)).predecessors.size());
    if (waits_for[v] == 0) ready.push(static_cast<OpId>(v));
  }
  Graph tighter;
  for (const Buffer& b : graph_.buffers()) {
    if (b.is_input()) {
      tighter.AddInput(b.name, b.size_bytes, b.kept);
    } else {
      tighter.AddBuffer(b.name, b.size_bytes, b.kept);
    }
  }
  std::vector<OpId> place(n, kNoOp);
  Order ops;
  const auto arrive = [&](OpId u) {
    if (--waits_for[u] == 0) ready.push(u);
  };
  while (!ready.empty()) {
    const OpId v = ready.top();
    ready.pop();
    const Op& op = graph_.op(v);
    std::vector<OpId> later_than;
    for (OpId p : op.after) later_than.push_back(place[p]);
    for (OpId p : after[v]) later_than.push_back(place[p]);
    place[v] = tighter.AddContractedOp(op.name, op.reads, op.writes, graph_.HillBytes(v),
                                       std::move(later_than));
    ops.push_back(ops_[v]);
    for (OpId u : op.successors) arrive(u);
    for (OpId u : before[v]) arrive(u);
  }
  if (ops.size() < n) return false;
  graph_ = std::move(tighter);
  ops_ = std::move(ops);
  return true;
}

Order Tightener::Expand(const Order& order) const {
  Order expanded;
  for (OpId v : order) expanded.push_back(ops_[v]);
  return expanded;
}

}  // namespace torch_ext::sched
