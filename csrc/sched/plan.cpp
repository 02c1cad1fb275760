#include "sched/plan.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <queue>
#include <stdexcept>
#include <utility>

#include "sched/block_planner.h"
#include "sched/bound.h"
#include "sched/budget.h"
#include "sched/decompose.h"
#include "sched/simulate.h"
#include "sched/way_back.h"

namespace torch_ext::sched {
namespace {

// For the way back to the original order, at most a share of the planning budget: a search that
// spends what it is given must not leave ops moved without need.
constexpr double kWayBackShare = 1.0 / 8;
constexpr std::int64_t kWayBackWork = 50'000;
constexpr std::int64_t kWayBackWorkPerOp = 50;
constexpr double kBottleneckSeconds = 0.05;

// What planning arrives at before it is judged.
struct Draft {
  Order order;
  std::int64_t peak_bytes = 0;
  std::int64_t bound_bytes = 0;
  Method method = Method::kOriginal;
  Proof proof = Proof::kClosure;  // of the bound 0, should the peak be 0
  std::vector<Region> regions;
  bool clock_stopped = false;

  void RaiseBound(std::int64_t bytes, Proof why) {
    if (bytes <= bound_bytes) return;
    bound_bytes = bytes;
    proof = why;
  }
};

Budget WayBackBudget(const PlanOptions& options, const Graph& graph) {
  return Budget(options.time_budget_seconds * kWayBackShare, options.search_memory_bytes)
      .Part(kWayBackWork + kWayBackWorkPerOp * graph.num_ops());
}

Budget SearchBudget(const PlanOptions& options, const Graph& graph) {
  const Budget whole(options.time_budget_seconds, options.search_memory_bytes);
  return whole.Part(whole.work_left() - WayBackBudget(options, graph).work_left());
}

bool MeetsBudget(const PlanOptions& options, std::int64_t peak_bytes) {
  return options.memory_budget_bytes && peak_bytes <= *options.memory_budget_bytes;
}

// Appends a region; ops that stand alone between series cuts are counted together.
void AddRegion(std::vector<Region>& regions, Region region) {
  if (region.num_ops == 1) {
    region.kind = RegionKind::kSeries;
    if (!regions.empty() && regions.back().kind == RegionKind::kSeries) {
      Region& last = regions.back();
      ++last.num_ops;
      last.peak_bytes = std::max(last.peak_bytes, region.peak_bytes);
      return;
    }
  }
  regions.push_back(std::move(region));
}

// The part of a graph between two neighbouring series cuts. Most are never worth planning.
struct Block {
  std::int32_t begin, end;  // positions in the original order
  RegionKind kind;
  std::int64_t peak_bytes;
  std::unique_ptr<BlockPlanner> planner;
};

std::vector<Block> CutIntoBlocks(const Graph& graph, bool series_cuts) {
  const Profile profile = Simulate(graph, graph.OriginalOrder());
  const RegionTree tree = FindRegions(graph, /*most_depth=*/1);
  const RegionTree::Node& root = tree.nodes.front();
  std::vector<Block> blocks;
  const auto add = [&](const RegionTree::Node& node) {
    const auto first = profile.hill_bytes.begin();
    const bool is_op = node.kind == RegionTree::Kind::kOp;
    blocks.push_back({node.begin, node.end, is_op ? RegionKind::kSeries : node.kind,
                      *std::max_element(first + node.begin, first + node.end), nullptr});
  };
  if (!series_cuts || root.kind != RegionTree::Kind::kSeries) {
    add(root);
  } else {
    for (std::int32_t i = 0; i < root.num_children; ++i) add(tree.nodes[root.first_child + i]);
  }
  return blocks;
}

// Series blocks on their own: the peak of the graph is that of its worst block, so work goes to the
// block that is worst at the moment, until it cannot be lowered; what that leaves is the result,
// and every other block stays as close to the original as this peak allows.
Draft PlanAll(const Graph& graph, const PlanOptions& options, Budget& budget) {
  const Order original = graph.OriginalOrder();
  const Slicer slicer(graph, original);
  std::vector<Block> blocks = CutIntoBlocks(graph, options.rules.series_cuts);
  const auto is_better = [&](std::size_t a, std::size_t b) {  // ties: the first is worst
    return std::pair(blocks[a].peak_bytes, b) < std::pair(blocks[b].peak_bytes, a);
  };
  std::priority_queue<std::size_t, std::vector<std::size_t>, decltype(is_better)> by_peak(
      is_better);
  for (std::size_t i = 0; i < blocks.size(); ++i) by_peak.push(i);
  const std::size_t first_worst = by_peak.top();

  Draft draft;
  while (true) {
    const std::size_t worst = by_peak.top();
    Block& block = blocks[worst];
    if (!block.planner) {
      block.planner =
          std::make_unique<BlockPlanner>(slicer.Cut(block.begin, block.end), options.rules, budget);
    }
    BlockPlanner& planner = *block.planner;
    planner.Bound();
    draft.RaiseBound(planner.bound_bytes(), planner.proof());
    if (block.peak_bytes <= draft.bound_bytes || MeetsBudget(options, block.peak_bytes) ||
        planner.is_finished()) {
      break;
    }
    planner.Improve(draft.bound_bytes);
    draft.RaiseBound(planner.bound_bytes(), planner.proof());
    by_peak.pop();
    block.peak_bytes = planner.peak_bytes();
    by_peak.push(worst);
    if (by_peak.top() != worst) planner.ReleaseMemory();  // the cap is for all blocks together
  }

  const std::int64_t limit_bytes = blocks[by_peak.top()].peak_bytes;
  Budget way_back = WayBackBudget(options, graph);
  for (Block& block : blocks) {
    Region region{
        .kind = block.kind, .num_ops = block.end - block.begin, .peak_bytes = block.peak_bytes};
    if (block.planner) {
      block.planner->GoBack(limit_bytes, way_back);
      for (OpId v : block.planner->order()) draft.order.push_back(block.planner->slice().ops[v]);
      region.method = block.planner->method();
      if (block.planner->is_optimal()) region.proof = block.planner->proof();
      region.peak_bytes = block.planner->peak_bytes();
    } else {
      for (std::int32_t i = block.begin; i < block.end; ++i) draft.order.push_back(i);
    }
    draft.peak_bytes = std::max(draft.peak_bytes, region.peak_bytes);
    AddRegion(draft.regions, std::move(region));
  }
  draft.method = blocks[first_worst].planner->method();
  draft.clock_stopped = budget.clock_stopped() || way_back.clock_stopped();
  return draft;
}

// The positions [begin, end) of the series block that position `at` lies in.
std::pair<std::int32_t, std::int32_t> BlockAround(const Graph& graph, const Order& order,
                                                  std::int32_t at) {
  const std::vector<std::int32_t> cuts = SeriesCuts(graph, order);
  const auto next = std::ranges::upper_bound(cuts, at);
  return {next == cuts.begin() ? 0 : *(next - 1), next == cuts.end() ? graph.num_ops() : *next};
}

// One window around the peak of `order` at a time, from small to large inside its series block.
// Returns the method that lowered it, nothing if no window could be lowered.
std::optional<Method> LowerPeakWindow(const Graph& graph, Order& order, const Rules& rules,
                                      Budget& budget) {
  const Profile profile = Simulate(graph, order);
  const std::int32_t at = profile.PeakPosition();
  const std::int64_t peak = profile.PeakBytes();
  if (ClosureBound(graph, order[at], budget).bytes == peak) return std::nullopt;
  const auto [first, last] = BlockAround(graph, order, at);
  const Slicer slicer(graph, order);

  for (std::int32_t radius = 4; budget.HasWork(); radius *= 2) {
    const std::int32_t begin = std::max(first, at - radius);
    const std::int32_t end = std::min(last, at + radius + 1);
    std::int64_t outside_bytes = 0;
    for (std::int32_t i = 0; i < graph.num_ops(); ++i) {
      if (i < begin || i >= end) outside_bytes = std::max(outside_bytes, profile.hill_bytes[i]);
    }
    BlockPlanner window(slicer.Cut(begin, end), rules, budget);
    const std::int64_t floor = std::min(outside_bytes, peak - 1);
    while (!window.is_finished() && window.peak_bytes() > floor) window.Improve(floor);
    if (window.peak_bytes() < peak) {
      window.GoBack(std::max(floor, window.peak_bytes()), budget);
      for (std::size_t i = 0; i < window.order().size(); ++i) {
        order[begin + static_cast<std::int32_t>(i)] = window.slice().ops[window.order()[i]];
      }
      return window.method();
    }
    if (begin == first && end == last) break;
  }
  return std::nullopt;
}

Draft PlanBottleneck(const Graph& graph, const PlanOptions& options, Budget& budget) {
  Draft draft;
  draft.order = graph.OriginalOrder();
  while (!MeetsBudget(options, PeakBytes(graph, draft.order))) {
    const auto method = LowerPeakWindow(graph, draft.order, options.rules, budget);
    if (!method) break;
    draft.method = *method;
  }
  const std::int64_t limit_bytes = PeakBytes(graph, draft.order);
  Budget way_back = WayBackBudget(options, graph);
  draft.order = WayBack(graph, std::move(draft.order), limit_bytes, way_back);
  draft.clock_stopped = budget.clock_stopped() || way_back.clock_stopped();
  draft.peak_bytes = PeakBytes(graph, draft.order);  // may have fallen by chance
  if (MovedOps(draft.order) == 0) draft.method = Method::kOriginal;
  draft.RaiseBound(BestClosureBound(graph, draft.order, budget).bytes, Proof::kClosure);
  const std::vector<std::int64_t> hills = Simulate(graph, draft.order).hill_bytes;
  for (const Block& block : CutIntoBlocks(graph, /*series_cuts=*/true)) {
    bool moved = false;
    for (std::int32_t i = block.begin; i < block.end; ++i) moved |= draft.order[i] != i;
    AddRegion(
        draft.regions,
        {block.kind, block.end - block.begin, moved ? draft.method : Method::kOriginal,
         Proof::kNone, *std::max_element(hills.begin() + block.begin, hills.begin() + block.end)});
  }
  return draft;
}

// The op that the bound comes from, if one op's closure is the bound; else the one that comes
// nearest among those the work allows.
Bottleneck FindBottleneck(const Graph& graph, Plan& plan) {
  Budget budget(kBottleneckSeconds);
  OpBound bound = BestClosureBound(graph, plan.order, budget);
  plan.clock_stopped |= budget.clock_stopped();
  return {bound.op, bound.bytes, std::move(bound.buffers)};
}

}  // namespace

Plan MakePlan(const Graph& graph, const PlanOptions& options) {
  graph.Validate();
  const auto started = std::chrono::steady_clock::now();
  Plan plan;
  plan.order = graph.OriginalOrder();
  plan.original_peak_bytes = plan.peak_bytes = PeakBytes(graph, plan.order);
  plan.method = Method::kOriginal;
  plan.proof = Proof::kClosure;  // of the bound 0, should the peak be 0
  if (graph.num_ops() == 0) {
    plan.lower_bound_bytes = plan.peak_bytes;
  } else {
    Budget budget = SearchBudget(options, graph);
    Draft draft = options.scope == Scope::kAll ? PlanAll(graph, options, budget)
                                               : PlanBottleneck(graph, options, budget);
    plan.clock_stopped = draft.clock_stopped;
    plan.lower_bound_bytes = draft.bound_bytes;
    plan.proof = draft.proof;
    plan.regions = std::move(draft.regions);
    if (draft.peak_bytes < plan.peak_bytes) {
      plan.order = std::move(draft.order);
      plan.peak_bytes = draft.peak_bytes;
      plan.method = draft.method;
    }
    plan.bottleneck = FindBottleneck(graph, plan);
  }
  if (!plan.is_optimal()) plan.proof = Proof::kNone;
  plan.moved_ops = MovedOps(plan.order);
  if (options.memory_budget_bytes) plan.budget_met = MeetsBudget(options, plan.peak_bytes);
  if (PeakBytes(graph, plan.order) != plan.peak_bytes ||
      plan.peak_bytes > plan.original_peak_bytes || plan.lower_bound_bytes > plan.peak_bytes) {
    throw std::logic_error("torch_ext: a plan did not pass the judge");
  }
  plan.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return plan;
}

Graph ExtractBottleneck(const Graph& graph) {
  graph.Validate();
  const Order order = graph.OriginalOrder();
  const std::int32_t at = Simulate(graph, order).PeakPosition();
  if (at < 0) return graph;
  const auto [begin, end] = BlockAround(graph, order, at);
  return Slicer(graph, order).Cut(begin, end).graph;
}

}  // namespace torch_ext::sched
