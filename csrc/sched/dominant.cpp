#include "sched/dominant.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <queue>
#include <span>
#include <tuple>
#include <utility>

#include "sched/bound.h"
#include "sched/search.h"
#include "sched/simulate.h"
#include "sched/state_space.h"

namespace torch_ext::sched {
namespace {

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

// The steps by which memory comes down to `lowest_bytes` on the way from the state `has_run`
// towards the state `goal`, each time to the lowest valley that the lowest hills allow. Afterwards
// `has_run` is where it arrived.
std::optional<std::vector<OpId>> Descend(const Graph& graph, Direction direction,
                                         std::int64_t lowest_bytes, const std::vector<char>& goal,
                                         std::vector<char>& has_run, const Rules& rules,
                                         Budget& budget) {
  std::vector<OpId> steps;
  while (true) {
    StateSpace space(graph, direction, has_run, goal, rules);
    if (space.start_bytes() == lowest_bytes) return steps;
    DownSetSearch search(std::move(space), /*floor_bytes=*/0, kNoLimit);
    if (search.FindLowerValley(budget) != DownSetSearch::Found::kLowerValley) return std::nullopt;
    for (OpId v : search.StepsToFound()) {
      has_run[v] = direction == Direction::kForward;
      steps.push_back(v);
    }
  }
}

// The lowest peak from one state to another, in the direction that gets there first: a little work
// for each before more for either.
std::optional<std::vector<OpId>> Cross(const Graph& graph, const std::vector<char>& from,
                                       const std::vector<char>& to, const Rules& rules,
                                       Budget& budget) {
  const auto search = [&](Direction direction) {
    const bool forward = direction == Direction::kForward;
    return DownSetSearch(
        StateSpace(graph, direction, forward ? from : to, forward ? to : from, rules),
        /*floor_bytes=*/0, kNoLimit);
  };
  DownSetSearch searches[] = {search(Direction::kForward), search(Direction::kBackward)};
  for (std::int64_t units = 256; budget.HasWork(); units *= 2) {
    for (DownSetSearch& side : searches) {
      Budget part = budget.Part(units);
      const DownSetSearch::Found found = side.FindGoal(part);
      budget.Spend(part.spent());
      if (found == DownSetSearch::Found::kGoal) {
        std::vector<OpId> steps = side.StepsToFound();
        if (&side == &searches[1]) std::ranges::reverse(steps);
        return steps;
      }
      if (part.HasWork()) return std::nullopt;  // out of memory
    }
  }
  return std::nullopt;
}

// A run of ops as an op of a smaller graph, before it is added there.
struct Run {
  std::vector<OpId> ops;
  std::vector<BufferId> reads;   // of the smaller graph
  std::vector<BufferId> writes;  // ... which no other run writes
  std::vector<OpId> after;
  std::int64_t hill_bytes;
};

// Makes small graphs of chains, looking up what each needs in tables of the whole graph.
class Contractor {
 public:
  explicit Contractor(const Graph& graph)
      : graph_(graph),
        last_use_(graph.buffers().size(), -1),
        run_of_(graph.ops().size(), -1),
        local_(graph.buffers().size(), -1) {
    for (BufferId b = 0; b < graph.num_buffers(); ++b) {
      for (OpId u : graph.buffer(b).users) last_use_[b] = std::max(last_use_[b], u);
    }
  }

  // Of an op in an isolated region, or one that is a region: see RegionTree::Node::open_depth.
  Segment SegmentOf(OpId v) const {
    Segment segment{graph_.HillBytes(v), 0, 1};
    for (BufferId b : graph_.op(v).writes) {
      if (graph_.buffer(b).kept || last_use_[b] >= 0) segment.net_bytes += Size(b);
    }
    for (BufferId b : graph_.op(v).reads) {
      if (!graph_.buffer(b).kept && last_use_[b] == v) segment.net_bytes -= Size(b);
    }
    return segment;
  }

