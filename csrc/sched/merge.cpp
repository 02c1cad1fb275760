#include "sched/merge.h"

#include <algorithm>

namespace torch_ext::sched {

MergeGrid::MergeGrid(const Graph& graph, std::span<const OpId> a, std::span<const OpId> b)
    : graph_(graph),
      a_(a.begin(), a.end()),
      b_(b.begin(), b.end()),
      needs_of_b_(a.size(), 0),
      needs_of_a_(b.size(), 0) {
  struct Place {
    bool in_a;
    std::size_t position;
  };
  std::vector<Place> places(graph.ops().size());
  for (std::size_t i = 0; i < a_.size(); ++i) places[a_[i]] = {true, i};
  for (std::size_t j = 0; j < b_.size(); ++j) places[b_[j]] = {false, j};

  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const auto [in_a, position] = places[v];
    std::size_t& needs = (in_a ? needs_of_b_ : needs_of_a_)[position];
    for (OpId p : graph.op(v).predecessors) {
      if (places[p].in_a != in_a) needs = std::max(needs, places[p].position + 1);
    }
  }
  for (const Buffer& buffer : graph.buffers()) {
    if (buffer.size_bytes == 0) continue;
    std::size_t row = 0, column = 0;  // alive from here on
    if (!buffer.is_input()) {
      const Place& producer = places[buffer.producer];
      (producer.in_a ? row : column) = producer.position + 1;
      updates_.push_back({row, column, buffer.size_bytes});
    } else if (buffer.kept || !buffer.users.empty()) {
      start_bytes_ += buffer.size_bytes;
    } else {
      continue;
    }
    if (buffer.kept) continue;
    for (OpId user : buffer.users) {
      std::size_t& last = places[user].in_a ? row : column;
      last = std::max(last, places[user].position + 1);
    }
    updates_.push_back({row, column, -buffer.size_bytes});
  }
  std::ranges::stable_sort(updates_, {}, &Update::row);
}

Order MergeGrid::WalkBack(const std::vector<char>& came_from_b) const {
  Order order(a_.size() + b_.size());
  std::size_t i = a_.size(), j = b_.size();
  while (i + j > 0) {
    const bool from_b = came_from_b[i * (b_.size() + 1) + j] != 0;
    order[i + j - 1] = from_b ? b_[j - 1] : a_[i - 1];
    --(from_b ? j : i);
  }
  return order;
}

}  // namespace torch_ext::sched
