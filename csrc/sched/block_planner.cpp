#include "sched/block_planner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "sched/orders.h"
#include "sched/search.h"
#include "sched/simulate.h"
#include "sched/way_back.h"

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
// How techniques divide their shares (kTechniques).
constexpr double kRestingImprovement = 0.25;  // where its last round changed nothing
constexpr double kDeciding = 3;               // both directions
constexpr double kDecidingInstead = 0.5;      // ... and so much of what precedences did not need
constexpr double kNarrowerDirection = 0.85;   // of it
constexpr double kBounding = 0.1;             // each direction
constexpr int kWorthwhileGrowth = 2;          // of the precedences, to start a search again
constexpr int kFirstTighteningRound = 1;
constexpr std::int32_t kMostOpsToTighten = 2'000;
constexpr std::int32_t kMostOpsToSearch = 20'000;  // a state is too large to copy beyond

std::int64_t Looks(double work) {
  return static_cast<std::int64_t>(work);
}

}  // namespace

const std::array<void (BlockPlanner::*)(std::int64_t), 3> BlockPlanner::kStages = {
    &BlockPlanner::ReduceRegions, &BlockPlanner::RunSimpleRules, &BlockPlanner::RunFirstBeam};

// Shares are of kRoundWork, grown.
const std::array<BlockPlanner::Technique, 6> BlockPlanner::kTechniques = {{
    {1, &BlockPlanner::RaiseClosureBound},
    {1, &BlockPlanner::RaiseNeighbourBound},  // in the first round
    {2, &BlockPlanner::ImproveAroundPeak},
    {3, &BlockPlanner::FindPrecedences},  // from the second round on
    {0.25, &BlockPlanner::RunWiderBeam},  // each direction
    {1, &BlockPlanner::SearchExactly},    // kDeciding and kBounding times
}};

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
  RaiseBound(bounds_->best().bytes, Proof::kClosure);
  // The last op of any order still sees all that is kept.
  std::int64_t kept_bytes = 0;
  for (const Buffer& b : graph().buffers()) kept_bytes += b.kept ? b.size_bytes : 0;
  RaiseBound(std::max(graph().StartBytes(), kept_bytes), Proof::kResults);
}

void BlockPlanner::Improve(std::int64_t floor_bytes) {
  Bound();
  if (is_finished()) return;
  if (stage_ < kStages.size()) {
    (this->*kStages[stage_++])(std::max(floor_bytes, bound_bytes_));
  } else {
    Round(floor_bytes);
  }
}

void BlockPlanner::ReduceRegions(std::int64_t) {
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
    OfferExpanded(order, peak, Method::kDominant);
    RaiseBound(peak, reduction.has_prime ? Proof::kSearch : Proof::kSeriesParallel);
    exhausted_ = true;
    return;
  }
  reduced_ = Contract(graph(), reduction.chains);
  reduced_order_ = reduced_.graph.OriginalOrder();
  Offer(reduced_order_, Method::kDominant);
}

void BlockPlanner::RunSimpleRules(std::int64_t) {
  const Graph& reduced = reduced_.graph;
  starts_.push_back(reduced.OriginalOrder());
  Budget part = budget_.Part(kSimpleRulesWork);
  const auto offer = [&](std::optional<Order> order, Method method) {
    if (!order) return;
    Offer(order, method);
    for (const Direction direction : {Direction::kBackward, Direction::kForward}) {
      *order = WithSafeSteps(reduced, direction, *order, part);
      Offer(order, method);
    }
    starts_.push_back(std::move(*order));
  };
  offer(reduced.OriginalOrder(), Method::kSafeSteps);
  offer(DepthFirstOrder(reduced), Method::kDepthFirst);
  offer(GreedyOrder(reduced, Direction::kForward, part), Method::kGreedy);
  offer(GreedyOrder(reduced, Direction::kBackward, part), Method::kGreedy);
  budget_.Spend(part.spent());
}

void BlockPlanner::RunFirstBeam(std::int64_t floor_bytes) {
  Beam(8, floor_bytes, kRoundWork << 2);
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
    Offer(order, Method::kBeam);
    if (!improver_) starts_.push_back(std::move(*order));
  }
}

void BlockPlanner::Round(std::int64_t floor_bytes) {
  const std::int64_t left_at_start = budget_.work_left();
  const double round_work = kRoundWork * std::pow(kRoundGrowth, std::min(round_, kMostRounds));
  unneeded_work_ = 0;
  for (const Technique& technique : kTechniques) {
    (this->*technique.run)(std::max(floor_bytes, bound_bytes_), technique.share * round_work);
  }
  ++round_;
  at_its_end_ = budget_.work_left() == left_at_start;
}

void BlockPlanner::RaiseClosureBound(std::int64_t, double work) {
  if (!rules_.closure_bound) return;
  if (!reduced_bounds_) reduced_bounds_.emplace(reduced_.graph);
  Budget part = budget_.Part(Looks(work));
  reduced_bounds_->Raise(reduced_order_, part);
  budget_.Spend(part.spent());
  RaiseBound(reduced_bounds_->best().bytes, Proof::kClosure);
}

