// How far an order is from the original, and the way back as far as the peak allows.
#pragma once

#include <cstdint>
#include <span>

#include "sched/budget.h"
#include "sched/graph.h"

namespace torch_ext::sched {

// Ops less the longest common subsequence of `order` and the original order. O(ops log ops).
std::int32_t MovedOps(std::span<const OpId> order);

// An order with no hill above `limit_bytes` (nor above the peak of `order`, if that is higher) that
// moves no more ops than `order` does. In two steps, neither minimal, for the exact problem
// contains peak minimisation:
// 1. The longest head and the longest tail of the original order that can be kept.
// 2. The ops in place and a group of those that moved are put into their original order, the others
//    keep theirs; if the two chains can be interleaved within the limit (merge.h), the group is
//    home. All moved ops at once are tried first, then halves of them, down to single ops.
// Work: O(moved ops) interleavings of a window around the group.
Order WayBack(const Graph& graph, Order order, std::int64_t limit_bytes, Budget& budget);

}  // namespace torch_ext::sched