  // The ops of a region as chains u -> w in which w is u's only successor in the region and u is
  // w's only predecessor in it, in order of their first ops. ReadsOnlyOwn is about these until the
  // next call.
  std::vector<std::vector<OpId>> PrivateChains(std::span<const OpId> ops) {
    for (std::size_t i = 0; i < ops.size(); ++i) run_of_[ops[i]] = 0;
    const auto only_inside = [&](const std::vector<OpId>& neighbours) {
      OpId only = kNoOp;
      for (OpId u : neighbours) {
        if (run_of_[u] < 0) continue;
        if (only != kNoOp) return kNoOp;
        only = u;
      }
      return only;
    };
    std::vector<std::vector<OpId>> chains;
    for (OpId first : ops) {
      const OpId before = only_inside(graph_.op(first).predecessors);
      if (before != kNoOp && only_inside(graph_.op(before).successors) == first) continue;
      chains.push_back({first});
      while (true) {
        const OpId next = only_inside(graph_.op(chains.back().back()).successors);
        if (next == kNoOp || only_inside(graph_.op(next).predecessors) == kNoOp) break;
        chains.back().push_back(next);
      }
    }
    chain_of_.assign(graph_.ops().size(), -1);
    for (std::size_t c = 0; c < chains.size(); ++c) {
      for (OpId v : chains[c]) chain_of_[v] = static_cast<std::int32_t>(c);
    }
    for (OpId v : ops) run_of_[v] = -1;
    return chains;
  }

  // Is every buffer that may die at `v` read by v's chain alone?
  bool ReadsOnlyOwn(OpId v) const {
    return std::ranges::all_of(graph_.op(v).reads, [&](BufferId b) {
      const Buffer& buffer = graph_.buffer(b);
      return buffer.kept || buffer.size_bytes == 0 ||
             std::ranges::all_of(buffer.users,
                                 [&](OpId u) { return chain_of_[u] == chain_of_[v]; });
    });
  }

  // `chains` hold all ops of an isolated region, each after the chains it depends on. Buffers that
  // outlive the region are kept; those that live through it without being freed are left out.
  // `parts`: chains [parts[i], parts[i + 1]) are incomparable with all others.
  Contraction Contract(const std::vector<Chain>& chains, const std::vector<std::size_t>& parts) {
    OpId last_op = -1;
    for (const Chain& chain : chains) last_op = std::max(last_op, std::ranges::max(chain.ops));
    Contraction result;
    std::vector<Run> runs;
    std::vector<std::size_t> part_begin;  // in runs
    std::vector<BufferId> touched;
    for (std::size_t c = 0, part = 0; c < chains.size(); ++c) {
      if (part < parts.size() && parts[part] == c) {
        part_begin.push_back(runs.size());
        ++part;
      }
      const Chain& chain = chains[c];
      auto next = chain.ops.begin();
      for (std::size_t s = 0; s < chain.segments.size(); ++s) {
        Run run;
        run.ops.assign(next, next + chain.segments[s].num_ops);
        next += chain.segments[s].num_ops;
        run.hill_bytes = chain.segments[s].hill_bytes;
        if (s > 0) run.after.push_back(static_cast<OpId>(runs.size()) - 1);
        for (OpId v : run.ops) run_of_[v] = static_cast<std::int32_t>(runs.size());
        Connect(run, static_cast<std::int32_t>(runs.size()), last_op, result.graph, touched);
        runs.push_back(std::move(run));
      }
    }
    if (part_begin.empty()) {
      SortByFirstOp(runs);
    } else {
      part_begin.push_back(runs.size());
      BreakSymmetry(result.graph, runs, part_begin);
    }
    for (Run& run : runs) {
      result.graph.AddContractedOp(graph_.op(run.ops.front()).name, std::move(run.reads),
                                   std::move(run.writes), run.hill_bytes, std::move(run.after));
      result.runs.push_back(std::move(run.ops));
    }
    for (const std::vector<OpId>& ops : result.runs) {
      for (OpId v : ops) run_of_[v] = -1;
    }
    for (BufferId b : touched) local_[b] = -1;
    return result;
  }

 private:
  std::int64_t Size(BufferId b) const { return graph_.buffer(b).size_bytes; }

  void Connect(Run& run, std::int32_t id, OpId last_op, Graph& small,
               std::vector<BufferId>& touched) {
    for (OpId v : run.ops) {
      const Op& op = graph_.op(v);
      for (OpId p : op.predecessors) {
        if (run_of_[p] >= 0 && run_of_[p] != id) run.after.push_back(run_of_[p]);
      }
      for (BufferId b : op.reads) {
        const Buffer& buffer = graph_.buffer(b);
        const bool outlives = buffer.kept || last_use_[b] > last_op;
        if (buffer.size_bytes == 0 || outlives) continue;
        if (!buffer.is_input() && run_of_[buffer.producer] == id) continue;
        if (local_[b] < 0) {
          local_[b] = small.AddInput(buffer.name, buffer.size_bytes);
          touched.push_back(b);
        }
        run.reads.push_back(local_[b]);
      }
      for (BufferId b : op.writes) {
        const Buffer& buffer = graph_.buffer(b);
        const bool outlives = buffer.kept || last_use_[b] > last_op;
        const bool read_by_others =
            std::ranges::any_of(buffer.users, [&](OpId u) { return run_of_[u] != id; });
        if (buffer.size_bytes == 0 || !(outlives || read_by_others)) continue;
        local_[b] = small.AddBuffer(buffer.name, buffer.size_bytes, outlives);
        touched.push_back(b);
        run.writes.push_back(local_[b]);
      }
    }
  }

