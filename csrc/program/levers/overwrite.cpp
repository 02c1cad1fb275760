#include "program/levers/overwrite.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <utility>

#include "program/hazards.h"
#include "program/lower.h"
#include "sched/bound.h"
#include "sched/budget.h"
#include "sched/simulate.h"

namespace torch_ext::program {
namespace {

std::vector<std::vector<OpId>> ReadersOf(const Program& program) {
  std::vector<std::vector<OpId>> readers(program.buffers.size());
  for (OpId v = 0; v < static_cast<OpId>(program.ops.size()); ++v) {
    for (const BufferId b : program.ops[v].reads) readers[b].push_back(v);
  }
  return readers;
}

// All ops but its own that must run before an argument is overwritten.
std::vector<OpId> OthersOf(const Overwrite& overwrite,
                           const std::vector<std::vector<OpId>>& readers) {
  std::vector<OpId> others = readers[overwrite.argument];
  others.insert(others.end(), overwrite.others.begin(), overwrite.others.end());
  std::erase(others, overwrite.op);
  return others;
}

std::vector<OpId> MakersOf(const Program& program) {
  std::vector<OpId> makers(program.buffers.size(), sched::kNoOp);
  for (OpId v = 0; v < static_cast<OpId>(program.ops.size()); ++v) {
    for (const BufferId b : program.ops[v].writes) makers[b] = v;
  }
  return makers;
}

// May the argument's storage be written to at all, and hold what the op makes?
bool IsPossible(const Program& program, const Overwrite& overwrite) {
  const Buffer& argument = program.buffers[overwrite.argument];
  const Buffer& result = program.buffers[overwrite.result];
  return !argument.is_input && !argument.kept && argument.bytes == result.bytes;
}

// The ops in the order in which they stood, so far as the edges allow; nothing if they contradict.
std::optional<std::vector<OpId>> Sorted(std::size_t num_ops, const Edges& edges) {
  std::vector<std::vector<OpId>> next(num_ops);
  std::vector<std::int32_t> waits_for(num_ops, 0);
  for (const auto& [earlier, later] : edges) {
    next[earlier].push_back(later);
    ++waits_for[later];
  }
  std::priority_queue<OpId, std::vector<OpId>, std::greater<>> ready;
  for (OpId v = 0; v < static_cast<OpId>(num_ops); ++v) {
    if (waits_for[v] == 0) ready.push(v);
  }
  std::vector<OpId> sorted;
  while (!ready.empty()) {
    const OpId v = ready.top();
    ready.pop();
    sorted.push_back(v);
    for (const OpId u : next[v]) {
      if (--waits_for[u] == 0) ready.push(u);
    }
  }
  if (sorted.size() < num_ops) return std::nullopt;
  return sorted;
}

// All that keeps its order: data flow and hazards.
Edges PrecedenceOf(const Program& program) {
  Edges edges = OrderEdges(program);
  const std::vector<OpId> makers = MakersOf(program);
  for (OpId v = 0; v < static_cast<OpId>(program.ops.size()); ++v) {
    for (const OpId u : program.ops[v].makers) edges.emplace_back(u, v);
    for (const BufferId b : program.ops[v].reads) {
      if (makers[b] != sched::kNoOp) edges.emplace_back(makers[b], v);
    }
  }
  return edges;
}

// The program with these ops in this order. `root_of`: of each buffer the one that it is in.
Edited Rebuilt(const Program& program, std::vector<OpId> order,
               const std::vector<BufferId>& root_of, const Edges& added) {
  std::vector<OpId> place(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<OpId>(i);
  Edited result;
  result.new_buffers.assign(program.buffers.size(), -1);
  std::vector<BufferId>& new_of = result.new_buffers;
  for (std::size_t b = 0; b < root_of.size(); ++b) {
    if (root_of[b] != static_cast<BufferId>(b)) continue;
    new_of[b] = static_cast<BufferId>(result.program.buffers.size());
    result.program.buffers.push_back(program.buffers[b]);
  }
  for (std::size_t b = 0; b < root_of.size(); ++b) {
    new_of[b] = new_of[root_of[b]];
    result.program.buffers[new_of[b]].kept |= program.buffers[b].kept;
  }
  const auto is_gone = [&](BufferId b) { return root_of[b] != b; };
  for (const OpId v : order) {
    Op op = program.ops[v];
    for (OpId& u : op.makers) u = place[u];
    std::erase_if(op.writes, is_gone);
    for (BufferId& b : op.reads) b = new_of[b];
    for (BufferId& b : op.writes) b = new_of[b];
    result.program.ops.push_back(std::move(op));
  }
  for (const auto& [earlier, later] : added) {
    result.program.ops[place[later]].makers.push_back(place[earlier]);
  }
  for (const Conflict& conflict : program.conflicts) {
    result.program.conflicts.push_back(
        {place[conflict.earlier], place[conflict.later], conflict.by_statistics});
  }
  for (std::size_t i = 0; i < program.overwritable.size(); ++i) {
    const Overwrite& overwrite = program.overwritable[i];
    if (is_gone(overwrite.result)) continue;
    Overwrite& left = result.program.overwritable.emplace_back(overwrite);
    left.op = place[left.op];
    left.result = new_of[left.result];
    left.argument = new_of[left.argument];
    for (OpId& v : left.others) v = place[v];
    result.old_overwritable.push_back(i);
  }
  result.old_ops = std::move(order);
  return result;
}

struct Relaxation {
  Program program;
  std::vector<OpId> op_of;  // the op that each is, or kNoOp: a second step
};

// Splits the ops that make these: see RELAXATION in the header.
Relaxation Relaxed(const Program& program, const std::vector<char>& is_open) {
  Relaxation relaxed;
  relaxed.program.buffers = program.buffers;
  std::vector<OpId> place;
  for (std::size_t v = 0; v < program.ops.size(); ++v) {
    const Op& op = program.ops[v];
    place.push_back(static_cast<OpId>(relaxed.program.ops.size()));
    Op first = op, second{.name = op.name + "/result", .oper = op.oper, .makers = {place.back()}};
    for (OpId& u : first.makers) u = place[u];
    for (const BufferId b : op.writes) {
      if (is_open[b]) second.writes.push_back(b);
    }
    std::erase_if(first.writes, [&](BufferId b) { return is_open[b]; });
    relaxed.program.ops.push_back(std::move(first));
    relaxed.op_of.push_back(static_cast<OpId>(v));
    if (second.writes.empty()) continue;
    relaxed.program.ops.push_back(std::move(second));
    relaxed.op_of.push_back(sched::kNoOp);
  }
  for (const Conflict& conflict : program.conflicts) {
    relaxed.program.conflicts.push_back(
        {place[conflict.earlier], place[conflict.later], conflict.by_statistics});
  }
  return relaxed;
}

// The highest of the ops' own bounds: what is alive in the cheapest state in which an op can run,
// less what it would overwrite. See BOUND in the header. Ops by falling hill in an order, as long
// as that can help: one flow each.
std::int64_t BoundOfOps(const sched::Graph& graph, const sched::Order& order,
                        const std::vector<char>& is_open, sched::Budget budget) {
  const sched::Profile profile = sched::Simulate(graph, order);
  std::vector<std::int64_t> open_bytes(order.size(), 0);
  std::vector<std::pair<std::int64_t, OpId>> hills;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const OpId v = order[i];
    for (const BufferId b : graph.op(v).writes) {
      if (is_open[b]) open_bytes[v] += graph.buffer(b).size_bytes;
    }
    hills.emplace_back(profile.hill_bytes[i] - open_bytes[v], v);
  }
  std::ranges::sort(hills, std::greater<>());
  std::int64_t best_bytes = 0;
  for (const auto& [hill_bytes, v] : hills) {
    if (hill_bytes <= best_bytes) break;
    const std::int64_t bound_bytes = sched::ClosureBound(graph, v, budget).bytes - open_bytes[v];
    best_bytes = std::max(best_bytes, bound_bytes);
  }
  return best_bytes;
}

// Of the budget in seconds, for each plan below the root.
constexpr double kShareOfANode = 1.0 / 16;

// Branch and bound over the choices of a program; they are named by places in its `overwritable`.
class Chooser {
 public:
  Chooser(const Program& program, const sched::PlanOptions& options)
      : program_(program), options_(options), part_(options), readers_(ReadersOf(program)) {
    part_.time_budget_seconds *= kShareOfANode;
  }

