#include "sched/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "sched/budget.h"
#include "sched/decompose.h"
#include "sched/instance.h"
#include "sched/simulate.h"
#include "sched/way_back.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

constexpr std::array kScopes = {Scope::kAll, Scope::kBottleneck};

// So much that on these small graphs neither the work nor the clock ends anything.
PlanOptions Ample(Scope scope = Scope::kAll) {
  PlanOptions options;
  options.scope = scope;
  options.time_budget_seconds = 200;
  return options;
}

PlanOptions Units(Scope scope, std::int64_t units) {
  PlanOptions options = Ample(scope);
  options.time_budget_seconds = static_cast<double>(units) / Budget::kWorkPerSecond;
  return options;
}

// What holds for every plan, whatever the options.
void ExpectSound(const Graph& g, const Plan& plan, std::int64_t lowest) {
  ASSERT_TRUE(IsValidOrder(g, plan.order));
  ASSERT_EQ(plan.peak_bytes, NaiveSimulate(g, plan.order).peak_bytes);
  ASSERT_EQ(plan.original_peak_bytes, NaiveSimulate(g, g.OriginalOrder()).peak_bytes);
  ASSERT_LE(plan.peak_bytes, plan.original_peak_bytes);
  ASSERT_LE(plan.lower_bound_bytes, lowest) << "a bound above the optimum";
  ASSERT_GE(plan.peak_bytes, lowest);
  ASSERT_EQ(plan.moved_ops, MovedOps(plan.order));
  ASSERT_EQ((plan.proof == Proof::kNone), !plan.is_optimal());
  if (plan.moved_ops == 0) {
    ASSERT_EQ(plan.method, Method::kOriginal);
  }
  ASSERT_EQ(plan.bottleneck.has_value(), g.num_ops() > 0);
  if (plan.bottleneck) {
    std::int64_t bytes = g.op(plan.bottleneck->op).workspace_bytes;
    for (BufferId b : plan.bottleneck->buffers) bytes += g.buffer(b).size_bytes;
    ASSERT_EQ(bytes, plan.bottleneck->bytes);
    ASSERT_LE(plan.bottleneck->bytes, lowest);
  }
  std::int32_t num_ops = 0;
  std::int64_t worst = 0;
  for (const Region& region : plan.regions) {
    num_ops += region.num_ops;
    worst = std::max(worst, region.peak_bytes);
    ASSERT_NE(region.kind, RegionKind::kOp);
  }
  ASSERT_EQ(num_ops, g.num_ops());
  if (!plan.regions.empty()) {
    ASSERT_EQ(worst, plan.peak_bytes);
  }
}

// A region that claims a proof has the lowest peak it can have. The regions lie one after the other
// in the order of the plan.
void ExpectProvenRegionsOptimal(const Graph& g, const Plan& plan) {
  const Slicer slicer(g, plan.order);
  std::int32_t begin = 0;
  for (const Region& region : plan.regions) {
    const Slice slice = slicer.Cut(begin, begin + region.num_ops);
    ASSERT_EQ(NaiveSimulate(slice.graph, slice.graph.OriginalOrder()).peak_bytes,
              region.peak_bytes);
    if (region.proof != Proof::kNone) {
      ASSERT_EQ(DownSets(slice.graph).LowestPeak(), region.peak_bytes) << NameOf(region.proof);
    }
    begin += region.num_ops;
  }
}

void ExpectSamePlan(const Plan& a, const Plan& b) {
  ASSERT_EQ(a.order, b.order);
  ASSERT_EQ(a.peak_bytes, b.peak_bytes);
  ASSERT_EQ(a.lower_bound_bytes, b.lower_bound_bytes);
  ASSERT_EQ(a.method, b.method);
  ASSERT_EQ(a.proof, b.proof);
  ASSERT_EQ(a.moved_ops, b.moved_ops);
  ASSERT_EQ(a.bottleneck.has_value(), b.bottleneck.has_value());
  if (a.bottleneck) {
    ASSERT_EQ(a.bottleneck->op, b.bottleneck->op);
    ASSERT_EQ(a.bottleneck->buffers, b.bottleneck->buffers);
  }
  ASSERT_EQ(a.regions.size(), b.regions.size());
  for (std::size_t i = 0; i < a.regions.size(); ++i) {
    ASSERT_EQ(a.regions[i].kind, b.regions[i].kind);
    ASSERT_EQ(a.regions[i].num_ops, b.regions[i].num_ops);
    ASSERT_EQ(a.regions[i].method, b.regions[i].method);
    ASSERT_EQ(a.regions[i].proof, b.regions[i].proof);
    ASSERT_EQ(a.regions[i].peak_bytes, b.regions[i].peak_bytes);
  }
}

