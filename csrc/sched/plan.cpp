#include "sched/plan.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "sched/bound.h"
#include "sched/budget.h"
#include "sched/decompose.h"
#include "sched/displacement.h"
#include "sched/orders.h"
#include "sched/search.h"
#include "sched/simulate.h"

namespace torch_ext::sched {
namespace {

// Looks for ever better orders of one block, a stage at a time, from cheap to dear.
class BlockPlanner {
 public:
  BlockPlanner(Slice slice, Budget& budget)
      : slice_(std::move(slice)), budget_(budget), order_(graph().OriginalOrder()) {
    original_peak_bytes_ = peak_bytes_ = PeakBytes(graph(), order_);
  }

  const Graph& graph() const { return slice_.graph; }
  const Order& order() const { return order_; }
  std::int64_t original_peak_bytes() const { return original_peak_bytes_; }
  std::int64_t peak_bytes() const { return peak_bytes_; }
  std::int64_t bound_bytes() const { return bound_bytes_; }
  const std::string& method() const { return method_; }
  const std::string& proof() const { return proof_; }
  bool is_optimal() const { return bound_bytes_ == peak_bytes_; }
  bool is_finished() const { return is_optimal() || stage_ == kNumStages || !budget_.HasWork(); }

  // The bottleneck in ids of this block's graph; Bound() must have run.
  const OpBound& bottleneck() const { return closure_; }
  const Slice& slice() const { return slice_; }

  void Bound() {
    if (closure_.op != kNoOp || graph().num_ops() == 0) return;
    closure_ = BestClosureBound(graph(), order_, budget_);
    RaiseBound(closure_.bytes, "closure");
  }

  // The next stage. Peaks up to `floor_bytes` are as good as any: something else is as high.
  void Improve(std::int64_t floor_bytes) {
    Bound();
    if (is_finished()) return;
    const std::int64_t floor = std::max(floor_bytes, bound_bytes_);
    switch (stage_++) {
      case 0:
        Offer(DepthFirstOrder(graph()), "depth-first");
        Offer(GreedyOrder(graph(), Direction::kForward, budget_), "greedy");
        Offer(GreedyOrder(graph(), Direction::kBackward, budget_), "greedy");
        break;
      case 1:
        Beam(8, floor);
        break;
      case 2:
        Beam(64, floor);
        break;
      // One direction may need a hundredth of the other's work, and nobody knows which: a little
      // for each before more for either.
      case 3:
        Exhaust(Direction::kForward, floor, budget_.work_left() / 16);
        break;
      case 4:
        Exhaust(Direction::kBackward, floor, budget_.work_left() / 16);
        break;
      case 5:
        Exhaust(Direction::kForward, floor, budget_.work_left() / 4);
        break;
      case 6:
        Exhaust(Direction::kBackward, floor, budget_.work_left() / 3);
        break;
      case 7:
        Beam(512, floor);
        break;
      default:
        throw std::logic_error("BlockPlanner has no such stage");
    }
  }

  // Replaces the order by one closer to the original with no hill above `limit_bytes`.
  void Approach(std::int64_t limit_bytes, Budget& budget) {
    order_ = ClosestOrder(graph(), std::move(order_), limit_bytes, budget);
    peak_bytes_ = PeakBytes(graph(), order_);
    if (MovedOps(order_) == 0) method_ = "original";
    if (peak_bytes_ > bound_bytes_) proof_.clear();
  }

 private:
  static constexpr int kNumStages = 8;

  void Offer(const std::optional<Order>& candidate, const char* method) {
    if (!candidate) return;
    const std::int64_t peak = PeakBytes(graph(), *candidate);
    if (peak >= peak_bytes_) return;
    order_ = *candidate;
    peak_bytes_ = peak;
    method_ = method;
  }

  void Beam(std::int32_t width, std::int64_t floor) {
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      if (peak_bytes_ <= floor) return;
      Offer(BeamOrder(graph(), direction, width, floor, budget_), "beam");
    }
  }

  void Exhaust(Direction direction, std::int64_t floor, std::int64_t work) {
    if (peak_bytes_ <= floor) return;
    Budget part = budget_.Part(work);
    const SearchResult result = Search(graph(), direction, floor, peak_bytes_, part);
    budget_.Spend(part.spent());
    Offer(result.order, "search");
    // Hills up to `floor` were all the same to the search, so it proves only what is above.
    if (result.bound_bytes > floor) RaiseBound(result.bound_bytes, "search");
    if (result.exhausted) stage_ = kNumStages;
  }

  void RaiseBound(std::int64_t bytes, const char* proof) {
    if (bytes > bound_bytes_) {
      bound_bytes_ = bytes;
      proof_ = proof;
    }
  }

