#include "sched/search.h"

#include <algorithm>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace torch_ext::sched {
namespace {

struct Node {
  State state;
  std::int64_t key_bytes;
  std::int32_t parent;
  std::vector<OpId> steps;  // from the parent's state to this one
  bool settled = false;
};

struct Entry {
  std::int64_t key_bytes;
  std::int32_t ops_left;
  std::int64_t live_bytes;
  std::int32_t node;

  auto Key() const { return std::tie(key_bytes, ops_left, live_bytes, node); }
  bool operator<(const Entry& other) const { return Key() > other.Key(); }  // top: the smallest
};

class Searcher {
 public:
  Searcher(const Graph& graph, std::int64_t below_bytes, Budget& budget)
      : graph_(graph), below_bytes_(below_bytes), budget_(budget) {}

  SearchResult Run(Direction direction, std::int64_t floor_bytes) {
    if (floor_bytes >= below_bytes_) return {std::nullopt, below_bytes_, true};
    Push(State(graph_, direction), floor_bytes, -1, {});
    while (!queue_.empty()) {
      const Entry entry = queue_.top();
      queue_.pop();
      if (nodes_[entry.node].settled || entry.key_bytes > nodes_[entry.node].key_bytes) continue;
      nodes_[entry.node].settled = true;
      if (entry.ops_left == 0) {
        return {OrderTo(entry.node, direction), entry.key_bytes, true};
      }
      if (!Expand(entry.node)) return {std::nullopt, entry.key_bytes, false};
    }
    return {std::nullopt, below_bytes_, true};
  }

 private:
  bool Expand(std::int32_t from) {
    const std::vector<OpId> ready = nodes_[from].state.ready();
    for (OpId v : ready) {
      const State::Move move = nodes_[from].state.Look(v);
      const std::int64_t key = std::max(nodes_[from].key_bytes, move.hill_bytes);
      if (key >= below_bytes_) continue;
      State next = nodes_[from].state;
      next.Step(v, move);
      Push(std::move(next), key, from, {v});
    }
    return budget_.Spend(static_cast<std::int64_t>(ready.size()) + 1) &&
           used_bytes_ < budget_.memory_bytes();
  }

  void Push(State state, std::int64_t key, std::int32_t parent, std::vector<OpId> steps) {
    budget_.Spend(state.TakeSafeSteps(key, steps) + 2);
    const std::uint64_t hash = state.done().Hash();
    const auto [first, last] = by_hash_.equal_range(hash);
    const auto found = std::find_if(first, last, [&](const auto& entry) {
      return nodes_[entry.second].state.done() == state.done();
    });
    std::int32_t id;
    if (found == last) {
      id = static_cast<std::int32_t>(nodes_.size());
      used_bytes_ += static_cast<std::int64_t>(sizeof(Node) + sizeof(Entry) + 64) +
                     state.SizeInBytes() + static_cast<std::int64_t>(steps.size() * 4);
      nodes_.push_back({std::move(state), key, parent, std::move(steps)});
      by_hash_.emplace(hash, id);
    } else {
      id = found->second;
      if (nodes_[id].key_bytes <= key) return;
      nodes_[id].key_bytes = key;
      nodes_[id].parent = parent;
      nodes_[id].steps = std::move(steps);
    }
    const State& s = nodes_[id].state;
    queue_.push({key, graph_.num_ops() - s.num_steps(), s.live_bytes(), id});
  }

  Order OrderTo(std::int32_t node, Direction direction) const {
    Order reversed;
    for (; node >= 0; node = nodes_[node].parent) {
      reversed.insert(reversed.end(), nodes_[node].steps.rbegin(), nodes_[node].steps.rend());
    }
    if (direction == Direction::kForward) std::reverse(reversed.begin(), reversed.end());
    return reversed;
  }

  const Graph& graph_;
  const std::int64_t below_bytes_;
  Budget& budget_;
  std::vector<Node> nodes_;
  std::unordered_multimap<std::uint64_t, std::int32_t> by_hash_;
  std::priority_queue<Entry> queue_;
  std::int64_t used_bytes_ = 0;
};

}  // namespace

SearchResult Search(const Graph& graph, Direction direction, std::int64_t floor_bytes,
                    std::int64_t below_bytes, Budget& budget) {
  return Searcher(graph, below_bytes, budget).Run(direction, floor_bytes);
}

}  // namespace torch_ext::sched