TEST(PlanTest, AnEmptyGraphIsOptimalAsItIs) {
  Graph g;
  g.AddInput("kept", 5, true);
  g.AddInput("dead", 7);
  for (const Scope scope : kScopes) {
    const Plan plan = MakePlan(g, Ample(scope));
    EXPECT_TRUE(plan.order.empty());
    EXPECT_EQ(plan.peak_bytes, 5);
    EXPECT_TRUE(plan.is_optimal());
    EXPECT_FALSE(plan.bottleneck);
    EXPECT_FALSE(plan.budget_met);
    EXPECT_TRUE(plan.regions.empty());
  }
}

TEST(PlanTest, OneOpIsOptimalAsItIs) {
  const Graph g = ParseInstance("graph 1\nbuffer x 3 input\nop v reads x workspace 4");
  for (const Scope scope : kScopes) {
    const Plan plan = MakePlan(g, Ample(scope));
    EXPECT_EQ(plan.order, Order{0});
    EXPECT_EQ(plan.peak_bytes, 7);
    EXPECT_EQ(plan.proof, Proof::kClosure);
    EXPECT_EQ(plan.method, Method::kOriginal);
    ASSERT_TRUE(plan.bottleneck);
    EXPECT_EQ(plan.bottleneck->op, 0);
  }
}

TEST(PlanTest, ABufferWithoutProducerIsRefused) {
  Graph g;
  g.AddBuffer("a", 1);
  EXPECT_THROW(MakePlan(g), std::invalid_argument);
  EXPECT_THROW(ExtractBottleneck(g), std::invalid_argument);
}

const char kTwoBranches[] = R"(graph 1
buffer x 1 input
buffer a 10
buffer b 10
buffer small_a 1
buffer small_b 1
buffer y 1 kept
op wide_a reads x writes a
op wide_b reads x writes b
op narrow_a reads a writes small_a
op narrow_b reads b writes small_b
op join reads small_a small_b writes y
)";

TEST(PlanTest, FinishesOneBranchBeforeTheOtherStarts) {
  const Graph g = ParseInstance(kTwoBranches);
  const Plan plan = MakePlan(g);
  EXPECT_EQ(plan.original_peak_bytes, 21);
  EXPECT_EQ(plan.peak_bytes, 12);
  EXPECT_TRUE(plan.is_optimal());
  EXPECT_EQ(plan.moved_ops, 1);
  ASSERT_EQ(plan.regions.size(), 2u);
  EXPECT_EQ(plan.regions[0].kind, RegionKind::kParallel);
  EXPECT_EQ(plan.regions[0].num_ops, 4);
  EXPECT_EQ(plan.regions[1].kind, RegionKind::kSeries);
  EXPECT_EQ(plan.regions[1].num_ops, 1);
}

TEST(PlanTest, ABudgetTheOriginalMeetsMovesNothing) {
  const Graph g = ParseInstance(kTwoBranches);
  for (const Scope scope : kScopes) {
    PlanOptions options = Ample(scope);
    options.memory_budget_bytes = 21;
    const Plan plan = MakePlan(g, options);
    EXPECT_EQ(plan.moved_ops, 0);
    EXPECT_EQ(plan.budget_met, true);
  }
}

TEST(PlanTest, ABudgetBelowTheOptimumIsReportedUnmet) {
  const Graph g = ParseInstance(kTwoBranches);
  for (const Scope scope : kScopes) {
    PlanOptions options = Ample(scope);
    options.memory_budget_bytes = 11;
    const Plan plan = MakePlan(g, options);
    EXPECT_EQ(plan.peak_bytes, 12);
    EXPECT_EQ(plan.budget_met, false);
    options.memory_budget_bytes = 12;
    EXPECT_EQ(MakePlan(g, options).budget_met, true);
  }
}

TEST(PlanTest, TheBudgetOfAnEmptyGraphIsItsKeptInputs) {
  Graph g;
  g.AddInput("kept", 5, true);
  PlanOptions options;
  options.memory_budget_bytes = 4;
  EXPECT_EQ(MakePlan(g, options).budget_met, false);
  options.memory_budget_bytes = 5;
  EXPECT_EQ(MakePlan(g, options).budget_met, true);
}

