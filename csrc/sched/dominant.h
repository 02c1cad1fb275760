// Dominant schedules: the order of a region that is best whatever runs around it.
//
// Every graph has an order whose profile dominates that of every other order (Theorem of Jin,
// Purohit, Svitkina, Vee, Wang, arXiv 2312.13526). Bottom-up over the region tree:
//
//   op        its own segment
//   series    the children's chains one after the other
//   parallel  children that share no buffer: merged by hill and valley (profile.h). Children that
//             read a buffer which dies with its last reader are coupled: they are searched
//             together, what is isolated in them being fixed chains already
//   prime     searched
//
// A region whose surroundings can see into it, because it reads a buffer that something
// incomparable reads too, gets no order here; its isolated parts do, and the region that closes
// over the buffer decides the rest. Each chain is kept in canonical form, so what is searched is
// small.
//
// Time: O(segments log segments) for series and parallel regions. Searches are exponential in the
// width of what they search (search.h); a region with more than 1,024 segments, or that takes more
// than 400,000 looks, is left to the searches that only want its peak.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sched/budget.h"
#include "sched/contract.h"
#include "sched/decompose.h"
#include "sched/graph.h"
#include "sched/rules.h"

namespace torch_ext::sched {

// An order of the whole graph that dominates every other, by search alone. Phases: from the start
// to ever lower valleys, each under the lowest hills that reach one, down to the lowest of all
// states (a minimum cut); from the end the same backwards, staying above that state; between the
// two, the lowest peak. Returns nothing if the budget ends first. Time, space: three
// searches (search.h), exponential in the width.
std::optional<Order> DominantOrderBySearch(const Graph& graph, const Rules& rules, Budget& budget);

// The graph with every isolated region for which the budget allows it replaced by its chain.
struct Reduction {
  std::vector<Chain> chains;  // all ops; each chain keeps its order
  bool is_dominant = false;   // one chain is left, and it dominates every order of the graph
  bool has_prime = false;     // a region was neither series nor parallel
};
Reduction Reduce(const Graph& graph, const RegionTree& tree, const Rules& rules, Budget& budget);

}  // namespace torch_ext::sched
