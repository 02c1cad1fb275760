#include "sched/displacement.h"

#include <algorithm>
#include <vector>

#include "sched/simulate.h"

namespace torch_ext::sched {
namespace {

// A longest increasing subsequence of `order`, as flags by op: the ops that stay.
std::vector<char> OpsInPlace(std::span<const OpId> order) {
  std::vector<std::int32_t> tails;  // tails[k]: position of the smallest end of a run of length k+1
  std::vector<std::int32_t> previous(order.size(), -1);
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(order.size()); ++i) {
    const auto at = std::lower_bound(tails.begin(), tails.end(), order[i],
                                     [&](std::int32_t j, OpId v) { return order[j] < v; });
    if (at != tails.begin()) previous[i] = *(at - 1);
    if (at == tails.end()) {
      tails.push_back(i);
    } else {
      *at = i;
    }
  }
  std::vector<char> in_place(order.size(), 0);
  for (std::int32_t i = tails.empty() ? -1 : tails.back(); i >= 0; i = previous[i]) {
    in_place[order[i]] = 1;
  }
  return in_place;
}

// The original order outside positions [begin, end), the order of `order` inside.
Order OriginalOutside(const Graph& graph, const Order& order, std::int32_t begin,
                      std::int32_t end) {
  Order mixed = graph.OriginalOrder();
  std::int32_t next = begin;
  for (OpId v : order) {
    if (begin <= v && v < end) mixed[next++] = v;
  }
  return mixed;
}

bool Keeps(const Graph& graph, const Order& order, std::int64_t limit_bytes, Budget& budget) {
  budget.Spend(static_cast<std::int64_t>(order.size()) / 4 + 1);
  return IsValidOrder(graph, order) && PeakBytes(graph, order) <= limit_bytes;
}

Order KeepHeadAndTail(const Graph& graph, Order order, std::int64_t limit_bytes, Budget& budget) {
  std::int32_t begin = 0;
  std::int32_t end = graph.num_ops();
  // Halving steps find a long head first, then a long tail. What is feasible is not monotone, so
  // this is a heuristic; every result is checked.
  for (std::int32_t step = graph.num_ops() / 2; step > 0 && budget.HasWork(); step /= 2) {
    for (const bool head : {true, false}) {
      const std::int32_t new_begin = head ? begin + step : begin;
      const std::int32_t new_end = head ? end : end - step;
      if (new_begin > new_end) continue;
      Order mixed = OriginalOutside(graph, order, new_begin, new_end);
      if (!Keeps(graph, mixed, limit_bytes, budget)) continue;
      order = std::move(mixed);
      begin = new_begin;
      end = new_end;
    }
  }
  return order;
}

// Puts each moved op back between the ops in place around its original position, where it may go.
Order PutBack(const Graph& graph, Order order, std::int64_t limit_bytes, Budget& budget) {
  std::vector<char> in_place = OpsInPlace(order);
  for (OpId v = 0; v < graph.num_ops() && budget.HasWork(); ++v) {
    if (in_place[v]) continue;
    const std::vector<std::int32_t> positions = PositionsOf(order);
    std::int32_t low = -1;                                        // v must come after this position
    std::int32_t high = static_cast<std::int32_t>(order.size());  // ... and before this one
    for (OpId u = v - 1; u >= 0; --u) {
      if (!in_place[u]) continue;
      low = positions[u];
      break;
    }
    for (OpId u = v + 1; u < graph.num_ops(); ++u) {
      if (!in_place[u]) continue;
      high = positions[u];
      break;
    }
    for (OpId p : graph.op(v).predecessors) low = std::max(low, positions[p]);
    for (OpId s : graph.op(v).successors) high = std::min(high, positions[s]);
    if (low >= high) continue;
    const std::int32_t from = positions[v];
    // Leaving its position first, v may enter directly after `low` or directly before `high`.
    for (const bool early : {true, false}) {
      Order moved = order;
      moved.erase(moved.begin() + from);
      std::int32_t to = early ? low + 1 : high;
      if (from < to) --to;
      moved.insert(moved.begin() + to, v);
      if (!Keeps(graph, moved, limit_bytes, budget)) continue;
      order = std::move(moved);
      in_place[v] = 1;
      break;
    }
  }
  return order;
}

}  // namespace

std::int32_t MovedOps(std::span<const OpId> order) {
  const std::vector<char> in_place = OpsInPlace(order);
  return static_cast<std::int32_t>(std::count(in_place.begin(), in_place.end(), 0));
}

Order ClosestOrder(const Graph& graph, Order order, std::int64_t limit_bytes, Budget& budget) {
  limit_bytes = std::max(limit_bytes, PeakBytes(graph, order));
  Order original = graph.OriginalOrder();
  if (Keeps(graph, original, limit_bytes, budget)) return original;
  order = KeepHeadAndTail(graph, std::move(order), limit_bytes, budget);
  return PutBack(graph, std::move(order), limit_bytes, budget);
}

}  // namespace torch_ext::sched