  Slice slice_;
  Budget& budget_;
  Order order_;
  std::int64_t original_peak_bytes_ = 0;
  std::int64_t peak_bytes_ = 0;
  std::int64_t bound_bytes_ = 0;
  OpBound closure_;
  std::string method_ = "original";
  std::string proof_ = "closure";  // of the bound 0, should the peak be 0
  int stage_ = 0;
};

// What one pass over the graph arrives at; `order` is in ids of the graph it was given.
struct Pass {
  Order order;
  std::int64_t peak_bytes = 0;
  std::int64_t bound_bytes = 0;
  std::string method = "original";
  std::string proof;
  std::vector<Region> regions;
  bool clock_stopped = false;

  void RaiseBound(std::int64_t bytes, const std::string& why) {
    if (bytes <= bound_bytes) return;
    bound_bytes = bytes;
    proof = why;
  }
};

// A pass gets half of the planning budget, and of that an eighth, clock included, is for the way
// back to the original order: a search that spends its share must not leave ops moved without need.
Budget SearchBudget(const PlanOptions& options) {
  return Budget(options.time_budget_seconds * 7 / 16, options.search_memory_bytes);
}
Budget WayBackBudget(const PlanOptions& options) {
  return Budget(options.time_budget_seconds / 16, options.search_memory_bytes);
}

bool MeetsBudget(const PlanOptions& options, std::int64_t peak_bytes) {
  return options.memory_budget_bytes && peak_bytes <= *options.memory_budget_bytes;
}

// Appends a region; ops that stand alone between series cuts are counted together.
void AddRegion(std::vector<Region>& regions, Region region) {
  if (region.num_ops == 1) {
    region.kind = "series";
    if (!regions.empty() && regions.back().kind == "series") {
      Region& last = regions.back();
      ++last.num_ops;
      last.peak_bytes = std::max(last.peak_bytes, region.peak_bytes);
      return;
    }
  }
  regions.push_back(std::move(region));
}

// Series blocks on their own: the peak of the graph is that of its worst block, so work goes to the
// block that is worst at the moment, until it cannot be lowered; what that leaves is the result,
// and every other block stays as close to the original as this peak allows.
Pass PlanAll(const Graph& graph, const PlanOptions& options, Budget& budget) {
  const Order original = graph.OriginalOrder();
  const Slicer slicer(graph, original);
  std::vector<std::int32_t> ends = SeriesCuts(graph, original);
  ends.push_back(graph.num_ops());
  std::vector<BlockPlanner> blocks;
  blocks.reserve(ends.size());
  for (std::size_t i = 0; i < ends.size(); ++i) {
    blocks.emplace_back(slicer.Cut(i == 0 ? 0 : ends[i - 1], ends[i]), budget);
  }
  const auto worst_block = [&]() -> BlockPlanner& {
    return *std::ranges::max_element(blocks, {}, &BlockPlanner::peak_bytes);
  };

  Pass pass;
  while (true) {
    BlockPlanner& block = worst_block();
    block.Bound();
    pass.RaiseBound(block.bound_bytes(), block.proof());
    if (block.peak_bytes() <= pass.bound_bytes || MeetsBudget(options, block.peak_bytes()) ||
        block.is_finished()) {
      break;
    }
    block.Improve(pass.bound_bytes);
  }

  const std::int64_t limit_bytes = worst_block().peak_bytes();
  for (BlockPlanner& block : blocks) {
    if (block.peak_bytes() > pass.bound_bytes) block.Bound();
    pass.RaiseBound(block.bound_bytes(), block.proof());
  }
  Budget way_back = WayBackBudget(options);
  for (BlockPlanner& block : blocks) {
    block.Approach(limit_bytes, way_back);
    for (OpId v : block.order()) pass.order.push_back(block.slice().ops[v]);
    AddRegion(pass.regions, {"prime", block.graph().num_ops(), block.method(),
                             block.is_optimal() ? block.proof() : "", block.peak_bytes()});
  }
  pass.clock_stopped = budget.clock_stopped() || way_back.clock_stopped();
  // The way back may have lowered the peak by chance, where it was not yet the lowest.
  pass.peak_bytes = worst_block().peak_bytes();
  pass.method = std::ranges::max_element(blocks, {}, &BlockPlanner::original_peak_bytes)->method();
  return pass;
}

// The positions [begin, end) of the series block that position `at` lies in.
std::pair<std::int32_t, std::int32_t> BlockAround(const Graph& graph, const Order& order,
                                                  std::int32_t at) {
  const std::vector<std::int32_t> cuts = SeriesCuts(graph, order);
  const auto next = std::ranges::upper_bound(cuts, at);
  return {next == cuts.begin() ? 0 : *(next - 1), next == cuts.end() ? graph.num_ops() : *next};
}

// One window around the peak of `order` at a time, from small to large inside its series block.
// Returns the method that lowered it, empty if no window could be lowered.
std::string LowerPeakWindow(const Graph& graph, Order& order, Budget& budget) {
  const Profile profile = Simulate(graph, order);
  const std::int32_t at = profile.PeakPosition();
  const std::int64_t peak = profile.PeakBytes();
  if (ClosureBound(graph, order[at], budget).bytes == peak) return {};
  const auto [first, last] = BlockAround(graph, order, at);
  const Slicer slicer(graph, order);

  for (std::int32_t radius = 4; budget.HasWork(); radius *= 2) {
    const std::int32_t begin = std::max(first, at - radius);
    const std::int32_t end = std::min(last, at + radius + 1);
    std::int64_t outside_bytes = 0;
    for (std::int32_t i = 0; i < graph.num_ops(); ++i) {
      if (i < begin || i >= end) outside_bytes = std::max(outside_bytes, profile.hill_bytes[i]);
    }
    BlockPlanner window(slicer.Cut(begin, end), budget);
    const std::int64_t floor = std::min(outside_bytes, peak - 1);
    while (!window.is_finished() && window.peak_bytes() > floor) window.Improve(floor);
    if (window.peak_bytes() < peak) {
      window.Approach(std::max(floor, window.peak_bytes()), budget);
      for (std::size_t i = 0; i < window.order().size(); ++i) {
        order[begin + static_cast<std::int32_t>(i)] = window.slice().ops[window.order()[i]];
      }
      return window.method();
    }
    if (begin == first && end == last) break;
  }
  return {};
}

Pass PlanBottleneck(const Graph& graph, const PlanOptions& options, Budget& budget) {
  Pass pass;
  pass.order = graph.OriginalOrder();
  while (!MeetsBudget(options, PeakBytes(graph, pass.order))) {
    const std::string method = LowerPeakWindow(graph, pass.order, budget);
    if (method.empty()) break;
    pass.method = method;
  }
  const std::int64_t limit_bytes = PeakBytes(graph, pass.order);
  Budget way_back = WayBackBudget(options);
  pass.order = ClosestOrder(graph, std::move(pass.order), limit_bytes, way_back);
  pass.clock_stopped = budget.clock_stopped() || way_back.clock_stopped();
  pass.peak_bytes = PeakBytes(graph, pass.order);  // may have fallen by chance
  if (MovedOps(pass.order) == 0) pass.method = "original";
  pass.RaiseBound(BestClosureBound(graph, pass.order, budget).bytes, "closure");
  const Profile profile = Simulate(graph, pass.order);
  std::vector<std::int32_t> ends = SeriesCuts(graph, pass.order);
  ends.push_back(graph.num_ops());
  std::int32_t begin = 0;
  for (std::int32_t end : ends) {
    bool moved = false;
    for (std::int32_t i = begin; i < end; ++i) moved |= pass.order[i] != i;
    AddRegion(pass.regions, {"prime", end - begin, moved ? pass.method : "original", "",
                             *std::max_element(profile.hill_bytes.begin() + begin,
                                               profile.hill_bytes.begin() + end)});
    begin = end;
  }
  return pass;
}

// Passes until one gains nothing, each starting from the order of the one before, so that planning
// the result again changes nothing.
void RunPasses(const Graph& graph, const PlanOptions& options, Plan& plan) {
  while (true) {
    Budget budget = SearchBudget(options);
    const Slice start = Slicer(graph, plan.order).Cut(0, graph.num_ops());
    const Pass pass = options.scope == Scope::kAll ? PlanAll(start.graph, options, budget)
                                                   : PlanBottleneck(start.graph, options, budget);
    plan.clock_stopped |= pass.clock_stopped;
    if (plan.regions.empty()) plan.regions = pass.regions;
    if (pass.bound_bytes > plan.lower_bound_bytes) {
      plan.lower_bound_bytes = pass.bound_bytes;
      plan.proof = pass.proof;
    }
    if (pass.peak_bytes >= plan.peak_bytes) return;
    Order order;
    for (OpId v : pass.order) order.push_back(start.ops[v]);
    plan.order = std::move(order);
    plan.peak_bytes = pass.peak_bytes;
    plan.method = pass.method;
    plan.regions = pass.regions;
    if (plan.is_optimal() || MeetsBudget(options, plan.peak_bytes)) return;
  }
}

Bottleneck FindBottleneck(const Graph& graph, const Plan& plan) {
  Budget budget(1.0);
  OpBound bound = BestClosureBound(graph, plan.order, budget);
  return {bound.op, bound.bytes, std::move(bound.buffers)};
}

}  // namespace

Plan MakePlan(const Graph& graph, const PlanOptions& options) {
  graph.Validate();
  const auto started = std::chrono::steady_clock::now();
  Plan plan;
  plan.order = graph.OriginalOrder();
  plan.original_peak_bytes = plan.peak_bytes = PeakBytes(graph, plan.order);
  plan.method = "original";
  plan.proof = "closure";  // of the bound 0, should the peak be 0
  if (graph.num_ops() == 0) {
    plan.lower_bound_bytes = plan.peak_bytes;
  } else {
    RunPasses(graph, options, plan);
    plan.bottleneck = FindBottleneck(graph, plan);
  }
  if (!plan.is_optimal()) plan.proof.clear();
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
