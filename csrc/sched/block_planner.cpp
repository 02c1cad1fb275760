#include "sched/block_planner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "sched/displacement.h"
#include "sched/orders.h"
#include "sched/search.h"
#include "sched/simulate.h"

namespace torch_ext::sched {
namespace {
// Work, in looks. None depends on the budget, so that a larger one continues the same search.
constexpr std::int64_t kFirstBoundWork = 2'000;  // and this per op: a few flows
constexpr std::int64_t kFirstBoundWorkPerOp = 8;
constexpr std::int64_t kRegionWork = 4'000'000;
constexpr std::int64_t kSimpleRulesWork = 8'000'000;  // enough unless very many ops are ready
constexpr std::int64_t kRoundWork = 50'000;
constexpr double kRoundGrowth = 1.5;  // each has so much more
constexpr int kMostRounds = 60;       // no budget reaches it
// Shares of a round.
constexpr double kImprovement = 2;
constexpr double kRestingImprovement = 0.5;  // where its last round changed nothing
constexpr double kPrecedences = 3;
constexpr double kBeam = 0.25;               // each direction
constexpr double kDeciding = 3;              // both directions
constexpr double kDecidingInstead = 0.5;     // ... and so much of what precedences left
constexpr double kNarrowerDirection = 0.85;  // of it
constexpr double kBounding = 0.1;            // each direction
constexpr int kWorthwhileGrowth = 2;         // of the precedences, to start a search again
constexpr int kFirstTighteningRound = 1;
constexpr std::int32_t kMostOpsToTighten = 2'000;
constexpr std::int32_t kMostOpsToSearch = 20'000;  // a state is too large to copy beyond

}  // namespace

BlockPlanner::BlockPlanner(Slice slice, const Rules& rules, Budget& budget)
    : slice_(std::move(slice)),
      rules_(rules),
      budget_(budget),
      order_(graph().OriginalOrder()),
      peak_bytes_(PeakBytes(graph(), order_)) {}

void BlockPlanner::Bound() {
  if (bounds_ || !rules_.closure_bound || graph().num_ops() == 0) return;
  bounds_.emplace(graph());
  Budget part = budget_.Part(kFirstBoundWork + kFirstBoundWorkPerOp * graph().num_ops());
  bounds_->Raise(order_, part);
  budget_.Spend(part.spent());
  RaiseBound(bounds_->best().bytes, "closure");
  // The last op of any order still sees all that is kept.
  std::int64_t kept_bytes = 0;
  for (const Buffer& b : graph().buffers()) kept_bytes += b.kept ? b.size_bytes : 0;
  RaiseBound(std::max(graph().StartBytes(), kept_bytes), "results");
}

void BlockPlanner::Improve(std::int64_t floor_bytes) {
  Bound();
  if (is_finished()) return;
  switch (stage_++) {
    case 0:
      ReduceRegions();
      break;
    case 1:
      RunSimpleRules();
      break;
    case 2:
      Beam(8, std::max(floor_bytes, bound_bytes_), kRoundWork << 2);
      break;
    default:
      Round(std::max(floor_bytes, bound_bytes_));
      break;
  }
}

void BlockPlanner::ReduceRegions() {
  Reduction reduction;
  if (rules_.regions) {
    Budget part = budget_.Part(kRegionWork);
    reduction = Reduce(graph(), FindRegions(graph()), rules_, part);
    budget_.Spend(part.spent());
  } else {
    for (OpId v = 0; v < graph().num_ops(); ++v) {
      reduction.chains.push_back({{v}, {{graph().HillBytes(v), 0, 1}}});
    }
  }
  if (reduction.is_dominant) {
    const Order& order = reduction.chains.front().ops;
    const std::int64_t peak = PeakBytes(graph(), order);
    OfferExpanded(order, peak, "dominant");
    RaiseBound(peak, reduction.has_prime ? "search" : "series-parallel");
    exhausted_ = true;
    return;
  }
  reduced_ = Contract(graph(), reduction.chains);
  reduced_order_ = reduced_.graph.OriginalOrder();
  Offer(reduced_order_, "dominant");
}

void BlockPlanner::RunSimpleRules() {
  const Graph& reduced = reduced_.graph;
  starts_.push_back(reduced.OriginalOrder());
  Budget part = budget_.Part(kSimpleRulesWork);
  const auto offer = [&](std::optional<Order> order, const char* method) {
    if (!order) return;
    Offer(order, method);
    for (const Direction direction : {Direction::kBackward, Direction::kForward}) {
      *order = WithSafeSteps(reduced, direction, *order, part);
      Offer(order, method);
    }
    starts_.push_back(std::move(*order));
  };
  offer(reduced.OriginalOrder(), "safe steps");
  offer(DepthFirstOrder(reduced), "depth-first");
  offer(GreedyOrder(reduced, Direction::kForward, part), "greedy");
  offer(GreedyOrder(reduced, Direction::kBackward, part), "greedy");
  budget_.Spend(part.spent());
}

void BlockPlanner::Beam(std::int32_t width, std::int64_t floor_bytes, std::int64_t work) {
  if (reduced_.graph.num_ops() > kMostOpsToSearch) return;
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    if (peak_bytes_ <= floor_bytes || exhausted_) return;
    Budget part = budget_.Part(work);
    std::optional<Order> order = BeamOrder(searched_graph(), direction, width, floor_bytes, part);
    budget_.Spend(part.spent());
    if (!order) continue;
    if (tightener_) {
      for (OpId& v : *order) v = tightener_->ops()[v];
    }
    Offer(order, "beam");
    if (!improver_) starts_.push_back(std::move(*order));
  }
}

