// Is there a placement of a given height? An exact search for addresses.h.
//
// A placement is canonical if every buffer lies on the floor or on the top of one that it meets,
// and no buffer could be moved down below the place of another. Sorted by (offset, rank) its
// buffers can be placed one after the other, each on top of the highest placed one that it meets:
// the search tries these sequences alone. It loses nothing: take a placement of least sum of
// offsets. Were one of its buffers not supported, or with room below a later one, moving it down
// would lower the sum; and placing its buffers anew in sorted order gives no higher offset to any
// of them, by induction, hence the same. Source: Moffitt, "MiniMalloc: A Lightweight Memory
// Allocator for Hardware-Accelerated Machine Learning", ASPLOS 2023.
//
// Pruned by
//   - sections: at any step, the floor of what may still be placed and all that is still to be
//     placed must fit;
//   - dominance: a buffer is not placed where another one would fit below it;
//   - hats: a buffer above which nothing else is to come can wait for no better place, so if the
//     rest cannot be placed after it, it cannot be placed otherwise;
//   - cuts: steps that no unplaced buffer crosses leave two independent problems.
#pragma once

#include <cstdint>
#include <span>

#include "sched/addresses.h"
#include "sched/budget.h"

namespace torch_ext::sched {

enum class Fit { kFound, kImpossible, kUnknown };

// What is not larger than this can be searched; larger inputs are kUnknown at once, for memory.
inline constexpr std::size_t kMostSearched = 1500;

// kFound: `offsets` is a placement whose height is at most `capacity_bytes`. kUnknown: the budget
// ended. Depth of recursion: O(n). Memory: O(n^2), for each level holds what it may still try.
Fit FindAddresses(std::span<const Lifetime> lifetimes, std::int64_t capacity_bytes,
                  Offsets& offsets, Budget& budget);

}  // namespace torch_ext::sched
