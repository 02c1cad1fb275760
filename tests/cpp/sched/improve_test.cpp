#include "sched/improve.h"

#include <gtest/gtest.h>

#include "sched/simulate.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

Budget Work(std::int64_t units) {
  return Budget(1000).Part(units);
}

TEST(ImproverRandomTest, NeverMakesItWorseAndFindsMostOptima) {
  int optimal = 0;
  const int count = ScaledCount(300);
  for (int i = 0; i < count; ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const Order other = RandomOrder(g, random);
    const std::int64_t before = std::min(PeakBytes(g, g.OriginalOrder()), PeakBytes(g, other));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    Improver improver(g, {g.OriginalOrder(), other});
    ASSERT_EQ(improver.peak_bytes(), before);
    Budget budget = Work(200'000);
    improver.Run(lowest, budget);
    ASSERT_TRUE(IsValidOrder(g, improver.best()));
    ASSERT_EQ(improver.peak_bytes(), PeakBytes(g, improver.best()));
    ASSERT_LE(improver.peak_bytes(), before);
    ASSERT_GE(improver.peak_bytes(), lowest);
    optimal += improver.peak_bytes() == lowest;
  }
  EXPECT_GT(optimal, count * 95 / 100);
}

TEST(ImproverRandomTest, MoreWorkIsNeverWorseAndTheResultIsTheSameEveryTime) {
  for (int i = 0; i < ScaledCount(30); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 60);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const std::vector<Order> starts = {g.OriginalOrder(), RandomOrder(g, random)};
    const auto run = [&](std::int64_t units) {
      Improver improver(g, starts);
      Budget budget = Work(units);
      improver.Run(0, budget);
      return improver.best();
    };
    const Order once = run(20'000);
    ASSERT_EQ(once, run(20'000));
    ASSERT_LE(PeakBytes(g, run(80'000)), PeakBytes(g, once));
  }
}

TEST(ImproverTest, NothingToImproveInNoOpAndOne) {
  Graph none, one;
  one.AddOp("op", {}, {}, 7);
  for (const Graph* g : {&none, &one}) {
    Improver improver(*g, {g->OriginalOrder()});
    Budget budget = Work(1000);
    improver.Run(-1, budget);
    EXPECT_EQ(improver.best(), g->OriginalOrder());
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
