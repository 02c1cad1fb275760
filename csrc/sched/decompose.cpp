#include "sched/decompose.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "sched/simulate.h"

namespace torch_ext::sched {

namespace {

// `positions` of ops that are not in `order` is -1; edges to them do not count.
std::vector<std::int32_t> SeriesCutsWithin(const Graph& graph, std::span<const OpId> order,
                                           std::span<const std::int32_t> positions) {
  const auto n = static_cast<std::int32_t>(order.size());
  // Op u is maximal in the first k ops for pos(u) < k <= first_successor(u), op w minimal in the
  // rest for last_predecessor(w) < k <= pos(w); edge (u, w) joins two such ops on the intersection.
  std::vector<std::int32_t> first_successor(n, n);
  std::vector<std::int32_t> last_predecessor(n, -1);
  for (std::int32_t i = 0; i < n; ++i) {
    for (OpId w : graph.op(order[i]).successors) {
      const std::int32_t j = positions[w];
      if (j < 0) continue;
      first_successor[i] = std::min(first_successor[i], j);
      last_predecessor[j] = std::max(last_predecessor[j], i);
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
      if (positions[w] >= 0) add(joined, last_predecessor[positions[w]], first_successor[i]);
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

class DisjointSets {
 public:
  explicit DisjointSets(std::size_t size) : leader_(size) {
    std::iota(leader_.begin(), leader_.end(), 0);
  }
  std::int32_t Find(std::int32_t x) {
    while (leader_[x] != x) x = leader_[x] = leader_[leader_[x]];
    return x;
  }
  void Join(std::int32_t a, std::int32_t b) {  // the smaller leads
    a = Find(a);
    b = Find(b);
    leader_[std::max(a, b)] = std::min(a, b);
  }

 private:
  std::vector<std::int32_t> leader_;
};

class RegionFinder {
 public:
  RegionFinder(const Graph& graph, std::int32_t most_depth)
      : graph_(graph),
        most_depth_(most_depth),
        positions_(graph.ops().size(), -1),
        leaf_of_(graph.ops().size(), 0) {}

  RegionTree Find() {
    tree_.ops = graph_.OriginalOrder();
    if (tree_.ops.empty()) return std::move(tree_);
    std::int64_t size = graph_.num_ops();
    for (const Op& op : graph_.ops()) size += static_cast<std::int64_t>(op.predecessors.size());
    work_left_ = kMostRounds * size + kLeastWork;
    tree_.nodes.push_back({RegionTree::Kind::kPrime, 0, graph_.num_ops(), -1, 0});
    for (std::size_t i = 0; i < tree_.nodes.size(); ++i) Split(static_cast<std::int32_t>(i));
    work_left_ = kMostRounds * size + kLeastWork;
    OpenNodes();
    if (work_left_ < 0) {  // not all that is open is marked: nothing may be taken for isolated
      tree_.nodes.assign(1, {RegionTree::Kind::kPrime, 0, graph_.num_ops(), -1, 0});
      tree_.ops = graph_.OriginalOrder();
    }
    return std::move(tree_);
  }

 private:
  static constexpr std::int64_t kMostRounds = 32;
  static constexpr std::int64_t kLeastWork = 4'000'000;
  using Kind = RegionTree::Kind;

  void Split(std::int32_t id) {
    const auto [begin, end] = std::pair(tree_.nodes[id].begin, tree_.nodes[id].end);
    const std::span<OpId> ops(tree_.ops.data() + begin, static_cast<std::size_t>(end - begin));
    for (OpId v : ops) leaf_of_[v] = id;
    if (ops.size() == 1) {
      tree_.nodes[id].kind = Kind::kOp;
      return;
    }
    for (OpId v : ops) work_left_ -= 1 + std::ssize(graph_.op(v).successors);
    if (work_left_ < 0 || tree_.nodes[id].depth > most_depth_) return;
    for (std::size_t i = 0; i < ops.size(); ++i) positions_[ops[i]] = static_cast<std::int32_t>(i);
    std::vector<std::int32_t> ends = SeriesCutsWithin(graph_, ops, positions_);
    Kind kind = Kind::kSeries;
    if (ends.empty()) {
      kind = Kind::kParallel;
      ends = SortByComponent(ops);
    } else {
      ends.push_back(end - begin);
    }
    for (OpId v : ops) positions_[v] = -1;
    if (ends.size() == 1) return;  // prime
    tree_.nodes[id].kind = kind;
    tree_.nodes[id].first_child = static_cast<std::int32_t>(tree_.nodes.size());
    tree_.nodes[id].num_children = static_cast<std::int32_t>(ends.size());
    const std::int32_t depth = tree_.nodes[id].depth + 1;
    std::int32_t child_begin = begin;
    for (std::int32_t child_end : ends) {
      tree_.nodes.push_back({Kind::kPrime, child_begin, begin + child_end, id, depth});
      tree_.nodes.back().coupled_with = static_cast<std::int32_t>(tree_.nodes.size()) - 1;
      child_begin = begin + child_end;
    }
  }

  // Sorts by connected component, those with the earliest op first; returns where each ends.
  std::vector<std::int32_t> SortByComponent(std::span<OpId> ops) {
    DisjointSets sets(ops.size());
    for (std::size_t i = 0; i < ops.size(); ++i) {
      for (OpId w : graph_.op(ops[i]).successors) {
        if (positions_[w] >= 0) sets.Join(static_cast<std::int32_t>(i), positions_[w]);
      }
    }
    std::vector<std::pair<std::int32_t, OpId>> keyed;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      keyed.emplace_back(sets.Find(static_cast<std::int32_t>(i)), ops[i]);
    }
    std::ranges::sort(keyed);
    std::vector<std::int32_t> ends;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      ops[i] = keyed[i].second;
      if (i + 1 == ops.size() || keyed[i].first != keyed[i + 1].first) {
        ends.push_back(static_cast<std::int32_t>(i) + 1);
      }
    }
    return ends;
  }

  // For each buffer, finds the parallel node at which it dies and opens what its last readers are
  // in below. On the way down only the last child of a series node counts: earlier ones see the
  // buffer live on whatever they do.
  void OpenNodes() {
    DisjointSets coupled(tree_.nodes.size());
    for (const Buffer& buffer : graph_.buffers()) {
      if (buffer.kept || buffer.size_bytes == 0) continue;
      if (work_left_ < 0) return;
      std::vector<std::int32_t> readers;  // deepest nodes
      for (OpId u : buffer.users) readers.push_back(leaf_of_[u]);
      while (true) {
        std::ranges::sort(readers);
        readers.erase(std::unique(readers.begin(), readers.end()), readers.end());
        if (readers.size() < 2) break;
        std::int32_t meet = readers.front();
        for (std::int32_t r : readers) meet = Meet(meet, r);
        if (tree_.nodes[meet].kind == Kind::kSeries) {
          KeepLastChild(meet, readers);
          continue;
        }
        const std::int32_t first = ChildOf(meet, readers.front());
        for (std::int32_t r : readers) coupled.Join(first, ChildOf(meet, r));
        OpenBelow(meet, readers);
        break;
      }
    }
    for (std::size_t i = 0; i < tree_.nodes.size(); ++i) {
      tree_.nodes[i].coupled_with = coupled.Find(static_cast<std::int32_t>(i));
    }
  }

  void OpenBelow(std::int32_t parallel, const std::vector<std::int32_t>& readers) {
    std::vector<std::pair<std::int32_t, std::vector<std::int32_t>>> to_open{{parallel, readers}};
    while (!to_open.empty() && work_left_ >= 0) {
      auto [node, below] = std::move(to_open.back());
      to_open.pop_back();
      if (node != parallel) {
        std::int32_t& open_depth = tree_.nodes[node].open_depth;
        open_depth = std::min(open_depth, tree_.nodes[parallel].depth);
      }
      if (tree_.nodes[node].num_children == 0) continue;
      if (tree_.nodes[node].kind == Kind::kSeries) KeepLastChild(node, below);
      std::map<std::int32_t, std::vector<std::int32_t>> by_child;
      for (std::int32_t r : below) by_child[ChildOf(node, r)].push_back(r);
      for (auto& entry : by_child) to_open.emplace_back(entry.first, std::move(entry.second));
    }
  }

  void KeepLastChild(std::int32_t series, std::vector<std::int32_t>& readers) {
    std::int32_t last = 0;
    for (std::int32_t r : readers) last = std::max(last, ChildOf(series, r));
    std::erase_if(readers, [&](std::int32_t r) { return ChildOf(series, r) != last; });
  }

  std::int32_t Meet(std::int32_t a, std::int32_t b) {
    while (a != b) {
      --work_left_;
      (tree_.nodes[a].depth >= tree_.nodes[b].depth ? a : b) =
          tree_.nodes[tree_.nodes[a].depth >= tree_.nodes[b].depth ? a : b].parent;
    }
    return a;
  }
  std::int32_t ChildOf(std::int32_t ancestor, std::int32_t node) {
    for (; tree_.nodes[node].parent != ancestor; --work_left_) node = tree_.nodes[node].parent;
    return node;
  }

  const Graph& graph_;
  const std::int32_t most_depth_;
  RegionTree tree_;
  std::vector<std::int32_t> positions_;  // in the node being split, -1 outside
  std::vector<std::int32_t> leaf_of_;    // per op: the deepest node that holds it
  std::int64_t work_left_ = 0;
};

}  // namespace

std::vector<std::int32_t> SeriesCuts(const Graph& graph, std::span<const OpId> order) {
  return SeriesCutsWithin(graph, order, PositionsOf(order));
}

RegionTree FindRegions(const Graph& graph, std::int32_t most_depth) {
  return RegionFinder(graph, most_depth).Find();
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