TEST(PlanTest, NoTimeAtAllStillGivesASoundPlan) {
  const Graph g = ParseInstance(kTwoBranches);
  for (const Scope scope : kScopes) {
    PlanOptions options = Ample(scope);
    options.time_budget_seconds = 0;
    ASSERT_NO_FATAL_FAILURE(ExpectSound(g, MakePlan(g, options), 12));
  }
}

TEST(PlanTest, AnEndlessTimeBudgetIsNoOverflow) {
  const Graph g = ParseInstance(kTwoBranches);
  for (const double seconds : {1e10, 1e18, 1e300, std::numeric_limits<double>::infinity()}) {
    PlanOptions options;
    options.time_budget_seconds = seconds;
    const Plan plan = MakePlan(g, options);
    EXPECT_FALSE(plan.clock_stopped) << seconds;
    EXPECT_EQ(plan.peak_bytes, 12) << seconds;
    EXPECT_TRUE(plan.is_optimal()) << seconds;
  }
}

// The plan stops at 20, below the budget; putting op0 back to its place then lowers it to 17. A
// plan that took its peak before the way back did not pass the judge.
TEST(PlanTest, TheWayBackMayLowerThePeakOfAPlanThatStoppedAtItsBudget) {
  const Graph g = ParseInstance(R"(graph 1
buffer a 3 kept
buffer b 9 kept
buffer c 4 kept
buffer d 8
buffer e 5
op op1 writes b
op op2 writes c d e
op op0 writes a
)");
  PlanOptions options = Ample();
  options.memory_budget_bytes = 23;
  const Plan plan = MakePlan(g, options);
  ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, 17));
  EXPECT_EQ(plan.budget_met, true);
  EXPECT_LE(plan.peak_bytes, 20);
}

TEST(PlanTest, APeakOfNoBytesIsProvenToo) {
  const Graph g = ParseInstance("graph 1\nbuffer x 0 input\nop u reads x\nop v reads x");
  for (const Scope scope : kScopes) {
    const Plan plan = MakePlan(g, Ample(scope));
    EXPECT_TRUE(plan.is_optimal());
    EXPECT_EQ(plan.proof, Proof::kClosure);
  }
}

TEST(PlanTest, BlocksThatDoNotSetThePeakStayAsTheyAre) {
  // The first block could be lowered from 20 to 11, but the second needs 100 in any order.
  const Graph g = ParseInstance(R"(graph 1
buffer a 10
buffer b 10
buffer small_a 1
buffer small_b 1
op wide_a writes a
op wide_b writes b
op narrow_a reads a writes small_a
op narrow_b reads b writes small_b
op join reads small_a small_b workspace 98
)");
  const Plan plan = MakePlan(g);
  EXPECT_EQ(plan.moved_ops, 0);
  EXPECT_EQ(plan.proof, Proof::kClosure);
}

TEST(PlanTest, WorkEndsAtTheBlockThatSetsThePeak) {
  // Both blocks run their branches side by side; the second is lower so than the first can be.
  const Graph g = ParseInstance(R"(graph 1
buffer a 10
buffer b 10
buffer small_a 1
buffer small_b 1
buffer m 1
buffer c 5
buffer d 5
buffer small_c 1
buffer small_d 1
op wide_a writes a
op wide_b writes b
op narrow_a reads a writes small_a
op narrow_b reads b writes small_b
op middle reads small_a small_b writes m
op wide_c reads m writes c
op wide_d reads m writes d
op narrow_c reads c writes small_c
op narrow_d reads d writes small_d
op join reads small_c small_d
)");
  for (const Scope scope : kScopes) {
    const Plan plan = MakePlan(g, Ample(scope));
    EXPECT_EQ(plan.original_peak_bytes, 21);
    EXPECT_EQ(plan.peak_bytes, 12);
    EXPECT_EQ(plan.moved_ops, 1);
    EXPECT_EQ(Order(plan.order.begin() + 4, plan.order.end()), (Order{4, 5, 6, 7, 8, 9}));
  }
}

