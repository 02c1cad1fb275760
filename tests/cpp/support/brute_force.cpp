#include "support/brute_force.h"

#include <algorithm>
#include <set>
#include <stdexcept>

namespace torch_ext::sched::test {
namespace {

template <typename HasRun>
std::int64_t Live(const Graph& graph, const HasRun& has_run) {
  std::int64_t bytes = 0;
  for (const Buffer& b : graph.buffers()) {
    if (b.producer != kNoOp && !has_run(b.producer)) continue;
    bool needed = b.kept;
    for (OpId user : b.users) needed = needed || !has_run(user);
    if (needed) bytes += b.size_bytes;
  }
  return bytes;
}

std::int64_t Added(const Graph& graph, OpId v) {
  std::int64_t bytes = graph.op(v).workspace_bytes;
  for (BufferId b : graph.op(v).writes) bytes += graph.buffer(b).size_bytes;
  return bytes;
}

// A walk through all orders that keeps the ops run so far and asks `Live` anew after every step.
class Walk {
 public:
  Walk(const Graph& graph, const std::function<void(const Order&)>* visit)
      : graph_(graph), visit_(visit), has_run_(graph.ops().size(), 0) {}

  void From(std::int64_t peak) {
    if (std::ssize(order_) == graph_.num_ops()) {
      lowest_ = std::min(lowest_, peak);
      if (visit_ != nullptr) (*visit_)(order_);
      return;
    }
    const std::int64_t live =
        visit_ != nullptr ? 0 : Live(graph_, [&](OpId v) { return has_run_[v] != 0; });
    for (OpId v = 0; v < graph_.num_ops(); ++v) {
      if (has_run_[v]) continue;
      const std::vector<OpId>& before = graph_.op(v).predecessors;
      if (!std::all_of(before.begin(), before.end(), [&](OpId p) { return has_run_[p] != 0; })) {
        continue;
      }
      has_run_[v] = 1;
      order_.push_back(v);
      From(std::max(peak, live + Added(graph_, v)));
      order_.pop_back();
      has_run_[v] = 0;
    }
  }

  std::int64_t lowest() const { return lowest_; }

 private:
  const Graph& graph_;
  const std::function<void(const Order&)>* visit_;
  std::vector<char> has_run_;
  Order order_;
  std::int64_t lowest_ = std::numeric_limits<std::int64_t>::max();
};

}  // namespace

NaiveProfile NaiveSimulate(const Graph& graph, std::span<const OpId> order) {
  NaiveProfile profile;
  std::set<OpId> done;
  const auto live = [&] { return Live(graph, [&](OpId v) { return done.contains(v); }); };
  profile.start_bytes = live();
  for (OpId v : order) {
    profile.hill_bytes.push_back(live() + Added(graph, v));
    done.insert(v);
    profile.valley_bytes.push_back(live());
  }
  profile.peak_bytes = profile.start_bytes;
  if (!order.empty()) profile.peak_bytes = *std::ranges::max_element(profile.hill_bytes);
  return profile;
}

void ForEachOrder(const Graph& graph, const std::function<void(const Order&)>& visit) {
  Walk(graph, &visit).From(0);
}

std::int64_t LowestPeakOfAllOrders(const Graph& graph) {
  if (graph.num_ops() == 0) return NaiveSimulate(graph, {}).peak_bytes;
  Walk walk(graph, nullptr);
  walk.From(0);
  return walk.lowest();
}

DownSets::DownSets(const Graph& graph) {
  if (graph.num_ops() > 22) throw std::invalid_argument("too many ops for bit masks");
  const auto bit = [](OpId v) { return v == kNoOp ? Mask{0} : Mask{1} << v; };
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    Mask predecessors = 0;
    for (BufferId b : graph.op(v).reads) predecessors |= bit(graph.buffer(b).producer);
    for (OpId p : graph.op(v).after) predecessors |= bit(p);
    predecessors_.push_back(predecessors);
    added_bytes_.push_back(Added(graph, v));
  }
  for (const Buffer& b : graph.buffers()) {
    Mask users = 0;
    for (OpId user : b.users) users |= bit(user);
    storages_.push_back({b.size_bytes, bit(b.producer), users, b.kept});
  }
}

std::int64_t DownSets::LiveBytes(Mask done) const {
  std::int64_t bytes = 0;
  for (const Storage& s : storages_) {
    if ((s.producer & ~done) == 0 && (s.kept || (s.users & ~done) != 0)) bytes += s.size_bytes;
  }
  return bytes;
}

std::vector<std::int64_t> DownSets::LowestPeaksTo() const {
  std::vector<std::int64_t> peaks(std::size_t{full()} + 1, kUnreachable);
  peaks[0] = 0;
  // A mask is larger than each of its subsets, so it is final when the loop comes to it.
  for (std::size_t mask = 0; mask < peaks.size(); ++mask) {
    if (peaks[mask] == kUnreachable) continue;
    const auto done = static_cast<Mask>(mask);
    const std::int64_t live = LiveBytes(done);
    for (OpId v = 0; v < std::ssize(predecessors_); ++v) {
      if (!IsReady(done, v)) continue;
      std::int64_t& next = peaks[mask | (std::size_t{1} << v)];
      next = std::min(next, std::max(peaks[mask], live + added_bytes_[v]));
    }
  }
  return peaks;
}

std::vector<std::int64_t> DownSets::LowestPeaksFrom() const {
  const std::vector<std::int64_t> reachable = LowestPeaksTo();
  std::vector<std::int64_t> peaks(reachable.size(), kUnreachable);
  peaks[full()] = 0;
  for (std::size_t mask = full(); mask-- > 0;) {
    if (reachable[mask] == kUnreachable) continue;
    const auto done = static_cast<Mask>(mask);
    const std::int64_t live = LiveBytes(done);
    for (OpId v = 0; v < std::ssize(predecessors_); ++v) {
      if (!IsReady(done, v)) continue;
      const std::int64_t rest = peaks[mask | (std::size_t{1} << v)];
      peaks[mask] = std::min(peaks[mask], std::max(rest, live + added_bytes_[v]));
    }
  }
  return peaks;
}

std::int64_t DownSets::LowestPeak() const {
  return predecessors_.empty() ? LiveBytes(0) : LowestPeaksTo().back();
}

std::vector<std::int64_t> DownSets::LowestHills() const {
  const std::vector<std::int64_t> reachable = LowestPeaksTo();
  std::vector<std::int64_t> hills(predecessors_.size(), kUnreachable);
  for (std::size_t mask = 0; mask < reachable.size(); ++mask) {
    if (reachable[mask] == kUnreachable) continue;
    const auto done = static_cast<Mask>(mask);
    const std::int64_t live = LiveBytes(done);
    for (OpId v = 0; v < std::ssize(predecessors_); ++v) {
      if (IsReady(done, v)) hills[v] = std::min(hills[v], live + added_bytes_[v]);
    }
  }
  return hills;
}

}  // namespace torch_ext::sched::test