  struct Found {
    std::vector<std::size_t> choices;
    Edited edited;
    sched::Plan plan;
  };

  Found Run(int most_nodes) {
    Decisions none;
    none.is_closed.assign(program_.overwritable.size(), 0);
    for (std::size_t i = 0; i < program_.overwritable.size(); ++i) {
      none.is_closed[i] = !IsPossible(program_, program_.overwritable[i]);
    }
    std::vector<char> is_open(program_.buffers.size(), 0);
    for (std::size_t i = 0; i < none.is_closed.size(); ++i) {
      if (!none.is_closed[i]) is_open[program_.overwritable[i].result] = 1;
    }
    Visit(std::move(none));
    is_root_ = false;
    const sched::Graph graph = Lower(program_);
    const std::int64_t bound_of_ops_bytes =
        BoundOfOps(graph, graph.OriginalOrder(), is_open,
                   sched::Budget(options_.time_budget_seconds, options_.search_memory_bytes));
    for (int nodes = 1; nodes < most_nodes && !open_.empty() && !IsDone(); nodes += 2) {
      Node node = open_.top();
      const std::int64_t least_bytes = std::max(node.bound_bytes, bound_of_ops_bytes);
      if (least_bytes >= best_.plan.peak_bytes) break;
      open_.pop();
      Decisions with = node.decisions, without = std::move(node.decisions);
      with.done.push_back(node.branch);
      with.is_closed[node.branch] = without.is_closed[node.branch] = 1;
      Visit(std::move(with));
      Visit(std::move(without));
    }
    if (!open_.empty()) bound_bytes_ = std::min(bound_bytes_, open_.top().bound_bytes);
    bound_bytes_ = std::max(bound_bytes_, bound_of_ops_bytes);
    sched::Plan& plan = best_.plan;
    if (bound_bytes_ < plan.lower_bound_bytes) {
      plan.lower_bound_bytes = bound_bytes_;
      plan.proof = sched::Proof::kNone;
    } else if (bound_bytes_ >= plan.peak_bytes && !plan.is_optimal()) {
      plan.lower_bound_bytes = plan.peak_bytes;  // by other choices' bounds and by this one's
      plan.proof = sched::Proof::kSearch;
    }
    plan.seconds = seconds_;
    plan.clock_stopped = clock_stopped_;
    return std::move(best_);
  }

