#include "sched/arena_order.h"

#include <algorithm>
#include <utility>

#include "sched/addresses.h"
#include "sched/random.h"
#include "sched/simulate.h"

namespace torch_ext::sched {
namespace {

bool OutlivesOrPrecedes(const Buffer& buffer) {
  return buffer.is_input() || buffer.kept;
}

// The graph as an arena weighs it, see ArenaBoundBytes.
Graph WeighedForArena(const Graph& graph) {
  Graph weighed;
  for (const Buffer& buffer : graph.buffers()) {
    const std::int64_t bytes = OutlivesOrPrecedes(buffer) ? 0 : Aligned(buffer.size_bytes);
    if (buffer.is_input()) {
      weighed.AddInput(buffer.name, bytes, buffer.kept);
    } else {
      weighed.AddBuffer(buffer.name, bytes, buffer.kept);
    }
  }
  for (const Op& op : graph.ops()) {
    std::int64_t workspace = op.workspace_bytes;
    for (const BufferId b : op.writes) {
      const Buffer& buffer = graph.buffer(b);
      if (!buffer.kept) workspace -= Aligned(buffer.size_bytes) - buffer.size_bytes;
    }
    weighed.AddOp(op.name, op.reads, op.writes, std::max<std::int64_t>(workspace, 0), op.after);
  }
  return weighed;
}

Plan PlanForArena(const Graph& graph, PlanOptions options) {
  options.memory_budget_bytes.reset();
  Plan plan = MakePlan(WeighedForArena(graph), options);
  plan.lower_bound_bytes = Aligned(plan.lower_bound_bytes);  // as the height of every placement
  return plan;
}

class Walk {
 public:
  Walk(const Graph& graph, Order order, std::int64_t limit_bytes)
      : graph_(graph), limit_bytes_(limit_bytes), order_(std::move(order)) {
    height_bytes_ = QuickHeight(order_);
  }

  const Order& order() const { return order_; }
  // In units of work: a placement looks, for each buffer, at those below it.
  std::int64_t Work() const {
    const auto n = static_cast<std::int64_t>(order_.size());
    return 4 * n + n * n / 32;
  }

  // One op moves, if it may. Has anything changed?
  bool Step() {
    const std::vector<std::int32_t> positions = PositionsOf(order_);
    const std::int32_t from = random_.Below(graph_.num_ops());
    const Op& op = graph_.op(order_[from]);
    std::int32_t first = 0, last = graph_.num_ops() - 1;
    for (const OpId v : op.predecessors) first = std::max(first, positions[v] + 1);
    for (const OpId v : op.successors) last = std::min(last, positions[v] - 1);
    const std::int32_t to = first + random_.Below(last - first + 1);
    if (to == from) return false;
    Order next = order_;
    const auto at = [&](std::int32_t position) { return next.begin() + position; };
    if (to < from) {
      std::rotate(at(to), at(from), at(from + 1));
    } else {
      std::rotate(at(from), at(from + 1), at(to + 1));
    }
    if (PeakBytes(graph_, next) > limit_bytes_) return false;
    const std::int64_t height = QuickHeight(next);
    if (height > height_bytes_) return false;
    height_bytes_ = height;
    order_ = std::move(next);
    return true;
  }

 private:
  std::int64_t QuickHeight(const Order& order) const {
    Budget little = Budget(1).Part(1);  // some orders of placing, no search
    return PlanAddresses(LifetimesAlong(graph_, order), little).height_bytes;
  }

  const Graph& graph_;
  std::int64_t limit_bytes_;
  Order order_;
  std::int64_t height_bytes_ = 0;
  Random random_{1};
};

}  // namespace

std::vector<ArenaBlock> BlocksAlong(const Graph& graph, std::span<const OpId> order) {
  const std::vector<std::int32_t> positions = PositionsOf(order);
  std::vector<ArenaBlock> blocks;
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    const Buffer& buffer = graph.buffer(b);
    if (OutlivesOrPrecedes(buffer) || buffer.size_bytes == 0) continue;
    const std::int32_t begin = positions[buffer.producer];
    std::int32_t last = begin;
    for (const OpId user : buffer.users) last = std::max(last, positions[user]);
    blocks.push_back({{Aligned(buffer.size_bytes), begin, last + 1}, b, kNoOp});
  }
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const std::int64_t workspace = graph.op(v).workspace_bytes;
    if (workspace > 0) {
      blocks.push_back({{Aligned(workspace), positions[v], positions[v] + 1}, -1, v});
    }
  }
  return blocks;
}

std::vector<Lifetime> LifetimesOf(std::span<const ArenaBlock> blocks) {
  std::vector<Lifetime> lifetimes;
  for (const ArenaBlock& block : blocks) lifetimes.push_back(block.lifetime);
  return lifetimes;
}

std::vector<Lifetime> LifetimesAlong(const Graph& graph, std::span<const OpId> order) {
  return LifetimesOf(BlocksAlong(graph, order));
}

std::int64_t ArenaBoundBytes(const Graph& graph, const PlanOptions& options) {
  return PlanForArena(graph, options).lower_bound_bytes;
}

ArenaOrder LowerArena(const Graph& graph, const Order& order, const PlanOptions& options) {
  const std::int64_t limit_bytes = PeakBytes(graph, order);
  const Plan weighed = PlanForArena(graph, options);
  ArenaOrder best{.order = order, .bound_bytes = weighed.lower_bound_bytes};
  Budget budget(options.time_budget_seconds);

  const auto planned_height = [&](const Order& candidate) {
    Budget part = budget.Part(std::max<std::int64_t>(budget.work_left() / 32, 1));
    const std::int64_t height = PlanAddresses(LifetimesAlong(graph, candidate), part).height_bytes;
    budget.Spend(part.spent());
    return height;
  };
  const auto consider = [&](const Order& candidate) {
    const std::int64_t height = planned_height(candidate);
    if (height >= best.height_bytes) return;
    best.order = candidate;
    best.height_bytes = height;
  };
  best.height_bytes = best.given_height_bytes = planned_height(order);
  if (options.scope == Scope::kBottleneck) return best;
  if (best.height_bytes > best.bound_bytes && PeakBytes(graph, weighed.order) <= limit_bytes) {
    consider(weighed.order);
  }
  if (graph.num_ops() == 0) return best;

  Walk walk(graph, best.order, limit_bytes);
  constexpr std::int32_t kStepsPerLook = 256;
  while (best.height_bytes > best.bound_bytes && budget.HasWork()) {
    bool has_moved = false;
    for (std::int32_t step = 0; step < kStepsPerLook && budget.Spend(walk.Work()); ++step) {
      has_moved |= walk.Step();
    }
    if (has_moved) consider(walk.order());
  }
  return best;
}

}  // namespace torch_ext::sched
