// Candidate orders from simple rules. None is best everywhere, so the plan lets all of them compete
// before the judge. All are deterministic: ties go to the smallest original position.
#pragma once

#include <cstdint>
#include <optional>

#include "sched/budget.h"
#include "sched/down_set.h"
#include "sched/graph.h"

namespace torch_ext::sched {

// Backwards from the results, each op preceded by what it needs and nothing else: the order in
// which a recursive evaluation runs. The predecessor that needs most memory on its own comes first.
Order DepthFirstOrder(const Graph& graph);

// Always the step that leaves least memory alive, then the one with the lowest hill.
// Work: O(ops * ready ops). Returns nothing if the budget ends first.
std::optional<Order> GreedyOrder(const Graph& graph, Direction direction, Budget& budget);

// The same order with safe steps (down_set.h) taken as soon as `direction` allows: forward, what
// frees memory runs early; backward, what takes memory runs late. The peak is not higher. Returns
// `order` itself if the budget ends first. Work: O(ops * ready ops).
Order WithSafeSteps(const Graph& graph, Direction direction, Order order, Budget& budget);

// Beam search over down-sets with safe steps: among the states with equally many ops run it keeps
// the `width` best by (peak so far, live bytes). Hills up to `floor_bytes`, a lower bound on the
// peak, are all the same to it. Returns nothing if the budget ends first.
// Work: O(ops * width * ready ops); memory: O(width * ops) bits per level in flight.
//
// The smallest kind of graph where it fails: the first ops of every good order raise memory more
// than those of `width` bad ones.
std::optional<Order> BeamOrder(const Graph& graph, Direction direction, std::int32_t width,
                               std::int64_t floor_bytes, Budget& budget);

}  // namespace torch_ext::sched
