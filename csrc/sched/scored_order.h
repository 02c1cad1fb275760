// An order with what is needed to change a window of it: positions, hills, last uses.
//
// Reordering a window changes memory inside the window only, so replacing one costs the window.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/graph.h"

namespace torch_ext::sched {

class ScoredOrder {
 public:
  // `order` must be valid; O(ops and edges).
  ScoredOrder(const Graph& graph, Order order);

  const Graph& graph() const { return *graph_; }
  const Order& order() const { return order_; }
  std::int32_t size() const { return static_cast<std::int32_t>(order_.size()); }
  std::int32_t position(OpId v) const { return positions_[v]; }
  std::int32_t last_use(BufferId b) const { return last_use_[b]; }  // a position, -1 if unread
  const std::vector<std::int64_t>& hill_bytes() const { return hill_bytes_; }  // per position
  std::int64_t live_before_bytes(std::int32_t position) const {
    return live_before_bytes_[position];
  }
  std::int32_t peak_position() const;  // the first; -1 if there are no ops
  std::int64_t peak_bytes() const;     // of an empty order, what is alive throughout

  // Puts `ops`, a permutation of the ops there, at [begin, begin + size). O(window).
  void Replace(std::int32_t begin, std::span<const OpId> ops);

 private:
  void Score(std::int32_t begin, std::int32_t end);

  const Graph* graph_;
  Order order_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> last_use_;
  std::vector<std::int64_t> hill_bytes_;
  std::vector<std::int64_t> live_before_bytes_;  // one more than ops
};

}  // namespace torch_ext::sched
