#include "sched/down_set.h"

#include <algorithm>

namespace torch_ext::sched {

State::State(const Graph& graph, Direction direction) : graph_(&graph), direction_(direction) {
  const bool forward = direction == Direction::kForward;
  if (forward) live_bytes_ = graph.StartBytes();
  for (const Buffer& b : graph.buffers()) {
    users_left_.push_back(forward ? static_cast<std::int32_t>(b.users.size()) : 0);
    if (!forward && b.kept) live_bytes_ += b.size_bytes;
  }
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const Op& op = graph.op(v);
    waits_for_.push_back(
        static_cast<std::int32_t>((forward ? op.predecessors : op.successors).size()));
    if (waits_for_.back() == 0) ready_.push_back(v);
  }
}

// Live memory after v less live memory before v, whether v is the next op to run (forwards, its
// reads still count it as a user) or the last that ran (backwards, they do not).
std::int64_t State::NetBytes(OpId v) const {
  const std::int32_t users_of_dying = direction_ == Direction::kForward ? 1 : 0;
  const Op& op = graph_->op(v);
  std::int64_t net = 0;
  for (BufferId b : op.writes) {
    const Buffer& buffer = graph_->buffer(b);
    if (buffer.kept || !buffer.users.empty()) net += buffer.size_bytes;
  }
  for (BufferId b : op.reads) {
    const Buffer& buffer = graph_->buffer(b);
    if (!buffer.kept && users_left_[b] == users_of_dying) net -= buffer.size_bytes;
  }
  return net;
}

State::Move State::Look(OpId v) const {
  const std::int64_t net = NetBytes(v);
  if (direction_ == Direction::kForward) {
    return {live_bytes_ + graph_->HillBytes(v), live_bytes_ + net};
  }
  return {live_bytes_ - net + graph_->HillBytes(v), live_bytes_ - net};
}

void State::Step(OpId v, Move move) {
  const bool forward = direction_ == Direction::kForward;
  const Op& op = graph_->op(v);
  ready_.erase(std::lower_bound(ready_.begin(), ready_.end(), v));
  live_bytes_ = move.live_bytes;
  ++num_steps_;
  for (BufferId b : op.reads) users_left_[b] += forward ? -1 : 1;
  for (OpId next : forward ? op.successors : op.predecessors) {
    if (--waits_for_[next] == 0) {
      ready_.insert(std::lower_bound(ready_.begin(), ready_.end(), next), next);
    }
  }
}

std::int64_t State::TakeSafeSteps(std::int64_t limit_bytes, std::vector<OpId>& steps) {
  std::int64_t looks = 0;
  std::size_t since_last_step = 0;
  for (std::size_t i = 0; since_last_step < ready_.size(); ++looks) {
    if (i >= ready_.size()) i = 0;
    const OpId v = ready_[i];
    const Move move = Look(v);
    if (move.hill_bytes <= limit_bytes && move.live_bytes <= live_bytes_) {
      Step(v, move);
      steps.push_back(v);
      since_last_step = 0;
    } else {
      ++i;
      ++since_last_step;
    }
  }
  return looks;
}

}  // namespace torch_ext::sched
