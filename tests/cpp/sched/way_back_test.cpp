#include "sched/way_back.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "sched/instance.h"
#include "sched/simulate.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

constexpr double kAmple = 1000;  // seconds of work, never reached

// Ops less the longest common subsequence with 0, 1, 2, ..., by the textbook table.
std::int32_t MovedOpsByTable(const Order& order) {
  const std::size_t n = order.size();
  std::vector<std::vector<std::int32_t>> common(n + 1, std::vector<std::int32_t>(n + 1, 0));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t v = 0; v < n; ++v) {
      common[i + 1][v + 1] = order[i] == static_cast<OpId>(v)
                                 ? common[i][v] + 1
                                 : std::max(common[i][v + 1], common[i + 1][v]);
    }
  }
  return static_cast<std::int32_t>(n) - common[n][n];
}

TEST(MovedOpsTest, CountsByHand) {
  EXPECT_EQ(MovedOps(Order{}), 0);
  EXPECT_EQ(MovedOps(Order{0}), 0);
  EXPECT_EQ(MovedOps(Order{0, 1, 2, 3}), 0);
  EXPECT_EQ(MovedOps(Order{3, 0, 1, 2}), 1) << "one op went to the front";
  EXPECT_EQ(MovedOps(Order{1, 0, 3, 2}), 2);
  EXPECT_EQ(MovedOps(Order{3, 2, 1, 0}), 3);
  EXPECT_EQ(MovedOps(Order{2, 3, 0, 1}), 2) << "two halves changed places";
}

TEST(MovedOpsRandomTest, EqualsOpsLessTheLongestCommonSubsequence) {
  for (int i = 0; i < ScaledCount(1000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    Random random(seed);
    const auto n = static_cast<std::int32_t>(random.Between(1, 40));
    const Graph g =
        RandomGraph(random.Chance(50) ? Shape::kIndependent : Shape::kSparse, n, random);
    const Order order = RandomOrder(g, random);
    SCOPED_TRACE(Describe(g, seed));
    ASSERT_EQ(MovedOps(order), MovedOpsByTable(order)) << ::testing::PrintToString(order);
  }
}

TEST(WayBackTest, AnEmptyGraphStaysEmpty) {
  Budget budget(kAmple);
  EXPECT_TRUE(WayBack(Graph(), {}, 0, budget).empty());
}

TEST(WayBackTest, WhatKeepsTheOriginalPeakIsTheOriginalOrder) {
  const Graph g = ParseInstance("graph 1\nop a workspace 3\nop b workspace 1\nop c workspace 2");
  Budget budget(kAmple);
  EXPECT_EQ(WayBack(g, Order{2, 0, 1}, 3, budget), (Order{0, 1, 2}));
}

// Only `free` must come first; that c and b changed places too was not necessary.
TEST(WayBackTest, PutsBackWhatMovedWithoutNeed) {
  const Graph g = ParseInstance(R"(graph 1
buffer x 10 input
buffer y 10 kept
op a
op grow writes y
op b
op c
op free reads x
)");
  Budget budget(kAmple);
  const Order closest = WayBack(g, Order{3, 4, 2, 1, 0}, 10, budget);
  EXPECT_EQ(PeakBytes(g, closest), 10);
  EXPECT_EQ(MovedOps(closest), 1);
}

// Only `free` must leave its place. Of `b` and `c`, which changed places, either finds its way back
// between an op it depends on and one that depends on it.
TEST(WayBackTest, PutsBackAnOpBetweenWhatItDependsOnAndWhatDependsOnIt) {
  const Graph g = ParseInstance(R"(graph 1
buffer x 10 input
buffer y 10 kept
op a
op grow writes y
op b after a
op c after grow
op d after b c
op free reads x
)");
  Budget budget(kAmple);
  const Order closest = WayBack(g, Order{5, 0, 1, 3, 2, 4}, 10, budget);
  EXPECT_EQ(PeakBytes(g, closest), 10);
  EXPECT_EQ(MovedOps(closest), 1) << ::testing::PrintToString(closest);
}

TEST(WayBackRandomTest, KeepsWithinTheLimitAndNeverMovesMore) {
  int closer = 0;
  for (int i = 0; i < ScaledCount(2000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 20);
    Random random(seed);
    const Order order = RandomOrder(g, random);
    const std::int64_t peak = NaiveSimulate(g, order).peak_bytes;
    const std::int64_t original_peak = NaiveSimulate(g, g.OriginalOrder()).peak_bytes;
    const std::int64_t limit = random.Between(peak / 2, peak * 2);
    SCOPED_TRACE(Describe(g, seed) + "order " + ::testing::PrintToString(order) + ", limit " +
                 std::to_string(limit));
    Budget budget(kAmple);
    const Order closest = WayBack(g, order, limit, budget);
    ASSERT_TRUE(IsValidOrder(g, closest));
    ASSERT_LE(NaiveSimulate(g, closest).peak_bytes, std::max(limit, peak));
    ASSERT_LE(MovedOps(closest), MovedOps(order));
    if (original_peak <= std::max(limit, peak)) {
      ASSERT_EQ(closest, g.OriginalOrder());
    }
    closer += closest != g.OriginalOrder() && MovedOps(closest) < MovedOps(order);
  }
  EXPECT_GT(closer, 100) << "the test must see orders that come closer part of the way";
}

TEST(WayBackRandomTest, WithoutWorkTheResultIsStillWithinTheLimit) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 20);
    Random random(seed);
    const Order order = RandomOrder(g, random);
    const std::int64_t peak = NaiveSimulate(g, order).peak_bytes;
    SCOPED_TRACE(Describe(g, seed) + "order " + ::testing::PrintToString(order));
    Budget budget(static_cast<double>(random.Between(0, 40)) / Budget::kWorkPerSecond);
    const Order closest = WayBack(g, order, peak, budget);
    ASSERT_TRUE(IsValidOrder(g, closest));
    ASSERT_LE(NaiveSimulate(g, closest).peak_bytes, peak);
    ASSERT_LE(MovedOps(closest), MovedOps(order));
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
