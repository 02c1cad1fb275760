#include "sched/tighten.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "sched/bound.h"

namespace torch_ext::sched {
Tightener::Tightener(Graph graph) : graph_(std::move(graph)), ops_(graph_.OriginalOrder()) {}

Tightener::Result Tightener::Tighten(std::int64_t below_bytes, Budget& budget) {
  if (below_bytes < below_bytes_) {
    below_bytes_ = below_bytes;
    pending_.clear();
    found_ = true;
  }
  while (true) {
    if (pending_.empty()) {
      if (!found_) return Result::kExhausted;
      const Result result = StartPass(budget);
      if (result != Result::kExhausted) return result;
      found_ = false;
    }
    while (!pending_.empty()) {
      const Result result = TightenAround(pending_.back(), budget);
      if (result != Result::kExhausted) return result;
      pending_.pop_back();
    }
  }
}

// All ops wait for their turn; those that need most at least come first, for they leave least room.
Tightener::Result Tightener::StartPass(Budget& budget) {
  while (static_cast<OpId>(lowest_bytes_.size()) < graph_.num_ops()) {
    const auto v = static_cast<OpId>(lowest_bytes_.size());
    const LowestHill lowest = FindLowestHill(graph_, v, {}, {}, budget);
    if (lowest.bytes >= below_bytes_) return Result::kImpossible;
    if (!lowest.is_exact) return Result::kOutOfBudget;
    lowest_bytes_.push_back(lowest.bytes);
  }
  pending_ = graph_.OriginalOrder();
  std::ranges::stable_sort(pending_, {}, [&](OpId v) { return lowest_bytes_[v]; });
  if (!pending_.empty() && lowest_bytes_[pending_.back()] >= below_bytes_) {
    return Result::kImpossible;
  }
  for (OpId& v : pending_) v = ops_[v];  // ids change with what is added
  return Result::kExhausted;
}

Tightener::Result Tightener::TightenAround(OpId original, Budget& budget) {
  const auto v = static_cast<OpId>(std::ranges::find(ops_, original) - ops_.begin());
  HillFinder finder(graph_, v, budget);
  // Per x: is there a state below the peak in which v may run and x has run, or has not?
  std::vector<char> may_have_run(graph_.ops().size(), 0), may_wait(graph_.ops().size(), 0);
  const auto is_possible = [&](const LowestHill& hill) {
    if (hill.bytes >= below_bytes_) return false;
    for (std::size_t x = 0; x < hill.has_run.size(); ++x) {
      if (!hill.has_run[x]) may_wait[x] = 1;
      if (!hill.waits[x]) may_have_run[x] = 1;
    }
    return true;
  };
  if (!is_possible(finder.lowest())) return Result::kImpossible;
  std::vector<std::pair<OpId, OpId>> pairs;
  for (OpId x = 0; x < graph_.num_ops(); ++x) {
    if (!finder.IsFree(x)) continue;
    const bool before =
        may_have_run[x] || is_possible(finder.Given(x, /*has_run=*/true, below_bytes_, budget));
    const bool after =
        may_wait[x] || is_possible(finder.Given(x, /*has_run=*/false, below_bytes_, budget));
    if (!before && !after) return Result::kImpossible;
    if (!before) pairs.emplace_back(v, x);
    if (!after) pairs.emplace_back(x, v);
    if (!budget.HasWork()) return Result::kOutOfBudget;
  }
  if (pairs.empty()) return Result::kExhausted;
  found_ = true;
  return AddPrecedences(pairs) ? Result::kExhausted : Result::kImpossible;
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
  num_precedences_ += static_cast<std::int32_t>(pairs.size());
  graph_ = std::move(tighter);
  lowest_bytes_.clear();
  ops_ = std::move(ops);
  return true;
}

}  // namespace torch_ext::sched