TEST(PlanTest, ExtractBottleneckCutsTheBlockOfThePeak) {
  const Graph g = ParseInstance(R"(graph 1
buffer skip 100 input
buffer s 1
buffer a 10
buffer b 10
buffer r 1 kept
op start writes s
op left reads s writes a
op right reads s writes b
op join reads a b writes r
op end reads skip after join
)");
  const Graph block = ExtractBottleneck(g);
  ASSERT_EQ(block.num_ops(), 2);
  EXPECT_EQ(block.op(0).name, "left");
  EXPECT_EQ(PeakBytes(block, block.OriginalOrder()), PeakBytes(g, g.OriginalOrder()));
}

TEST(PlanTest, ExtractBottleneckOfAnEmptyGraphIsTheGraph) {
  Graph g;
  g.AddInput("kept", 5, true);
  EXPECT_EQ(PrintInstance(ExtractBottleneck(g)), PrintInstance(g));
}

TEST(PlanRandomTest, OnUpToNineOpsThePeakIsTheLowestOfAllOrders) {
  for (int i = 0; i < ScaledCount(2000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 9);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = LowestPeakOfAllOrders(g);
    const Plan plan = MakePlan(g, Ample());
    ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, lowest));
    ASSERT_EQ(plan.peak_bytes, lowest);
    ASSERT_TRUE(plan.is_optimal());
  }
}

TEST(PlanRandomTest, OnUpToSixteenOpsThePeakIsTheLowestAndProven) {
  for (int i = 0; i < ScaledCount(3000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 1'000'000;
    const Graph g = RandomGraph(seed, 16);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    const Plan plan = MakePlan(g, Ample());
    ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, lowest));
    ASSERT_NO_FATAL_FAILURE(ExpectProvenRegionsOptimal(g, plan));
    ASSERT_EQ(plan.peak_bytes, lowest);
    ASSERT_TRUE(plan.is_optimal());
    ASSERT_FALSE(plan.clock_stopped);
  }
}

TEST(PlanRandomTest, OnUpToTwentyTwoOpsThePeakIsTheLowestAndProven) {
  for (int i = 0; i < ScaledCount(60); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 15'000'000;
    const Graph g = RandomGraph(seed, 22);
    SCOPED_TRACE(Describe(g, seed));
    const Plan plan = MakePlan(g, Ample());
    ASSERT_EQ(plan.peak_bytes, DownSets(g).LowestPeak());
    ASSERT_TRUE(plan.is_optimal());
  }
}

TEST(PlanRandomTest, OnUpToTwentyOpsOfHardShapesThePeakIsTheLowestAndProven) {
  for (int i = 0; i < ScaledCount(40); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    Random random(seed);
    const Shape shape =
        std::array{Shape::kPumpkin, Shape::kOutTree, Shape::kLayered, Shape::kDense}[seed % 4];
    const Graph g = RandomGraph(shape, 20, random);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    const Plan plan = MakePlan(g, Ample());
    ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, lowest));
    ASSERT_EQ(plan.peak_bytes, lowest);
    ASSERT_TRUE(plan.is_optimal());
  }
}

// Every combination of the rules, on graphs that need them all: none changes the optimum, so each
// is harmless.
TEST(PlanRandomTest, AnyCombinationOfRulesFindsTheSameOptimum) {
  for (int i = 0; i < ScaledCount(2048); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 14'000'000;
    const Graph g = RandomGraph(seed, 12);
    PlanOptions options = Ample();
    const int on = i % (1 << kRuleNames.size());  // each combination on many graphs
    for (std::size_t r = 0; r < kRuleNames.size(); ++r) {
      options.rules.*kRuleNames[r].second = ((on >> r) & 1) != 0;
    }
    SCOPED_TRACE(Describe(g, seed) + "rules " + std::to_string(on));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    const Plan plan = MakePlan(g, options);
    ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, lowest));
    ASSERT_EQ(plan.peak_bytes, lowest);
    ASSERT_TRUE(plan.is_optimal());
  }
}

TEST(PlanRandomTest, TheBottleneckScopeIsSoundAndNeverAboveTheOriginal) {
  for (int i = 0; i < ScaledCount(1000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 2'000'000;
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const Plan plan = MakePlan(g, Ample(Scope::kBottleneck));
    ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, DownSets(g).LowestPeak()));
  }
}