  // The original order of the first ops, as far as precedence allows it.
  static void SortByFirstOp(std::vector<Run>& runs) {
    std::vector<std::vector<std::size_t>> next(runs.size());
    std::vector<std::size_t> waits_for(runs.size(), 0);
    std::priority_queue<std::pair<OpId, std::size_t>, std::vector<std::pair<OpId, std::size_t>>,
                        std::greater<>>
        ready;
    for (std::size_t r = 0; r < runs.size(); ++r) {
      for (OpId p : runs[r].after) next[p].push_back(r);
      waits_for[r] = runs[r].after.size();
      if (waits_for[r] == 0) ready.emplace(std::ranges::min(runs[r].ops), r);
    }
    std::vector<OpId> place(runs.size());
    std::vector<Run> sorted;
    while (!ready.empty()) {
      const std::size_t r = ready.top().second;
      ready.pop();
      place[r] = static_cast<OpId>(sorted.size());
      for (OpId& p : runs[r].after) p = place[p];
      for (std::size_t u : next[r]) {
        if (--waits_for[u] == 0) ready.emplace(std::ranges::min(runs[u].ops), u);
      }
      sorted.push_back(std::move(runs[r]));
    }
    runs = std::move(sorted);
  }

  // Equal parts are interchangeable: any order can be changed into one that starts them in the
  // order they are listed in, and if they are chains, one in which none overtakes an earlier one.
  void BreakSymmetry(const Graph& small, std::vector<Run>& runs,
                     const std::vector<std::size_t>& part_begin) const {
    using OpSignature = std::tuple<std::int64_t, std::vector<std::int64_t>,
                                   std::vector<std::int64_t>, std::vector<std::int64_t>>;
    std::map<std::vector<OpSignature>, std::size_t> last_equal;
    for (std::size_t part = 0; part + 1 < part_begin.size(); ++part) {
      const std::size_t begin = part_begin[part], end = part_begin[part + 1];
      std::map<BufferId, std::int64_t> written;  // the buffers of the part, in order of writing
      std::vector<OpSignature> signature;
      bool is_chain = true;
      for (std::size_t r = begin; r < end; ++r) {
        std::vector<std::int64_t> reads, writes, after;
        for (BufferId b : runs[r].reads) {
          const auto own = written.find(b);
          reads.push_back(own == written.end() ? b : -1 - own->second);
        }
        for (BufferId b : runs[r].writes) {
          written.emplace(b, static_cast<std::int64_t>(written.size()));
          writes.push_back(small.buffer(b).kept ? -1 - small.buffer(b).size_bytes
                                                : small.buffer(b).size_bytes);
        }
        for (OpId p : runs[r].after) after.push_back(p - static_cast<std::int64_t>(begin));
        std::ranges::sort(reads);
        std::ranges::sort(after);
        after.erase(std::unique(after.begin(), after.end()), after.end());
        is_chain = is_chain &&
                   (r == begin ||
                    (!after.empty() && after.back() + 1 == static_cast<std::int64_t>(r - begin)));
        signature.emplace_back(runs[r].hill_bytes, std::move(reads), std::move(writes),
                               std::move(after));
      }
      const auto [earlier, is_first] = last_equal.try_emplace(std::move(signature), part);
      if (is_first) continue;
      const std::size_t other = part_begin[earlier->second];
      earlier->second = part;
      for (std::size_t k = 0; k < (is_chain ? end - begin : 1); ++k) {
        runs[begin + k].after.push_back(static_cast<OpId>(other + k));
      }
    }
  }

  const Graph& graph_;
  std::vector<OpId> last_use_;          // per buffer, -1 if unread
  std::vector<std::int32_t> run_of_;    // per op, -1 outside
  std::vector<BufferId> local_;         // per buffer, -1 outside
  std::vector<std::int32_t> chain_of_;  // per op: its private chain
};

class Reducer {
 public:
  Reducer(const Graph& graph, const RegionTree& tree, const Rules& rules, Budget& budget)
      : tree_(tree), rules_(rules), budget_(budget), contractor_(graph) {}

