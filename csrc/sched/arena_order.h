// Among orders of no higher peak, one whose arena is lower (addresses.h).
//
// An order fixes the lifetimes, and lifetimes of equal peak need arenas of different heights: what
// outlives a call lies elsewhere, and what is alive at once may not fit without gaps. Two starts,
// the order given and the best order of the graph as an arena weighs it; from the lower of them on,
// single ops move to places where they may run, as long as neither peak nor height rises. Heights
// are those of quick placements on the way, and of planned ones now and then.
//
// Anytime, deterministic, bounded by counted work. One step: O(ops + edges + n live).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/budget.h"
#include "sched/graph.h"
#include "sched/lifetimes.h"
#include "sched/plan.h"

namespace torch_ext::sched {

// A buffer that ends inside the program, or all workspace of an op as one. Steps are positions in
// an order; sizes are whole multiples of kArenaAlignment.
struct ArenaBlock {
  Lifetime lifetime;
  BufferId buffer = -1;  // or else
  OpId workspace_of = kNoOp;
};
std::vector<ArenaBlock> BlocksAlong(const Graph& graph, std::span<const OpId> order);
std::vector<Lifetime> LifetimesOf(std::span<const ArenaBlock> blocks);
std::vector<Lifetime> LifetimesAlong(const Graph& graph, std::span<const OpId> order);

// No order and no placement has a lower arena: the lower bound on the peak where what is there
// before, or outlives the program, weighs nothing, and sizes are whole multiples of
// kArenaAlignment. The scratch memory of an op may be gone when its results are made, so what these
// weigh more for being whole multiples is taken off it.
std::int64_t ArenaBoundBytes(const Graph& graph, const PlanOptions& options);

struct ArenaOrder {
  Order order;
  std::int64_t height_bytes = 0;        // of a placement along it
  std::int64_t given_height_bytes = 0;  // along the order that was given
  std::int64_t bound_bytes = 0;         // of all orders and placements
};

// `order` is valid; what comes back is it, or one with a lower arena and no higher peak.
ArenaOrder LowerArena(const Graph& graph, const Order& order, const PlanOptions& options);

}  // namespace torch_ext::sched
