#include "sched/tighten.h"

#include <gtest/gtest.h>

#include "sched/simulate.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

TEST(TightenRandomTest, KeepsAnOrderOfTheLowestPeakUnlessThatIsImpossible) {
  int tightened = 0, impossible = 0, missed = 0;
  for (int i = 0; i < ScaledCount(1000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    Random random(seed);
    for (const std::int64_t below : {lowest + 1, lowest, random.Between(lowest / 2, 2 * lowest)}) {
      Budget budget(1000);
      Tightener tightener(g);
      const Tightener::Result result = tightener.Tighten(below, budget);
      ASSERT_NE(result, Tightener::Result::kOutOfBudget);
      if (result == Tightener::Result::kImpossible) {
        ASSERT_GE(lowest, below);
        ++impossible;
        continue;
      }
      missed += lowest >= below;
      const Graph& tight = tightener.graph();
      const std::int64_t lowest_tight = DownSets(tight).LowestPeak();
      ASSERT_GE(lowest_tight, lowest);
      if (lowest < below) {
        ASSERT_EQ(lowest_tight, lowest);
      }
      const Order& order = tightener.ops();
      ASSERT_TRUE(IsValidOrder(g, order));
      ASSERT_EQ(PeakBytes(g, order), PeakBytes(tight, tight.OriginalOrder()));
      std::size_t edges = 0, edges_before = 0;
      for (const Op& op : tight.ops()) edges += op.predecessors.size();
      for (const Op& op : g.ops()) edges_before += op.predecessors.size();
      tightened += edges > edges_before;
    }
  }
  EXPECT_GT(tightened, 100);
  EXPECT_GT(impossible, 10 * missed) << "it proves most of what small graphs need";
}

}  // namespace
}  // namespace torch_ext::sched::test