void BlockPlanner::RaiseNeighbourBound(std::int64_t floor_bytes, double work) {
  if (!rules_.neighbour_bound || round_ > 0 || peak_bytes_ <= floor_bytes) return;
  Budget part = budget_.Part(Looks(work));
  RaiseBound(BestNeighbourBound(reduced_.graph, reduced_order_, bound_bytes_, part),
             Proof::kNeighbour);
  budget_.Spend(part.spent());
}

void BlockPlanner::ImproveAroundPeak(std::int64_t floor_bytes, double work) {
  if (!rules_.improvement || peak_bytes_ <= floor_bytes) return;
  if (!improver_) improver_.emplace(reduced_.graph, starts_);
  // Where it has come to rest, proofs need the work more.
  Budget part = budget_.Part(Looks(improvement_rests_ ? kRestingImprovement * work : work));
  const std::int64_t before = improver_->peak_bytes();
  improver_->Run(floor_bytes, part);
  budget_.Spend(part.spent());
  improvement_rests_ = improver_->peak_bytes() == before;
  Offer(improver_->best(), Method::kImprovement);
}

void BlockPlanner::FindPrecedences(std::int64_t floor_bytes, double work) {
  unneeded_work_ = Looks(work);
  if (!rules_.precedences || round_ < kFirstTighteningRound || peak_bytes_ <= floor_bytes ||
      peak_bytes_ == tightened_below_ || reduced_.graph.num_ops() > kMostOpsToTighten) {
    return;
  }
  if (!tightener_) tightener_.emplace(reduced_.graph);
  Budget part = budget_.Part(Looks(work));
  const Tightener::Result result = tightener_->Tighten(peak_bytes_, part);
  budget_.Spend(part.spent());
  unneeded_work_ -= part.spent();
  if (result == Tightener::Result::kImpossible) {
    RaiseBound(peak_bytes_, Proof::kPrecedence);
    exhausted_ = true;
  } else if (result == Tightener::Result::kExhausted) {
    tightened_below_ = peak_bytes_;
  }
}

void BlockPlanner::RunWiderBeam(std::int64_t floor_bytes, double work) {
  Beam(8 << std::min(round_ / 2, 16), floor_bytes, Looks(work));
}

void BlockPlanner::SearchExactly(std::int64_t floor_bytes, double work) {
  const double deciding_work = static_cast<double>(Looks(kDeciding * work)) +
                               kDecidingInstead * static_cast<double>(unneeded_work_);
  const auto num_open = [](const ExactSearch& exact) {
    return exact.search ? exact.search->num_open() : 0;
  };
  // The fewer states wait, the nearer is the end of a search.
  const std::size_t open[] = {num_open(deciding_[0]), num_open(deciding_[1])};
  for (const int i : {0, 1}) {
    const double part = open[0] == open[1]      ? 0.5
                        : open[i] < open[1 - i] ? kNarrowerDirection
                                                : 1 - kNarrowerDirection;
    Exhaust(deciding_[i], floor_bytes, Looks(part * deciding_work));
    Exhaust(bounding_[i], floor_bytes, Looks(kBounding * work));
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
      Offer(order, Method::kSearch);
    }
    exhausted_ = found == DownSetSearch::Found::kNothing ||
                 (found == DownSetSearch::Found::kGoal && !exact.decides);
    // Hills up to the floor were all the same to the search, so it proves only what is above.
    const std::int64_t proven_bytes = exact.search->key_bytes();
    if ((exhausted_ || !exact.decides) && proven_bytes > floor_bytes) {
      RaiseBound(proven_bytes, Proof::kSearch);
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

void BlockPlanner::GoBack(std::int64_t limit_bytes, Budget& budget) {
  order_ = WayBack(graph(), std::move(order_), limit_bytes, budget);
  peak_bytes_ = PeakBytes(graph(), order_);
  if (MovedOps(order_) == 0) method_ = Method::kOriginal;
  if (peak_bytes_ > bound_bytes_) proof_ = Proof::kNone;
}

void BlockPlanner::Offer(const std::optional<Order>& order, Method method) {
  if (!order) return;
  const std::int64_t peak = PeakBytes(reduced_.graph, *order);
  if (peak < PeakBytes(reduced_.graph, reduced_order_)) reduced_order_ = *order;
  if (peak < peak_bytes_) OfferExpanded(reduced_.Expand(*order), peak, method);
}

void BlockPlanner::OfferExpanded(Order order, std::int64_t peak_bytes, Method method) {
  if (peak_bytes >= peak_bytes_) return;
  order_ = std::move(order);
  peak_bytes_ = peak_bytes;
  method_ = method;
}

void BlockPlanner::RaiseBound(std::int64_t bytes, Proof proof) {
  if (bytes <= bound_bytes_) return;
  bound_bytes_ = bytes;
  proof_ = proof;
}

}  // namespace torch_ext::sched