// The plan's order as the original order: the next plan keeps it.
TEST(PlanRandomTest, PlanningTheResultAgainMovesNothing) {
  for (int i = 0; i < ScaledCount(400); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 3'000'000;
    const Graph g = RandomGraph(seed, 20);
    SCOPED_TRACE(Describe(g, seed));
    for (const Scope scope : kScopes) {
      const Plan plan = MakePlan(g, Ample(scope));
      const Plan again = MakePlan(Relabelled(g, plan.order), Ample(scope));
      ASSERT_EQ(again.moved_ops, 0) << "order " << ::testing::PrintToString(plan.order);
      ASSERT_EQ(again.peak_bytes, plan.peak_bytes);
      ASSERT_EQ(again.method, Method::kOriginal);
    }
  }
}

TEST(PlanRandomTest, PlanningTheResultAgainMovesNothingUnderAMemoryBudgetEither) {
  for (int i = 0; i < ScaledCount(400); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 4'000'000;
    const Graph g = RandomGraph(seed, 16);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    for (const Scope scope : kScopes) {
      PlanOptions options = Ample(scope);
      const std::int64_t peak = PeakBytes(g, g.OriginalOrder());
      options.memory_budget_bytes = random.Between(peak / 2, peak);
      const Plan plan = MakePlan(g, options);
      const Plan again = MakePlan(Relabelled(g, plan.order), options);
      ASSERT_EQ(again.moved_ops, 0) << "order " << ::testing::PrintToString(plan.order);
    }
  }
}

// What was proven the best is left as it is, even by a planner that could not prove it; what was
// not may get better.
TEST(PlanRandomTest, PlanningTheResultAgainWithLittleWorkNeverMakesItWorse) {
  for (int i = 0; i < ScaledCount(400); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 13'000'000;
    const Graph g = RandomGraph(seed, 30);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const std::int64_t units = std::int64_t{1} << random.Between(0, 14);
    for (const Scope scope : kScopes) {
      const Plan plan = MakePlan(g, Units(scope, units));
      const Plan again = MakePlan(Relabelled(g, plan.order), Units(scope, units));
      ASSERT_LE(again.peak_bytes, plan.peak_bytes);
      if (plan.is_optimal()) {
        ASSERT_EQ(again.moved_ops, 0) << "order " << ::testing::PrintToString(plan.order);
      }
    }
  }
}

TEST(PlanRandomTest, AMemoryBudgetIsMetIfAnyOrderMeetsIt) {
  int met = 0;
  for (int i = 0; i < ScaledCount(1000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 5'000'000;
    const Graph g = RandomGraph(seed, 14);
    Random random(seed);
    const std::int64_t lowest = DownSets(g).LowestPeak();
    const std::int64_t original = PeakBytes(g, g.OriginalOrder());
    for (const Scope scope : kScopes) {
      PlanOptions options = Ample(scope);
      options.memory_budget_bytes = random.Between(lowest - lowest / 8 - 1, original);
      SCOPED_TRACE(Describe(g, seed) + "budget " + std::to_string(*options.memory_budget_bytes));
      const Plan plan = MakePlan(g, options);
      ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, lowest));
      ASSERT_EQ(plan.budget_met, plan.peak_bytes <= *options.memory_budget_bytes);
      if (scope == Scope::kAll) {
        ASSERT_EQ(*plan.budget_met, lowest <= *options.memory_budget_bytes);
      }
      met += *plan.budget_met && plan.moved_ops > 0;
    }
  }
  EXPECT_GT(met, 100) << "the test must see budgets that something was moved for";
}

TEST(PlanRandomTest, WithLittleWorkPlansAreSound) {
  int unproven = 0;
  for (int i = 0; i < ScaledCount(1500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 6'000'000;
    const Graph g = RandomGraph(seed, 16);
    Random random(seed);
    const Scope scope = random.Pick(std::vector<Scope>(kScopes.begin(), kScopes.end()));
    PlanOptions options = Units(scope, std::int64_t{1} << random.Between(0, 12));
    if (random.Chance(30)) {
      const std::int64_t peak = PeakBytes(g, g.OriginalOrder());
      options.memory_budget_bytes = random.Between(peak / 2, peak);
    }
    if (random.Chance(20)) options.search_memory_bytes = random.Between(0, 5000);
    SCOPED_TRACE(Describe(g, seed));
    const Plan plan = MakePlan(g, options);
    ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, DownSets(g).LowestPeak()));
    ASSERT_NO_FATAL_FAILURE(ExpectProvenRegionsOptimal(g, plan));
    unproven += !plan.is_optimal();
  }
  EXPECT_GT(unproven, 100) << "the test must see plans that ran out of work";
}

