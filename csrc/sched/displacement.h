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
// moves no more ops than `order` does. Two greedy passes, both checked by the judge:
// 1. the longest head and the longest tail of the original order that can be kept;
// 2. each moved op, put back between the neighbours it had in the original order.
// Not minimal; the exact problem contains peak minimisation. Work: O(moved ops * ops) at most.
Order ClosestOrder(const Graph& graph, Order order, std::int64_t limit_bytes, Budget& budget);

}  // namespace torch_ext::sched