  Reduction Run() {
    std::vector<Solved> solved(tree_.nodes.size());
    for (std::size_t i = tree_.nodes.size(); i-- > 0;) {
      const RegionTree::Node& node = tree_.nodes[i];
      const std::span<Solved> children(solved.data() + node.first_child,
                                       static_cast<std::size_t>(node.num_children));
      switch (node.kind) {
        case RegionTree::Kind::kOp:
          solved[i] = SolveOp(node);
          break;
        case RegionTree::Kind::kSeries:
          solved[i] = SolveSeries(children);
          break;
        case RegionTree::Kind::kParallel:
          solved[i] = SolveParallel(node, children);
          break;
        case RegionTree::Kind::kPrime:
          reduction_.has_prime = true;
          solved[i] = SolvePrime(node);
          break;
      }
      for (Solved& child : children) child = {};
    }
    reduction_.chains = std::move(solved.front().chains);
    reduction_.is_dominant = solved.front().is_dominant;
    return std::move(reduction_);
  }

 private:
  // What is beyond this in one region is left to the searches that only want its peak.
  static constexpr std::size_t kMostRuns = 1024;
  static constexpr std::int64_t kMostWork = 400'000;

  struct Solved {
    std::vector<Chain> chains;  // topologically sorted
    bool is_dominant = false;   // isolated, and one chain that dominates every order
  };

  static void Append(Chain& chain, Chain&& more) {
    if (chain.ops.empty()) {
      chain = std::move(more);
      return;
    }
    chain.ops.insert(chain.ops.end(), more.ops.begin(), more.ops.end());
    chain.segments.insert(chain.segments.end(), more.segments.begin(), more.segments.end());
  }

  Solved SolveOp(const RegionTree::Node& node) const {
    const OpId v = tree_.ops[node.begin];
    Solved result;
    result.is_dominant = node.open_depth == RegionTree::kClosed;
    result.chains.push_back({{v}, {contractor_.SegmentOf(v)}});
    return result;
  }

  static Solved SolveSeries(std::span<Solved> children) {
    Solved result;
    result.is_dominant = true;
    Chain chain;
    const auto finish_chain = [&] {
      if (chain.ops.empty()) return;
      chain.segments = Canonical(chain.segments);
      result.chains.push_back(std::exchange(chain, {}));
    };
    for (Solved& child : children) {
      if (child.is_dominant) {
        Append(chain, std::move(child.chains.front()));
        continue;
      }
      result.is_dominant = false;
      finish_chain();
      std::ranges::move(child.chains, std::back_inserter(result.chains));
    }
    finish_chain();
    return result;
  }

  Solved SolveParallel(const RegionTree::Node& node, std::span<Solved> children) {
    // Children that share buffers, directly or by way of others, in groups.
    std::vector<std::vector<std::size_t>> groups;
    std::vector<std::int32_t> group_of(children.size(), -1);
    for (std::size_t i = 0; i < children.size(); ++i) {
      const std::int32_t leader =
          tree_.nodes[node.first_child + static_cast<std::int32_t>(i)].coupled_with -
          node.first_child;
      if (group_of[leader] < 0) {
        group_of[leader] = static_cast<std::int32_t>(groups.size());
        groups.emplace_back();
      }
      groups[group_of[leader]].push_back(i);
    }
    Solved result;
    std::vector<Chain> independent;
    for (const std::vector<std::size_t>& group : groups) {
      Solved solved;
      std::vector<std::size_t> parts;
      bool closed = true;
      for (std::size_t i : group) {
        closed =
            closed &&
            tree_.nodes[node.first_child + static_cast<std::int32_t>(i)].open_depth >= node.depth;
        solved.is_dominant = children[i].is_dominant;
        parts.push_back(solved.chains.size());
        std::ranges::move(children[i].chains, std::back_inserter(solved.chains));
      }
      if (group.size() > 1) {
        solved.is_dominant = false;
        if (closed) Search(solved, parts);
      }
      std::ranges::move(solved.chains,
                        std::back_inserter(solved.is_dominant ? independent : result.chains));
    }
    if (independent.empty()) return result;
    result.is_dominant = result.chains.empty();
    result.chains.push_back(Merge(std::move(independent)));
    return result;
  }

