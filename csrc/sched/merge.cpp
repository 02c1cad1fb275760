#include "sched/merge.h"

#include <algorithm>
#include <utility>

namespace torch_ext::sched {

MergeGrid::MergeGrid(const Graph& graph, std::span<const OpId> a, std::span<const OpId> b)
    : MergeGrid(ScoredOrder(graph, graph.OriginalOrder()), 0, a, b) {}

MergeGrid::MergeGrid(const ScoredOrder& order, std::int32_t begin, std::span<const OpId> a,
                     std::span<const OpId> b)
    : graph_(order.graph()),
      a_(a.begin(), a.end()),
      b_(b.begin(), b.end()),
      needs_of_b_(a.size(), 0),
      needs_of_a_(b.size(), 0),
      start_bytes_(order.live_before_bytes(begin)) {
  const auto end = begin + static_cast<std::int32_t>(a.size() + b.size());
  struct Place {
    bool in_a;
    std::size_t position;
  };
  std::vector<Place> places(a.size() + b.size());
  const auto place = [&](OpId v) -> Place& { return places[order.position(v) - begin]; };
  for (std::size_t i = 0; i < a_.size(); ++i) place(a_[i]) = {true, i};
  for (std::size_t j = 0; j < b_.size(); ++j) place(b_[j]) = {false, j};

  for (std::int32_t at = begin; at < end; ++at) {
    const Op& op = graph_.op(order.order()[at]);
    const auto [in_a, position] = places[at - begin];
    std::size_t& needs = (in_a ? needs_of_b_ : needs_of_a_)[position];
    for (OpId p : op.predecessors) {
      if (order.position(p) < begin) continue;
      if (place(p).in_a != in_a) needs = std::max(needs, place(p).position + 1);
    }
    for (BufferId b_id : op.writes) {
      const Buffer& buffer = graph_.buffer(b_id);
      if (buffer.size_bytes == 0 || (!buffer.kept && buffer.users.empty())) continue;
      updates_.push_back({in_a ? position + 1 : 0, in_a ? 0 : position + 1, buffer.size_bytes});
    }
    for (BufferId b_id : op.reads) {  // what dies in the window, at its last user of today
      const Buffer& buffer = graph_.buffer(b_id);
      if (buffer.size_bytes == 0 || buffer.kept || order.last_use(b_id) != at) continue;
      std::size_t row = 0, column = 0;
      const auto include = [&](OpId v) {
        std::size_t& last = place(v).in_a ? row : column;
        last = std::max(last, place(v).position + 1);
      };
      if (!buffer.is_input() && order.position(buffer.producer) >= begin) include(buffer.producer);
      for (OpId user : buffer.users) {
        if (order.position(user) >= begin) include(user);
      }
      updates_.push_back({row, column, -buffer.size_bytes});
    }
  }
  SortByRow();
}

void MergeGrid::SortByRow() {  // by counting
  std::vector<std::size_t> place(a_.size() + 2, 0);
  for (const Update& update : updates_) ++place[update.row + 1];
  for (std::size_t row = 0; row + 1 < place.size(); ++row) place[row + 1] += place[row];
  std::vector<Update> sorted(updates_.size());
  for (const Update& update : updates_) sorted[place[update.row]++] = update;
  updates_ = std::move(sorted);
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
