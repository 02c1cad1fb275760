#include "sched/flow.h"

#include <algorithm>

namespace torch_ext::sched {

std::int32_t FlowNetwork::AddNode() {
  first_edge_.push_back(-1);
  return static_cast<std::int32_t>(first_edge_.size()) - 1;
}

std::int32_t FlowNetwork::AddEdge(std::int32_t from, std::int32_t to, std::int64_t capacity) {
  const auto edge = static_cast<std::int32_t>(to_.size());
  const auto add = [&](std::int32_t at, std::int32_t target, std::int64_t residual) {
    next_edge_.push_back(first_edge_[at]);
    first_edge_[at] = static_cast<std::int32_t>(to_.size());
    to_.push_back(target);
    residual_.push_back(residual);
  };
  add(from, to, capacity);
  add(to, from, 0);
  return edge;
}

std::int64_t FlowNetwork::MaxFlow(Budget& budget, std::int64_t enough) {
  is_maximal_ = false;
  while (flow_ < enough) {
    budget.Spend(static_cast<std::int64_t>(to_.size()) / 8 + 1);
    if (!Layer()) {
      is_maximal_ = true;
      break;
    }
    current_edge_ = first_edge_;
    while (flow_ < enough) {
      const std::int64_t pushed = Augment(budget);
      if (pushed == 0) break;
      flow_ += pushed;
      if (!budget.HasWork()) return flow_;
    }
    if (!budget.HasWork()) return flow_;
  }
  return flow_;
}

bool FlowNetwork::Layer() {
  level_.assign(first_edge_.size(), -1);
  level_[kSource] = 0;
  queue_.assign(1, kSource);
  for (std::size_t i = 0; i < queue_.size(); ++i) {
    const std::int32_t node = queue_[i];
    for (std::int32_t e = first_edge_[node]; e >= 0; e = next_edge_[e]) {
      if (residual_[e] > 0 && level_[to_[e]] < 0) {
        level_[to_[e]] = level_[node] + 1;
        queue_.push_back(to_[e]);
      }
    }
  }
  return level_[kSink] >= 0;
}

// One augmenting path in the layered network; 0 when there is none left.
std::int64_t FlowNetwork::Augment(Budget& budget) {
  path_.clear();  // edges from the source
  std::int32_t node = kSource;
  while (node != kSink) {
    std::int32_t& e = current_edge_[node];
    while (e >= 0 && !(residual_[e] > 0 && level_[to_[e]] == level_[node] + 1)) e = next_edge_[e];
    if (e >= 0) {
      path_.push_back(e);
      node = to_[e];
      continue;
    }
    if (path_.empty()) return 0;
    node = to_[path_.back() ^ 1];
    path_.pop_back();
    current_edge_[node] = next_edge_[current_edge_[node]];
  }
  budget.Spend(static_cast<std::int64_t>(path_.size()) / 16 + 1);
  std::int64_t amount = residual_[path_.front()];
  for (std::int32_t e : path_) amount = std::min(amount, residual_[e]);
  for (std::int32_t e : path_) {
    residual_[e] -= amount;
    residual_[e ^ 1] += amount;
  }
  return amount;
}

// Those from which the sink can still be reached.
std::vector<char> FlowNetwork::AlwaysOnSinkSide() const {
  std::vector<char> reaches(first_edge_.size(), 0);
  reaches[kSink] = 1;
  std::vector<std::int32_t> queue{kSink};
  for (std::size_t i = 0; i < queue.size(); ++i) {
    for (std::int32_t e = first_edge_[queue[i]]; e >= 0; e = next_edge_[e]) {
      if (residual_[e ^ 1] > 0 && !reaches[to_[e]]) {
        reaches[to_[e]] = 1;
        queue.push_back(to_[e]);
      }
    }
  }
  return reaches;
}

void FlowNetwork::SetMark() {
  marked_residual_ = residual_;
  marked_flow_ = flow_;
}

void FlowNetwork::ReturnToMark() {
  std::ranges::copy(marked_residual_, residual_.begin());
  flow_ = marked_flow_;
}

}  // namespace torch_ext::sched