  static Chain Merge(std::vector<Chain>&& chains) {
    if (chains.size() == 1) return std::move(chains.front());
    std::vector<std::vector<Segment>> parts;
    std::vector<std::vector<OpId>::const_iterator> next;
    for (const Chain& chain : chains) {
      parts.push_back(chain.segments);
      next.push_back(chain.ops.begin());
    }
    Chain merged;
    for (const MergedSegment& m : MergeIndependent(parts)) {
      const Segment& segment = parts[m.part][m.segment];
      merged.ops.insert(merged.ops.end(), next[m.part], next[m.part] + segment.num_ops);
      next[m.part] += segment.num_ops;
      merged.segments.push_back(segment);
    }
    merged.segments = Canonical(merged.segments);
    return merged;
  }

  // Inside a prime region, private chains (ops that follow each other and have no other neighbour
  // in the region) are modules, and what in them reads nothing that others read is isolated.
  Solved SolvePrime(const RegionTree::Node& node) {
    Solved solved;
    const std::span<const OpId> ops(tree_.ops.data() + node.begin,
                                    static_cast<std::size_t>(node.end - node.begin));
    for (std::vector<OpId>& chain_ops : contractor_.PrivateChains(ops)) {
      Chain chain;
      const auto finish_chain = [&] {
        if (chain.ops.empty()) return;
        chain.segments = Canonical(chain.segments);
        solved.chains.push_back(std::exchange(chain, {}));
      };
      for (OpId v : chain_ops) {
        const bool isolated = contractor_.ReadsOnlyOwn(v);
        if (!isolated) finish_chain();
        chain.ops.push_back(v);
        chain.segments.push_back(contractor_.SegmentOf(v));
        if (!isolated) finish_chain();
      }
      finish_chain();
    }
    if (node.open_depth == RegionTree::kClosed) Search(solved, {});
    return solved;
  }

  // Replaces the chains of a closed region by one that dominates, if the budget allows it.
  void Search(Solved& solved, const std::vector<std::size_t>& parts) {
    std::size_t num_runs = 0;
    for (const Chain& chain : solved.chains) num_runs += chain.segments.size();
    if (num_runs > kMostRuns || !budget_.HasWork()) return;
    const Contraction contraction =
        contractor_.Contract(solved.chains, rules_.symmetry ? parts : std::vector<std::size_t>{});
    Budget part = budget_.Part(kMostWork);
    const std::optional<Order> order = DominantOrderBySearch(contraction.graph, rules_, part);
    budget_.Spend(part.spent());
    if (!order) return;
    Chain chain;
    chain.ops = contraction.Expand(*order);
    chain.segments = SegmentsOf(Simulate(contraction.graph, *order));
    for (std::size_t i = 0; i < order->size(); ++i) {
      chain.segments[i].num_ops = static_cast<std::int32_t>(contraction.runs[(*order)[i]].size());
    }
    chain.segments = Canonical(chain.segments);
    solved.chains.assign(1, std::move(chain));
    solved.is_dominant = true;
  }

  const RegionTree& tree_;
  const Rules& rules_;
  Budget& budget_;
  Contractor contractor_;
  Reduction reduction_;
};

}  // namespace

std::optional<Order> DominantOrderBySearch(const Graph& graph, const Rules& rules, Budget& budget) {
  const std::optional<std::int64_t> lowest = LowestLiveBytes(graph, budget);
  if (!lowest) return std::nullopt;
  std::vector<char> first(graph.ops().size(), 0), last(graph.ops().size(), 1);
  const std::vector<char> all = last;
  auto head = Descend(graph, Direction::kForward, *lowest, all, first, rules, budget);
  if (!head) return std::nullopt;
  auto tail = Descend(graph, Direction::kBackward, *lowest, first, last, rules, budget);
  if (!tail) return std::nullopt;
  const auto middle = Cross(graph, first, last, rules, budget);
  if (!middle) return std::nullopt;
  head->insert(head->end(), middle->begin(), middle->end());
  head->insert(head->end(), tail->rbegin(), tail->rend());
  return head;
}

Reduction Reduce(const Graph& graph, const RegionTree& tree, const Rules& rules, Budget& budget) {
  if (tree.nodes.empty()) return {{}, true, false};
  return Reducer(graph, tree, rules, budget).Run();
}

Order Contraction::Expand(const Order& order) const {
  Order expanded;
  for (OpId v : order) expanded.insert(expanded.end(), runs[v].begin(), runs[v].end());
  return expanded;
}

Contraction Contract(const Graph& graph, const std::vector<Chain>& chains) {
  Contraction result = Contractor(graph).Contract(chains, {});
  const std::int64_t passing_bytes = graph.StartBytes() - result.graph.StartBytes();
  if (passing_bytes > 0) result.graph.AddInput("passing_by", passing_bytes, /*kept=*/true);
  return result;
}

}  // namespace torch_ext::sched