void BlockPlanner::Round(std::int64_t floor_bytes) {
  const std::int64_t left_at_start = budget_.work_left();
  const int round = stage_ - 4;
  const double round_work = kRoundWork * std::pow(kRoundGrowth, std::min(round, kMostRounds));
  const auto share = [&](double part) { return static_cast<std::int64_t>(part * round_work); };
  if (rules_.closure_bound) {
    if (!reduced_bounds_) reduced_bounds_.emplace(reduced_.graph);
    Budget part = budget_.Part(share(1));
    reduced_bounds_->Raise(reduced_order_, part);
    budget_.Spend(part.spent());
    RaiseBound(reduced_bounds_->best().bytes, "closure");
  }
  if (rules_.neighbour_bound && round == 0 && peak_bytes_ > std::max(floor_bytes, bound_bytes_)) {
    Budget part = budget_.Part(share(1));
    RaiseBound(BestNeighbourBound(reduced_.graph, reduced_order_, bound_bytes_, part), "neighbour");
    budget_.Spend(part.spent());
  }
  floor_bytes = std::max(floor_bytes, bound_bytes_);
  if (rules_.improvement && peak_bytes_ > floor_bytes) {
    if (!improver_) improver_.emplace(reduced_.graph, starts_);
    // Where it has come to rest, proofs need the work more.
    Budget part = budget_.Part(share(improvement_rests_ ? kRestingImprovement : kImprovement));
    const std::int64_t before = improver_->peak_bytes();
    improver_->Run(floor_bytes, part);
    budget_.Spend(part.spent());
    improvement_rests_ = improver_->peak_bytes() == before;
    Offer(improver_->best(), "improvement");
  }
  const std::int64_t left_before = budget_.work_left();
  if (round >= kFirstTighteningRound) Tighten(floor_bytes, share(kPrecedences));
  const std::int64_t unneeded = share(kPrecedences) - (left_before - budget_.work_left());
  Beam(8 << std::min(round / 2, 16), floor_bytes, share(kBeam));

  const double deciding_work = share(kDeciding) + kDecidingInstead * unneeded;
  const auto num_open = [](const ExactSearch& exact) {
    return exact.search ? exact.search->num_open() : 0;
  };
  // The fewer states wait, the nearer is the end of a search.
  const std::size_t open[] = {num_open(deciding_[0]), num_open(deciding_[1])};
  for (const int i : {0, 1}) {
    const double part = open[0] == open[1]      ? 0.5
                        : open[i] < open[1 - i] ? kNarrowerDirection
                                                : 1 - kNarrowerDirection;
    Exhaust(deciding_[i], floor_bytes, static_cast<std::int64_t>(part * deciding_work));
    Exhaust(bounding_[i], floor_bytes, share(kBounding));
  }
  at_its_end_ = budget_.work_left() == left_at_start;
}