 private:
  struct Decisions {
    std::vector<std::size_t> done;
    std::vector<char> is_closed;  // per choice: done, excluded, or impossible
  };
  struct Node {
    std::int64_t bound_bytes;
    Decisions decisions;
    std::size_t branch;
    bool operator<(const Node& other) const { return bound_bytes > other.bound_bytes; }
  };

  bool IsDone() const {
    return options_.memory_budget_bytes && best_.plan.peak_bytes <= *options_.memory_budget_bytes;
  }

  // The plans of the root, where all choices are open, get the whole budget each: it often ends
  // there.
  sched::Plan Plan(const sched::Graph& graph) {
    sched::Plan plan = sched::MakePlan(graph, is_root_ ? options_ : part_);
    seconds_ += plan.seconds;
    clock_stopped_ |= plan.clock_stopped;
    return plan;
  }

  // Plans the program with what is decided, and bounds what is open.
  void Visit(Decisions decisions) {
    const std::optional<Edited> decided = WithOverwrites(program_, decisions.done);
    if (!decided) return;  // no order has these choices
    Close(decisions);
    const std::int64_t decided_bound_bytes = Offer(decisions.done, *decided);
    std::vector<char> is_open(decided->program.buffers.size(), 0);
    for (std::size_t i = 0; i < decisions.is_closed.size(); ++i) {
      const BufferId result = program_.overwritable[i].result;
      if (!decisions.is_closed[i]) is_open[decided->new_buffers[result]] = 1;
    }
    if (std::ranges::count(is_open, 1) == 0) {
      bound_bytes_ = std::min(bound_bytes_, decided_bound_bytes);
      return;
    }
    const Relaxation relaxed = Relaxed(decided->program, is_open);
    const sched::Plan plan = Plan(Lower(relaxed.program));
    const std::size_t branch = Follow(decisions, *decided, relaxed, plan.order);
    open_.push({plan.lower_bound_bytes, std::move(decisions), branch});
  }

