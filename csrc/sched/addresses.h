// Where buffers lie in one block of memory: from lifetimes to offsets.
//
//   offset
//     ^     +---------+
//     |     |    c    |          Two buffers that are alive at one step share no address. The
//     height |     +---+-----+---+      is the highest end of any of them; it is never below the
//     sum of |   +-----+|    b   |      what is alive at one step, and now and then it must be
//     above it. |   |  a  |+--------+
//     +---+-----+----------> step
//
// Finding the least height is NP-complete (Garey, Johnson, 1979, SR2: dynamic storage allocation).
// Here: by birth, lowest fit in some orders, what stands at the top moved forward, and then the
// exact search of address_search.h. Most programs need no more than the first two.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/budget.h"
#include "sched/lifetimes.h"

namespace torch_ext::sched {

using Offsets = std::vector<std::int64_t>;  // one for each lifetime, in bytes

// THE JUDGE: the height of a placement. Uses nothing that places.
// Throws std::invalid_argument, naming the two, if buffers that meet share an address, or the one
// whose lifetime or offset is none. Time: O(n log n).
std::int64_t HeightBytes(std::span<const Lifetime> lifetimes,
                         std::span<const std::int64_t> offsets);

// The most that is alive at one step: a lower bound on every height.
std::int64_t MostLiveBytes(std::span<const Lifetime> lifetimes);

struct AddressPlan {
  Offsets offsets;
  std::int64_t height_bytes = 0;
  std::int64_t bound_bytes = 0;  // no placement of these lifetimes is lower

  bool is_optimal() const { return height_bytes == bound_bytes; }
};

// Deterministic. The first answer takes O(n live), where `live` is the highest number of buffers
// alive at one step, whatever the budget; the rest is bounded by it.
// A height of at most `enough_bytes` ends it.
AddressPlan PlanAddresses(std::span<const Lifetime> lifetimes, Budget& budget,
                          std::int64_t enough_bytes = 0);

}  // namespace torch_ext::sched
