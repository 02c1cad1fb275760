#include "sched/scored_order.h"

#include <algorithm>
#include <utility>

namespace torch_ext::sched {

ScoredOrder::ScoredOrder(const Graph& graph, Order order)
    : graph_(&graph),
      order_(std::move(order)),
      positions_(PositionsOf(order_)),
      last_use_(graph.buffers().size(), -1),
      hill_bytes_(order_.size(), 0),
      live_before_bytes_(order_.size() + 1, 0) {
  live_before_bytes_.front() = graph.StartBytes();
  Score(0, size());
}

std::int32_t ScoredOrder::peak_position() const {
  if (order_.empty()) return -1;
  return static_cast<std::int32_t>(std::ranges::max_element(hill_bytes_) - hill_bytes_.begin());
}

std::int64_t ScoredOrder::peak_bytes() const {
  return order_.empty() ? live_before_bytes_.front() : hill_bytes_[peak_position()];
}

void ScoredOrder::Replace(std::int32_t begin, std::span<const OpId> ops) {
  const std::int32_t end = begin + static_cast<std::int32_t>(ops.size());
  for (OpId v : ops) {
    for (BufferId b : graph_->op(v).reads) {
      if (last_use_[b] < end) last_use_[b] = -1;
    }
  }
  for (std::int32_t i = begin; i < end; ++i) {
    order_[i] = ops[i - begin];
    positions_[order_[i]] = i;
  }
  Score(begin, end);
}

void ScoredOrder::Score(std::int32_t begin, std::int32_t end) {
  for (std::int32_t i = begin; i < end; ++i) {
    for (BufferId b : graph_->op(order_[i]).reads) last_use_[b] = std::max(last_use_[b], i);
  }
  for (std::int32_t i = begin; i < end; ++i) {
    const Op& op = graph_->op(order_[i]);
    hill_bytes_[i] = live_before_bytes_[i] + graph_->HillBytes(order_[i]);
    std::int64_t live = live_before_bytes_[i];
    for (BufferId b : op.writes) {
      const Buffer& buffer = graph_->buffer(b);
      if (buffer.kept || !buffer.users.empty()) live += buffer.size_bytes;
    }
    for (BufferId b : op.reads) {
      if (last_use_[b] == i && !graph_->buffer(b).kept) live -= graph_->buffer(b).size_bytes;
    }
    live_before_bytes_[i + 1] = live;
  }
}

}  // namespace torch_ext::sched