  // A result is written once, and an argument overwritten once.
  void Close(Decisions& decisions) const {
    for (const std::size_t done : decisions.done) {
      for (std::size_t i = 0; i < decisions.is_closed.size(); ++i) {
        const Overwrite &a = program_.overwritable[done], &b = program_.overwritable[i];
        if (a.result == b.result || a.argument == b.argument) decisions.is_closed[i] = 1;
      }
    }
  }

  // Makes the choices that an order of the relaxed program makes possible. Returns the first that
  // it does not, to decide on it next, or else the first.
  std::size_t Follow(Decisions decisions, const Edited& decided, const Relaxation& relaxed,
                     const sched::Order& order) {
    std::vector<std::int32_t> when(program_.ops.size(), 0);
    for (std::size_t i = 0; i < order.size(); ++i) {
      const OpId v = relaxed.op_of[order[i]];
      if (v != sched::kNoOp) when[decided.old_ops[v]] = static_cast<std::int32_t>(i);
    }
    std::optional<std::size_t> first, undone;
    bool has_more = false;
    for (std::size_t i = 0; i < decisions.is_closed.size(); ++i) {
      if (decisions.is_closed[i]) continue;
      if (!first) first = i;
      const Overwrite& choice = program_.overwritable[i];
      const bool is_last = std::ranges::all_of(OthersOf(choice, readers_),
                                               [&](OpId v) { return when[v] < when[choice.op]; });
      if (is_last) {
        decisions.done.push_back(i);
        Close(decisions);
        has_more = true;
      } else if (!undone) {
        undone = i;
      }
    }
    if (has_more) {
      if (const auto followed = WithOverwrites(program_, decisions.done))
        Offer(decisions.done, *followed);
    }
    return undone.value_or(*first);
  }

  // Returns the bound of the program with these choices.
  std::int64_t Offer(const std::vector<std::size_t>& choices, const Edited& edited) {
    sched::Plan plan = Plan(Lower(edited.program));
    const std::int64_t bound_bytes = plan.lower_bound_bytes;
    if (!has_plan_ || plan.peak_bytes < best_.plan.peak_bytes) {
      has_plan_ = true;
      best_ = {choices, edited, std::move(plan)};
    }
    return bound_bytes;
  }

