#include "sched/orders.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "sched/simulate.h"
#include "sched/state_space.h"

namespace torch_ext::sched {
namespace {

Order Oriented(Order steps, Direction direction) {
  if (direction == Direction::kBackward) std::reverse(steps.begin(), steps.end());
  return steps;
}

// A node of the beam's tree: the steps taken from the parent's state.
struct Trace {
  std::int32_t parent;
  std::vector<OpId> steps;
};

Order Steps(const std::vector<Trace>& traces, std::int32_t leaf) {
  std::vector<std::int32_t> path;
  for (std::int32_t i = leaf; i >= 0; i = traces[i].parent) path.push_back(i);
  Order steps;
  for (auto it = path.rbegin(); it != path.rend(); ++it) {
    steps.insert(steps.end(), traces[*it].steps.begin(), traces[*it].steps.end());
  }
  return steps;
}

struct BeamState {
  std::vector<StateSpace::Word> bits;
  std::int64_t live_bytes;
  std::int64_t peak_bytes;
  std::int32_t trace;
};

// A step that has been looked at and not yet taken.
struct Successor {
  std::int64_t peak_bytes;
  std::int64_t live_bytes;
  std::int32_t parent;  // index in the level
  OpId op;

  auto Key() const { return std::tie(peak_bytes, live_bytes, parent, op); }
};

}  // namespace

Order DepthFirstOrder(const Graph& graph) {
  // need[v]: the highest hill on the way to v, as if every predecessor were computed for v alone.
  std::vector<std::int64_t> need(graph.ops().size(), 0);
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    need[v] = graph.HillBytes(v);
    for (OpId p : graph.op(v).predecessors) need[v] = std::max(need[v], need[p]);
  }
  Order order;
  std::vector<char> entered(graph.ops().size(), 0);
  std::vector<std::pair<OpId, bool>> stack;
  for (OpId root = 0; root < graph.num_ops(); ++root) {
    if (!graph.op(root).successors.empty()) continue;
    stack.emplace_back(root, false);
    while (!stack.empty()) {
      const auto [v, expanded] = stack.back();
      stack.pop_back();
      if (expanded) {
        order.push_back(v);
        continue;
      }
      if (entered[v]) continue;
      entered[v] = 1;
      stack.emplace_back(v, true);
      std::vector<OpId> predecessors = graph.op(v).predecessors;
      std::stable_sort(predecessors.begin(), predecessors.end(),
                       [&](OpId a, OpId b) { return need[a] > need[b]; });
      for (auto it = predecessors.rbegin(); it != predecessors.rend(); ++it) {
        if (!entered[*it]) stack.emplace_back(*it, false);
      }
    }
  }
  return order;
}

std::optional<Order> GreedyOrder(const Graph& graph, Direction direction, Budget& budget) {
  State state(graph, direction);
  Order steps;
  while (!state.ready().empty()) {
    if (!budget.Spend(static_cast<std::int64_t>(state.ready().size()))) return std::nullopt;
    OpId best = kNoOp;
    State::Move best_move{};
    for (OpId v : state.ready()) {
      const State::Move move = state.Look(v);
      if (best == kNoOp || std::tie(move.live_bytes, move.hill_bytes) <
                               std::tie(best_move.live_bytes, best_move.hill_bytes)) {
        best = v;
        best_move = move;
      }
    }
    state.Step(best, best_move);
    steps.push_back(best);
  }
  return Oriented(std::move(steps), direction);
}

Order WithSafeSteps(const Graph& graph, Direction direction, Order order, Budget& budget) {
  const std::int64_t peak_bytes = PeakBytes(graph, order);
  State state(graph, direction);
  std::vector<char> stepped(order.size(), 0);
  Order steps;
  const auto take_safe_steps = [&] {
    const std::size_t before = steps.size();
    const bool go_on = budget.Spend(state.TakeSafeSteps(peak_bytes, steps));
    for (std::size_t i = before; i < steps.size(); ++i) stepped[steps[i]] = 1;
    return go_on;
  };
  Order wanted = Oriented(order, direction);
  if (!take_safe_steps()) return order;
  for (OpId v : wanted) {
    if (stepped[v]) continue;
    state.Step(v, state.Look(v));
    stepped[v] = 1;
    steps.push_back(v);
    if (!take_safe_steps()) return order;
  }
  return Oriented(std::move(steps), direction);
}

