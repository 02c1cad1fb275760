// Exact search over down-sets: the lowest peak of any order, or proof that none is lower.
//
// A bottleneck version of Dijkstra's algorithm: states are down-sets, the key of a state is the
// highest hill on the best way to it, and states leave the queue by rising key. When the last state
// leaves, its key is the optimum. When the budget ends first, the key that was next is a proven
// lower bound. Safe steps (State::TakeSafeSteps) are taken without branching, and no state is kept
// whose key reaches `below_bytes`, so an empty queue proves that no order is below that.
//
// Source: theory of down-sets as in Section 3 of Jin, Purohit, Svitkina, Vee, Wang, "New Tools for
// Peak Memory Scheduling", arXiv 2312.13526.
// Time, space: O(states * (width + ops / 64)); exponential in the width of the graph. Practical
// limit: about 60 ops of arbitrary structure, hundreds where the bound is tight.
// Ties: fewest ops left, then least live memory, then first found; the result is deterministic.
#pragma once

#include <cstdint>
#include <optional>

#include "sched/budget.h"
#include "sched/down_set.h"
#include "sched/graph.h"

namespace torch_ext::sched {

struct SearchResult {
  std::optional<Order> order;    // an order with the lowest peak, if that is below `below_bytes`
  std::int64_t bound_bytes = 0;  // no order has a lower peak
  bool exhausted = false;        // the search ended by itself: `bound_bytes` is exact
};

// `floor_bytes` is a proven lower bound on the peak; hills up to it are all the same.
SearchResult Search(const Graph& graph, Direction direction, std::int64_t floor_bytes,
                    std::int64_t below_bytes, Budget& budget);

}  // namespace torch_ext::sched
