#include "sched/way_back.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "sched/merge.h"
#include "sched/scored_order.h"
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

// The way of one order back towards the original.
class Walk {
 public:
  Walk(const Graph& graph, Order order, std::int64_t limit_bytes, Budget& budget)
      : graph_(graph),
        in_place_(OpsInPlace(order)),
        scored_(graph, std::move(order)),
        limit_bytes_(limit_bytes),
        budget_(budget) {}

  // All displaced ops at once, or else by halves, down to single ops.
  Order Run() {
    Order displaced;
    for (OpId v = 0; v < graph_.num_ops(); ++v) {
      if (!in_place_[v]) displaced.push_back(v);
    }
    std::vector<std::span<const OpId>> groups{displaced};
    while (!groups.empty() && budget_.HasWork()) {
      const std::span<const OpId> group = groups.back();
      groups.pop_back();
      if (group.empty() || BringBack(group) || group.size() == 1) continue;
      groups.push_back(group.subspan(group.size() / 2));
      groups.push_back(group.first(group.size() / 2));
    }
    return scored_.order();
  }

 private:
  // Positions around a group that may change with it; more of them cost time and gain little.
  static constexpr std::int32_t kMargin = 64;
  static constexpr std::int64_t kMostPoints = std::int64_t{1} << 22;

  // Makes the group part of what is in place, if some order of its surroundings allows it.
  bool BringBack(std::span<const OpId> group) {
    const auto around = Surroundings(group);
    const std::int32_t begin = around.first, end = around.second;
    for (OpId v : group) in_place_[v] = 1;
    std::vector<OpId> stay, rest;
    for (std::int32_t i = begin; i < end; ++i) {
      const OpId v = scored_.order()[i];
      (in_place_[v] ? stay : rest).push_back(v);
    }
    std::ranges::sort(stay);
    const std::int64_t num_points =
        static_cast<std::int64_t>((stay.size() + 1) * (rest.size() + 1));
    std::optional<Order> merged;
    if (budget_.Spend((end - begin) + 1) && num_points <= kMostPoints &&
        budget_.Spend(num_points / 8)) {
      std::vector<std::size_t> home(static_cast<std::size_t>(end - begin));  // per position
      for (OpId v : rest) {  // how many of `stay` were before it
        home[scored_.position(v) - begin] = std::ranges::lower_bound(stay, v) - stay.begin();
      }
      // The fewest inversions between those that stay and the rest.
      const auto inversions = [&](std::size_t i, std::size_t, OpId v, std::int64_t) {
        if (in_place_[v]) return std::int64_t{0};
        const std::size_t at_home = home[scored_.position(v) - begin];
        return static_cast<std::int64_t>(i > at_home ? i - at_home : at_home - i);
      };
      merged = MergeGrid(scored_, begin, stay, rest).Cheapest(limit_bytes_, inversions);
    }
    if (!merged) {
      for (OpId v : group) in_place_[v] = 0;
      return false;
    }
    scored_.Replace(begin, *merged);
    return true;
  }

  // The positions [begin, end) between which the group is and will be, with a margin.
  std::pair<std::int32_t, std::int32_t> Surroundings(std::span<const OpId> group) const {
    std::int32_t first = graph_.num_ops(), last = -1;
    const auto include = [&](OpId v) {
      first = std::min(first, scored_.position(v));
      last = std::max(last, scored_.position(v));
    };
    for (OpId v : group) {
      include(v);
      for (OpId u = v - 1; u >= 0; --u) {
        if (!in_place_[u]) continue;
        include(u);
        break;
      }
      for (OpId u = v + 1; u < graph_.num_ops(); ++u) {
        if (!in_place_[u]) continue;
        include(u);
        break;
      }
    }
    return {std::max(0, first - kMargin), std::min(graph_.num_ops(), last + 1 + kMargin)};
  }

  const Graph& graph_;
  std::vector<char> in_place_;  // per op
  ScoredOrder scored_;
  std::int64_t limit_bytes_;
  Budget& budget_;
};

}  // namespace

std::int32_t MovedOps(std::span<const OpId> order) {
  const std::vector<char> in_place = OpsInPlace(order);
  return static_cast<std::int32_t>(std::count(in_place.begin(), in_place.end(), 0));
}

Order WayBack(const Graph& graph, Order order, std::int64_t limit_bytes, Budget& budget) {
  limit_bytes = std::max(limit_bytes, PeakBytes(graph, order));
  Order original = graph.OriginalOrder();
  if (PeakBytes(graph, original) <= limit_bytes) return original;
  order = KeepHeadAndTail(graph, std::move(order), limit_bytes, budget);
  return Walk(graph, std::move(order), limit_bytes, budget).Run();
}

}  // namespace torch_ext::sched
