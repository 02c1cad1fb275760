// The cheapest way to interleave two chains of ops: a shortest path on a grid.
//
//   (0,0) --b0-- (0,1) --b1-- (0,2)
//     |            |            |      State (i, j): the first i ops of chain A and the first j of
//    a0           a0           a0      chain B have run. A step down runs the next op of A, a step
//     |            |            |      right the next of B.
//   (1,0) --b0-- (1,1) --b1-- (1,2)
//
// A buffer is alive on a rectangle (from its producer on) less a quadrant (past its last users), so
// memory on the whole grid needs two updates per buffer.
//
// In: the chains share no op, hold all ops of the graph (or of a window of an order) together, and
// each is the restriction of some valid order. Out: the order of least total cost with no hill
// above a limit, if there is one. Time, space: O(|A| |B| + ops + edges), one byte per grid point.
// Ties: B first.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "sched/graph.h"
#include "sched/scored_order.h"

namespace torch_ext::sched {

class MergeGrid {
 public:
  MergeGrid(const Graph& graph, std::span<const OpId> a, std::span<const OpId> b);
  // The chains are the ops of a window of an order, which starts at position `begin`.
  MergeGrid(const ScoredOrder& order, std::int32_t begin, std::span<const OpId> a,
            std::span<const OpId> b);

  std::int64_t num_points() const {
    return static_cast<std::int64_t>(a_.size() + 1) * static_cast<std::int64_t>(b_.size() + 1);
  }

  // `cost(i, j, v, hill_bytes)`: of running op v, the next of either chain, in state (i, j); not
  // negative.
  template <typename Cost>
  std::optional<Order> Cheapest(std::int64_t limit_bytes, const Cost& cost) const {
    constexpr std::int64_t kUnreachable = std::numeric_limits<std::int64_t>::max();
    const std::size_t rows = a_.size() + 1, columns = b_.size() + 1;
    std::vector<char> came_from_b(rows * columns, 0);
    std::vector<std::int64_t> best(columns, kUnreachable);
    best[0] = 0;
    std::vector<std::int64_t> live(columns, 0), growth(columns, 0);
    std::size_t next_update = 0;
    for (std::size_t i = 0; i < rows; ++i) {
      if (i > 0) {  // down, from the row above, whose live bytes are still in `live`
        const OpId v = a_[i - 1];
        for (std::size_t j = 0; j < columns; ++j) {
          if (best[j] == kUnreachable) continue;
          const std::int64_t hill = live[j] + graph_.HillBytes(v);
          best[j] = j < needs_of_b_[i - 1] || hill > limit_bytes
                        ? kUnreachable
                        : best[j] + cost(i - 1, j, v, hill);
        }
      }
      for (; next_update < updates_.size() && updates_[next_update].row == i; ++next_update) {
        growth[updates_[next_update].column] += updates_[next_update].bytes;
      }
      std::int64_t sum = start_bytes_;
      for (std::size_t j = 0; j < columns; ++j) live[j] = sum += growth[j];
      for (std::size_t j = 1; j < columns; ++j) {  // right
        if (best[j - 1] == kUnreachable || i < needs_of_a_[j - 1]) continue;
        const OpId v = b_[j - 1];
        const std::int64_t hill = live[j - 1] + graph_.HillBytes(v);
        if (hill > limit_bytes) continue;
        const std::int64_t total = best[j - 1] + cost(i, j - 1, v, hill);
        if (total >= best[j]) continue;
        best[j] = total;
        came_from_b[i * columns + j] = 1;
      }
    }
    if (best.back() == kUnreachable) return std::nullopt;
    return WalkBack(came_from_b);
  }

 private:
  struct Update {
    std::size_t row, column;
    std::int64_t bytes;
  };

  void SortByRow();
  Order WalkBack(const std::vector<char>& came_from_b) const;

  const Graph& graph_;
  std::vector<OpId> a_, b_;
  std::vector<std::size_t> needs_of_b_;  // per op of A: how many ops of B must have run
  std::vector<std::size_t> needs_of_a_;  // per op of B: how many ops of A must have run
  std::vector<Update> updates_;          // of live bytes, for all points from (row, column) on
  std::int64_t start_bytes_ = 0;
};

}  // namespace torch_ext::sched