  const Program& program_;
  const sched::PlanOptions& options_;
  sched::PlanOptions part_;
  const std::vector<std::vector<OpId>> readers_;
  std::priority_queue<Node> open_;
  bool is_root_ = true;
  bool has_plan_ = false;
  Found best_;
  // Of all choices that were looked at to their end.
  std::int64_t bound_bytes_ = std::numeric_limits<std::int64_t>::max();
  double seconds_ = 0;
  bool clock_stopped_ = false;
};

}  // namespace

std::optional<Edited> WithOverwrites(const Program& program,
                                     std::span<const std::size_t> overwrites) {
  const std::vector<std::vector<OpId>> readers = ReadersOf(program);
  std::vector<BufferId> root_of(program.buffers.size());
  std::iota(root_of.begin(), root_of.end(), 0);
  Edges added;
  for (const std::size_t i : overwrites) {
    const Overwrite& overwrite = program.overwritable[i];
    root_of[overwrite.result] = overwrite.argument;
    for (const OpId v : OthersOf(overwrite, readers)) added.emplace_back(v, overwrite.op);
    for (const OpId v : readers[overwrite.result]) added.emplace_back(overwrite.op, v);
  }
  for (BufferId& root : root_of) {
    while (root_of[root] != root) root = root_of[root];
  }
  Edges edges = PrecedenceOf(program);
  edges.insert(edges.end(), added.begin(), added.end());
  std::optional<std::vector<OpId>> order = Sorted(program.ops.size(), edges);
  if (!order) return std::nullopt;
  return Rebuilt(program, std::move(*order), root_of, added);
}

std::vector<std::size_t> ForcedOverwrites(const Program& program) {
  const std::vector<std::vector<OpId>> readers = ReadersOf(program);
  std::vector<std::vector<OpId>> before(program.ops.size());
  for (const auto& [earlier, later] : PrecedenceOf(program)) before[later].push_back(earlier);
  std::vector<char> is_taken(program.buffers.size(), 0), is_made(program.buffers.size(), 0);
  std::vector<std::int32_t> seen_by(program.ops.size(), -1);
  std::vector<std::size_t> forced;
  for (std::size_t i = 0; i < program.overwritable.size(); ++i) {
    const Overwrite& overwrite = program.overwritable[i];
    if (!IsPossible(program, overwrite) || is_taken[overwrite.argument] ||
        is_made[overwrite.result]) {
      continue;
    }
    const std::vector<OpId> others = OthersOf(overwrite, readers);
    const OpId first = others.empty() ? overwrite.op : std::ranges::min(others);
    // All ancestors of the op that may be among the others: none of these is older than the first.
    std::vector<OpId> left{overwrite.op};
    seen_by[overwrite.op] = static_cast<std::int32_t>(i);
    while (!left.empty()) {
      const OpId v = left.back();
      left.pop_back();
      for (const OpId u : before[v]) {
        if (u < first || seen_by[u] == static_cast<std::int32_t>(i)) continue;
        seen_by[u] = static_cast<std::int32_t>(i);
        left.push_back(u);
      }
    }
    const bool is_forced = std::ranges::all_of(
        others, [&](OpId v) { return seen_by[v] == static_cast<std::int32_t>(i); });
    if (!is_forced) continue;
    is_taken[overwrite.argument] = is_made[overwrite.result] = 1;
    forced.push_back(i);
  }
  return forced;
}

OverwritePlan PlanOverwrites(const Program& program, const sched::PlanOptions& options,
                             int most_nodes) {
  std::vector<std::size_t> done = ForcedOverwrites(program);
  // They add no edge that was not there, so there is such a program, in the same order.
  Edited base = *WithOverwrites(program, done);
  Chooser::Found found = Chooser(base.program, options).Run(most_nodes);
  for (const std::size_t i : found.choices) done.push_back(base.old_overwritable[i]);
  found.edited.old_ops = base.ToOldOps(std::move(found.edited.old_ops));
  for (BufferId& b : base.new_buffers) b = found.edited.new_buffers[b];
  for (std::size_t& i : found.edited.old_overwritable) i = base.old_overwritable[i];
  found.edited.new_buffers = std::move(base.new_buffers);
  return {std::move(done), std::move(found.edited), std::move(found.plan)};
}

}  // namespace torch_ext::program
