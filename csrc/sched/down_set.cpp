#include "sched/down_set.h"

#include <algorithm>

namespace torch_ext::sched {

OpSet::OpSet(std::int32_t num_ops, bool full)
    : words_(static_cast<std::size_t>((num_ops + 63) / 64), 0) {
  if (!full) return;
  for (OpId v = 0; v < num_ops; ++v) Flip(v);
}

std::uint64_t OpSet::Hash() const {
  std::uint64_t hash = 0x9e3779b97f4a7c15u;
  for (std::uint64_t word : words_) {
    hash ^= word;
    hash *= 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

State::State(const Graph& graph, Direction direction)
    : graph_(&graph),
      direction_(direction),
      done_(graph.num_ops(), direction == Direction::kBackward) {
  const bool forward = direction == Direction::kForward;
  if (forward) {
    live_bytes_ = graph.StartBytes();
  } else {
    for (const Buffer& b : graph.buffers()) live_bytes_ += b.kept ? b.size_bytes : 0;
  }
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const Op& op = graph.op(v);
    if ((forward ? op.predecessors : op.successors).empty()) ready_.push_back(v);
  }
}

std::int64_t State::NetBytes(OpId v) const {
  const Op& op = graph_->op(v);
  std::int64_t net = 0;
  for (BufferId b : op.writes) {
    const Buffer& buffer = graph_->buffer(b);
    if (buffer.kept || !buffer.users.empty()) net += buffer.size_bytes;
  }
  for (BufferId b : op.reads) {
    const Buffer& buffer = graph_->buffer(b);
    if (buffer.kept) continue;
    const bool dies = std::all_of(buffer.users.begin(), buffer.users.end(),
                                  [&](OpId u) { return u == v || done_.Contains(u); });
    if (dies) net -= buffer.size_bytes;
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
  done_.Flip(v);
  live_bytes_ = move.live_bytes;
  ++num_steps_;
  for (OpId next : forward ? op.successors : op.predecessors) {
    const Op& other = graph_->op(next);
    const std::vector<OpId>& before = forward ? other.predecessors : other.successors;
    const bool is_ready = std::all_of(before.begin(), before.end(), [&](OpId p) {
      return done_.Contains(p) == forward;
    });
    if (is_ready) ready_.insert(std::lower_bound(ready_.begin(), ready_.end(), next), next);
  }
}

void State::TakeSafeSteps(std::int64_t limit_bytes, std::vector<OpId>& steps) {
  for (std::size_t i = 0; i < ready_.size();) {
    const OpId v = ready_[i];
    const Move move = Look(v);
    if (move.hill_bytes <= limit_bytes && move.live_bytes <= live_bytes_) {
      Step(v, move);
      steps.push_back(v);
      i = 0;
    } else {
      ++i;
    }
  }
}

}  // namespace torch_ext::sched