// Windows of the bottleneck scope are smaller than these graphs, so several are tried. Seed 79 once
// had a peak taken before the way back to the original order lowered it.
TEST(PlanRandomTest, LargerGraphsUnderAMemoryBudgetAreSound) {
  int compared = 0;
  const int count = ScaledCount(100);
  for (int i = 0; i < count; ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 33);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const std::int64_t peak = PeakBytes(g, g.OriginalOrder());
    const std::int64_t budget = random.Between(peak / 2, peak);
    const Plan best = MakePlan(g, Units(Scope::kAll, 500'000));
    for (const Scope scope : kScopes) {
      PlanOptions options = Units(scope, 200'000);
      options.memory_budget_bytes = budget;
      const Plan plan = MakePlan(g, options);
      ASSERT_EQ(plan.budget_met, plan.peak_bytes <= budget);
      if (!best.is_optimal()) continue;
      ASSERT_NO_FATAL_FAILURE(ExpectSound(g, plan, best.peak_bytes));
      ++compared;
    }
  }
  EXPECT_GT(compared, count) << "most of these graphs must have a known optimum";
}

TEST(PlanRandomTest, TheResultIsTheSameEveryTime) {
  for (int i = 0; i < ScaledCount(150); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 7'000'000;
    const Graph g = RandomGraph(seed, 24);
    SCOPED_TRACE(Describe(g, seed));
    for (const Scope scope : kScopes) {
      ASSERT_NO_FATAL_FAILURE(ExpectSamePlan(MakePlan(g, Ample(scope)), MakePlan(g, Ample(scope))));
    }
  }
}

TEST(PlanRandomTest, ScalingAllSizesScalesThePlan) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 8'000'000;
    const Graph g = RandomGraph(seed, 16);
    SCOPED_TRACE(Describe(g, seed));
    for (const Scope scope : kScopes) {
      const Plan plan = MakePlan(g, Ample(scope));
      const Plan scaled = MakePlan(Scaled(g, 3), Ample(scope));
      ASSERT_EQ(scaled.peak_bytes, 3 * plan.peak_bytes);
      ASSERT_EQ(scaled.lower_bound_bytes, 3 * plan.lower_bound_bytes);
      ASSERT_EQ(scaled.order, plan.order);
    }
  }
}

TEST(PlanRandomTest, AZeroByteOpChangesNoPeak) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 9'000'000;
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const Graph more = WithZeroByteOp(g, random);
    SCOPED_TRACE("with the op that needs nothing\n" + PrintInstance(more));
    const Plan plan = MakePlan(g, Ample());
    const Plan with = MakePlan(more, Ample());
    ASSERT_EQ(with.original_peak_bytes, plan.original_peak_bytes);
    ASSERT_EQ(with.peak_bytes, plan.peak_bytes);
    ASSERT_TRUE(with.is_optimal());
  }
}

TEST(PlanRandomTest, TheOptimumDoesNotDependOnTheOriginalOrder) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 10'000'000;
    const Graph g = RandomGraph(seed, 16);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const Graph other = Relabelled(g, RandomOrder(g, random));
    ASSERT_EQ(MakePlan(other, Ample()).peak_bytes, MakePlan(g, Ample()).peak_bytes);
  }
}

TEST(PlanRandomTest, ReversedTimeHasTheSameOptimum) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 11'000'000;
    const Graph g = WithOneReaderEach(RandomGraph(seed, 16));
    SCOPED_TRACE(Describe(g, seed));
    const Plan plan = MakePlan(g, Ample());
    const Plan reversed = MakePlan(Reversed(g), Ample());
    ASSERT_EQ(reversed.original_peak_bytes, plan.original_peak_bytes);
    ASSERT_EQ(reversed.peak_bytes, plan.peak_bytes);
    ASSERT_TRUE(reversed.is_optimal());
  }
}

TEST(PlanRandomTest, TheExtractedBottleneckPeaksAsTheGraphAndIsNoHarder) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i) + 12'000'000;
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const Graph block = ExtractBottleneck(g);
    ASSERT_NO_THROW(ParseInstance(PrintInstance(block)));
    ASSERT_EQ(PeakBytes(block, block.OriginalOrder()), PeakBytes(g, g.OriginalOrder()));
    ASSERT_LE(DownSets(block).LowestPeak(), DownSets(g).LowestPeak());
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
