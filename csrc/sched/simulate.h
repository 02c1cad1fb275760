// THE JUDGE: what an order costs. Used by everyone, uses no scheduler.
//
// Time: O(ops + reads + writes). It shares no code with the schedulers: it computes lifetimes from
// positions, where they count remaining users.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/graph.h"

namespace torch_ext::sched {

// Memory along an order of n ops, in bytes:
//
//   start  hill[0]  valley[0]  hill[1]  valley[1]  ...  hill[n-1]  valley[n-1]
//          `- while order[0] runs   `- after it, with what it was the last to read freed
struct Profile {
  std::int64_t start_bytes = 0;
  std::vector<std::int64_t> hill_bytes;
  std::vector<std::int64_t> valley_bytes;

  // The highest hill; of an empty graph, the bytes it starts (and ends) with.
  std::int64_t PeakBytes() const;
  // The first position at which the peak is reached; -1 for an empty order.
  std::int32_t PeakPosition() const;
};

// True if `order` is a permutation of the ops that respects every precedence.
bool IsValidOrder(const Graph& graph, std::span<const OpId> order);

// Throws std::invalid_argument, naming the op, if `order` is not a valid order of `graph`.
Profile Simulate(const Graph& graph, std::span<const OpId> order);

std::int64_t PeakBytes(const Graph& graph, std::span<const OpId> order);

// The buffers alive while the op at `position` of `order` runs, its outputs included.
std::vector<BufferId> LiveBuffersAt(const Graph& graph, std::span<const OpId> order,
                                    std::int32_t position);

}  // namespace torch_ext::sched
