#include "sched/decompose.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "sched/simulate.h"

namespace torch_ext::sched {

std::vector<std::int32_t> SeriesCuts(const Graph& graph, std::span<const OpId> order) {
  const auto n = static_cast<std::int32_t>(order.size());
  const std::vector<std::int32_t> positions = PositionsOf(order);
  // Op u is maximal in the first k ops for pos(u) < k <= first_successor(u), op w minimal in the
  // rest for last_predecessor(w) < k <= pos(w); edge (u, w) joins two such ops on the intersection.
  std::vector<std::int32_t> first_successor(n, n);
  std::vector<std::int32_t> last_predecessor(n, -1);
  for (OpId u : order) {
    for (OpId w : graph.op(u).successors) {
      first_successor[positions[u]] = std::min(first_successor[positions[u]], positions[w]);
      last_predecessor[positions[w]] = std::max(last_predecessor[positions[w]], positions[u]);
    }
  }
  std::vector<std::int64_t> maximal(n + 2, 0), minimal(n + 2, 0), joined(n + 2, 0);
  const auto add = [](std::vector<std::int64_t>& count, std::int32_t after, std::int32_t last) {
    if (after >= last) return;
    ++count[after + 1];
    --count[last + 1];
  };
  for (std::int32_t i = 0; i < n; ++i) {
    add(maximal, i, first_successor[i]);
    add(minimal, last_predecessor[i], i);
    for (OpId w : graph.op(order[i]).successors) {
      add(joined, last_predecessor[positions[w]], first_successor[i]);
    }
  }
  std::vector<std::int32_t> cuts;
  for (std::int32_t k = 1; k <= n; ++k) {
    maximal[k] += maximal[k - 1];
    minimal[k] += minimal[k - 1];
    joined[k] += joined[k - 1];
    if (k < n && joined[k] == maximal[k] * minimal[k]) cuts.push_back(k);
  }
  return cuts;
}

Slicer::Slicer(const Graph& graph, std::span<const OpId> order)
    : graph_(graph),
      order_(order.begin(), order.end()),
      positions_(PositionsOf(order)),
      last_use_(graph.buffers().size(), -1) {
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    if (!graph.buffer(b).is_input()) last_use_[b] = positions_[graph.buffer(b).producer];
    for (OpId user : graph.buffer(b).users) last_use_[b] = std::max(last_use_[b], positions_[user]);
  }
  const Profile profile = Simulate(graph, order);
  live_before_bytes_.push_back(profile.start_bytes);
  live_before_bytes_.insert(live_before_bytes_.end(), profile.valley_bytes.begin(),
                            profile.valley_bytes.end());
}

Slice Slicer::Cut(std::int32_t begin, std::int32_t end) const {
  Slice slice;
  std::unordered_map<BufferId, BufferId> local;
  std::int64_t passing_bytes = live_before_bytes_[begin];
  const auto add_buffer = [&](BufferId b) {
    if (local.contains(b)) return;
    const Buffer& buffer = graph_.buffer(b);
    const bool kept = buffer.kept || last_use_[b] >= end;
    const bool input = buffer.is_input() || positions_[buffer.producer] < begin;
    if (input) passing_bytes -= buffer.size_bytes;
    local.emplace(b, input ? slice.graph.AddInput(buffer.name, buffer.size_bytes, kept)
                           : slice.graph.AddBuffer(buffer.name, buffer.size_bytes, kept));
  };
  for (std::int32_t i = begin; i < end; ++i) {
    for (BufferId b : graph_.op(order_[i]).reads) add_buffer(b);
    for (BufferId b : graph_.op(order_[i]).writes) add_buffer(b);
  }
  if (passing_bytes > 0) {
    std::string name = "passing_by";
    const auto is_taken = [&](const Buffer& b) { return b.name == name; };
    while (std::ranges::any_of(slice.graph.buffers(), is_taken)) name += '_';
    slice.graph.AddInput(name, passing_bytes, /*kept=*/true);
  }

  for (std::int32_t i = begin; i < end; ++i) {
    const Op& op = graph_.op(order_[i]);
    std::vector<BufferId> reads, writes;
    std::vector<OpId> after;
    for (BufferId b : op.reads) reads.push_back(local.at(b));
    for (BufferId b : op.writes) writes.push_back(local.at(b));
    for (OpId p : op.after) {
      if (positions_[p] >= begin) after.push_back(positions_[p] - begin);
    }
    slice.graph.AddOp(op.name, std::move(reads), std::move(writes), op.workspace_bytes,
                      std::move(after));
    slice.ops.push_back(order_[i]);
  }
  return slice;
}

}  // namespace torch_ext::sched