void BlockPlanner::Tighten(std::int64_t floor_bytes, std::int64_t work) {
  if (!rules_.precedences || peak_bytes_ <= floor_bytes || peak_bytes_ == tightened_below_ ||
      reduced_.graph.num_ops() > kMostOpsToTighten) {
    return;
  }
  if (!tightener_) tightener_.emplace(reduced_.graph);
  Budget part = budget_.Part(work);
  const Tightener::Result result = tightener_->Tighten(peak_bytes_, part);
  budget_.Spend(part.spent());
  if (result == Tightener::Result::kImpossible) {
    RaiseBound(peak_bytes_, "precedence");
    exhausted_ = true;
  } else if (result == Tightener::Result::kExhausted) {
    tightened_below_ = peak_bytes_;
  }
}

void BlockPlanner::Exhaust(ExactSearch& exact, std::int64_t floor_bytes, std::int64_t work) {
  Budget part = budget_.Part(work, /*memory_share=*/4);  // all four are kept
  while (peak_bytes_ > floor_bytes && !exhausted_ && !exact.out_of_memory && part.HasWork() &&
         reduced_.graph.num_ops() <= kMostOpsToSearch) {
    if (IsStale(exact)) {
      exact.search.emplace(StateSpace(searched_graph(), exact.direction, {}, {}, rules_),
                           exact.decides ? peak_bytes_ - 1 : floor_bytes, peak_bytes_);
      exact.ops = tightener_ ? tightener_->ops() : reduced_.graph.OriginalOrder();
      exact.num_precedences = num_precedences();
      exact.below_bytes = peak_bytes_;
    }
    exact.search->LowerLimit(peak_bytes_);
    const DownSetSearch::Found found = exact.search->FindGoal(part);
    if (found == DownSetSearch::Found::kGoal) {
      Order order = exact.search->StepsToFound();
      if (exact.direction == Direction::kBackward) std::ranges::reverse(order);
      for (OpId& v : order) v = exact.ops[v];
      Offer(order, "search");
    }
    exhausted_ = found == DownSetSearch::Found::kNothing ||
                 (found == DownSetSearch::Found::kGoal && !exact.decides);
    // Hills up to the floor were all the same to the search, so it proves only what is above.
    const std::int64_t proven_bytes = exact.search->key_bytes();
    if ((exhausted_ || !exact.decides) && proven_bytes > floor_bytes) {
      RaiseBound(proven_bytes, "search");
    }
    if (found == DownSetSearch::Found::kOutOfBudget && part.HasWork()) {
      exact.out_of_memory = true;
      exact.search.reset();
    }
  }
  budget_.Spend(part.spent());
}

bool BlockPlanner::IsStale(const ExactSearch& exact) const {
  if (!exact.search || (exact.decides && exact.below_bytes != peak_bytes_)) return true;
  // A few precedences more are not worth a new start, unless they are the last.
  return num_precedences() > kWorthwhileGrowth * exact.num_precedences ||
         (num_precedences() > exact.num_precedences && tightened_below_ == peak_bytes_);
}

void BlockPlanner::ReleaseMemory() {
  for (ExactSearch& exact : deciding_) exact.search.reset();
  for (ExactSearch& exact : bounding_) exact.search.reset();
}

void BlockPlanner::Approach(std::int64_t limit_bytes, Budget& budget) {
  order_ = ClosestOrder(graph(), std::move(order_), limit_bytes, budget);
  peak_bytes_ = PeakBytes(graph(), order_);
  if (MovedOps(order_) == 0) method_ = "original";
  if (peak_bytes_ > bound_bytes_) proof_.clear();
}

void BlockPlanner::Offer(const std::optional<Order>& order, const char* method) {
  if (!order) return;
  const std::int64_t peak = PeakBytes(reduced_.graph, *order);
  if (peak < PeakBytes(reduced_.graph, reduced_order_)) reduced_order_ = *order;
  if (peak < peak_bytes_) OfferExpanded(reduced_.Expand(*order), peak, method);
}

void BlockPlanner::OfferExpanded(Order order, std::int64_t peak_bytes, const char* method) {
  if (peak_bytes >= peak_bytes_) return;
  order_ = std::move(order);
  peak_bytes_ = peak_bytes;
  method_ = method;
}

void BlockPlanner::RaiseBound(std::int64_t bytes, const char* proof) {
  if (bytes <= bound_bytes_) return;
  bound_bytes_ = bytes;
  proof_ = proof;
}

}  // namespace torch_ext::sched