std::optional<Order> BeamOrder(const Graph& graph, Direction direction, std::int32_t width,
                               std::int64_t floor_bytes, Budget& budget) {
  StateSpace space(graph, direction);
  std::vector<Trace> traces;
  // Safe steps make states jump ahead, so the levels wait in a map from steps taken to states.
  std::map<std::int32_t, std::vector<BeamState>> levels;
  const auto arrive = [&](BeamState&& arrived, std::int32_t num_steps, std::vector<OpId> steps) {
    std::int64_t looks = static_cast<std::int64_t>(space.words_per_state());  // the copy
    const std::size_t steps_before = steps.size();
    arrived.live_bytes =
        space.TakeSafeSteps(arrived.bits.data(), arrived.live_bytes,
                            std::max(arrived.peak_bytes, floor_bytes), &steps, looks);
    budget.Spend(looks);
    num_steps += static_cast<std::int32_t>(steps.size() - steps_before);
    traces.push_back({arrived.trace, std::move(steps)});
    arrived.trace = static_cast<std::int32_t>(traces.size()) - 1;
    levels[num_steps].push_back(std::move(arrived));
  };
  arrive({space.start(), space.start_bytes(), floor_bytes, -1}, 0, {});

  while (true) {
    const std::int32_t num_steps = levels.begin()->first;
    std::vector<BeamState> level = std::move(levels.begin()->second);
    levels.erase(levels.begin());
    std::sort(level.begin(), level.end(), [](const BeamState& a, const BeamState& b) {
      return std::tie(a.peak_bytes, a.live_bytes, a.trace) <
             std::tie(b.peak_bytes, b.live_bytes, b.trace);
    });
    if (num_steps == graph.num_ops()) {
      return Oriented(Steps(traces, level.front().trace), direction);
    }
    std::set<std::vector<StateSpace::Word>> seen;
    std::vector<BeamState> kept;
    for (BeamState& candidate : level) {
      if (static_cast<std::int32_t>(kept.size()) == width) break;
      if (seen.insert(candidate.bits).second) kept.push_back(std::move(candidate));
    }

    std::vector<Successor> successors;
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(kept.size()); ++i) {
      BeamState& from = kept[i];
      std::int64_t looks = 1;
      const auto add = [&](OpId v) {
        const State::Move move = space.Look(from.bits.data(), from.live_bytes, v);
        successors.push_back({std::max(from.peak_bytes, move.hill_bytes), move.live_bytes, i, v});
        ++looks;
      };
      const OpId v = space.FindSafeRun(from.bits.data(), from.live_bytes,
                                       std::max(from.peak_bytes, floor_bytes), looks);
      if (v != kNoOp) {
        add(v);
      } else {
        space.ForEach(space.ready(from.bits.data()), add);
      }
      if (!budget.Spend(looks)) return std::nullopt;
    }
    // More than 2 * width successors of one level can not all be kept; drop the worst unbuilt.
    const std::size_t most = 2 * static_cast<std::size_t>(width);
    if (successors.size() > most) {
      std::nth_element(successors.begin(), successors.begin() + static_cast<std::ptrdiff_t>(most),
                       successors.end(),
                       [](const auto& a, const auto& b) { return a.Key() < b.Key(); });
      successors.resize(most);
    }
    std::sort(successors.begin(), successors.end(),
              [](const auto& a, const auto& b) { return a.Key() < b.Key(); });
    for (const Successor& s : successors) {
      BeamState next{kept[s.parent].bits, s.live_bytes, s.peak_bytes, kept[s.parent].trace};
      space.Step(next.bits.data(), s.op);
      arrive(std::move(next), num_steps + 1, {s.op});
      if (!budget.HasWork()) return std::nullopt;
    }
  }
}

}  // namespace torch_ext::sched
