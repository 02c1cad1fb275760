#include "sched/dominant.h"

#include <algorithm>
#include <limits>
#include <span>
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

}  // namespace torch_ext::sched
