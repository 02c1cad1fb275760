#include "sched/simulate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <stdexcept>

#include "sched/instance.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

using Bytes = std::vector<std::int64_t>;

TEST(SimulateTest, AnEmptyGraphPeaksAtItsKeptInputs) {
  Graph g;
  EXPECT_EQ(PeakBytes(g, {}), 0);
  g.AddInput("kept", 5, true);
  g.AddInput("dead", 7);
  const Profile profile = Simulate(g, {});
  EXPECT_EQ(profile.start_bytes, 5);
  EXPECT_EQ(profile.PeakBytes(), 5);
  EXPECT_EQ(profile.PeakPosition(), -1);
}

TEST(SimulateTest, OneOpWithoutBuffersCostsItsWorkspace) {
  const Graph g = ParseInstance("graph 1\nop v workspace 9");
  const Profile profile = Simulate(g, g.OriginalOrder());
  EXPECT_EQ(profile.hill_bytes, Bytes{9});
  EXPECT_EQ(profile.valley_bytes, Bytes{0});
}

//   x --> split --> l --> left ---> p \.
//              `--> r --> right --> q --> join --> y
TEST(SimulateTest, AHandDrawnDiamondHasTheProfileOneCounts) {
  const Graph g = ParseInstance(R"(graph 1
buffer x 10 input
buffer l 4
buffer r 6
buffer p 1
buffer q 2
buffer y 3 kept
buffer junk 50
op split reads x writes l r
op left reads l writes p workspace 5
op right reads r writes q
op join reads p q writes y junk
)");
  const Profile profile = Simulate(g, Order{0, 1, 2, 3});
  EXPECT_EQ(profile.start_bytes, 10);
  EXPECT_EQ(profile.hill_bytes, (Bytes{20, 16, 9, 56}));
  EXPECT_EQ(profile.valley_bytes, (Bytes{10, 7, 3, 3}));
  EXPECT_EQ(profile.PeakBytes(), 56);
  EXPECT_EQ(profile.PeakPosition(), 3);
  const Profile other = Simulate(g, Order{0, 2, 1, 3});
  EXPECT_EQ(other.hill_bytes, (Bytes{20, 12, 12, 56}));
  EXPECT_EQ(LiveBuffersAt(g, Order{0, 2, 1, 3}, 1), (std::vector<BufferId>{1, 2, 4}));
  EXPECT_EQ(LiveBuffersAt(g, Order{0, 2, 1, 3}, 3), (std::vector<BufferId>{3, 4, 5, 6}));
}

TEST(SimulateTest, AnInputThatNobodyReadsIsFreedBeforeTheFirstOp) {
  const Graph g = ParseInstance("graph 1\nbuffer x 5 input\nop v");
  EXPECT_EQ(Simulate(g, Order{0}).hill_bytes, Bytes{0});
  EXPECT_TRUE(LiveBuffersAt(g, Order{0}, 0).empty());
}

TEST(SimulateTest, ThePeakPositionIsTheFirstOfEquals) {
  const Graph g = ParseInstance("graph 1\nop a workspace 1\nop b workspace 2\nop c workspace 2");
  EXPECT_EQ(Simulate(g, g.OriginalOrder()).PeakPosition(), 1);
}

TEST(SimulateTest, InvalidOrdersAreRefusedByName) {
  const Graph g = ParseInstance(
      "graph 1\nbuffer a 1\nop make writes a\nop use reads a\n"
      "op last after make");
  const auto why = [&](const Order& order) -> std::string {
    EXPECT_FALSE(IsValidOrder(g, order));
    try {
      Simulate(g, order);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return {};
  };
  EXPECT_EQ(why({}), "the order has 0 ops, the graph has 3");
  EXPECT_EQ(why({0, 1, 2, 2}), "the order has 4 ops, the graph has 3");
  EXPECT_EQ(why({0, 1, 3}), "the order names the op number 3");
  EXPECT_EQ(why({0, -1, 1}), "the order names the op number -1");
  EXPECT_EQ(why({0, 0, 1}), "op 'make' runs twice");
  EXPECT_EQ(why({1, 0, 2}), "op 'use' runs before 'make', which it depends on");
  EXPECT_EQ(why({2, 0, 1}), "op 'last' runs before 'make', which it depends on");
  EXPECT_TRUE(IsValidOrder(g, Order{0, 2, 1}));
}

TEST(SimulateRandomTest, AgreesWithTheNaiveSimulation) {
  for (int i = 0; i < ScaledCount(2000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 20);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const Order order = RandomOrder(g, random);
    const NaiveProfile expected = NaiveSimulate(g, order);
    const Profile profile = Simulate(g, order);
    ASSERT_EQ(profile.start_bytes, expected.start_bytes);
    ASSERT_EQ(profile.hill_bytes, expected.hill_bytes);
    ASSERT_EQ(profile.valley_bytes, expected.valley_bytes);
    ASSERT_EQ(profile.PeakBytes(), expected.peak_bytes);
    ASSERT_EQ(PeakBytes(g, order), expected.peak_bytes);
    ASSERT_EQ(profile.hill_bytes[profile.PeakPosition()], expected.peak_bytes);
  }
}

TEST(SimulateRandomTest, TheLiveBuffersAndTheWorkspaceAddUpToTheHill) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 16);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const Order order = RandomOrder(g, random);
    const NaiveProfile expected = NaiveSimulate(g, order);
    for (std::int32_t at = 0; at < g.num_ops(); ++at) {
      std::int64_t bytes = g.op(order[at]).workspace_bytes;
      for (BufferId b : LiveBuffersAt(g, order, at)) bytes += g.buffer(b).size_bytes;
      ASSERT_EQ(bytes, expected.hill_bytes[at]) << "position " << at;
    }
  }
}

TEST(SimulateRandomTest, APermutationIsValidIfAndOnlyIfPredecessorsComeFirst) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 5);
    SCOPED_TRACE(Describe(g, seed));
    std::set<Order> valid;
    ForEachOrder(g, [&](const Order& order) { valid.insert(order); });
    Order order = g.OriginalOrder();
    do {
      ASSERT_EQ(IsValidOrder(g, order), valid.contains(order));
    } while (std::ranges::next_permutation(order).found);
  }
}

// The two oracles of this suite share no walk; if they differ, no other test here means anything.
TEST(OracleTest, AllOrdersAndAllDownSetsAgreeOnTheLowestPeak) {
  for (int i = 0; i < ScaledCount(600); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 7);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t expected = LowestPeakOfAllOrders(g);
    ASSERT_EQ(DownSets(g).LowestPeak(), expected);
    std::int64_t lowest = DownSets::kUnreachable;
    ForEachOrder(g, [&](const Order& order) {
      lowest = std::min(lowest, NaiveSimulate(g, order).peak_bytes);
    });
    ASSERT_EQ(lowest, expected);
  }
}

TEST(OracleTest, WaysToAndFromADownSetMeetInTheLowestPeak) {
  for (int i = 0; i < ScaledCount(200); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 10);
    SCOPED_TRACE(Describe(g, seed));
    const DownSets sets(g);
    const auto to = sets.LowestPeaksTo();
    const auto from = sets.LowestPeaksFrom();
    ASSERT_EQ(from[0], to.back());
    for (std::size_t mask = 0; mask < to.size(); ++mask) {
      ASSERT_EQ(to[mask] == DownSets::kUnreachable, from[mask] == DownSets::kUnreachable);
      ASSERT_GE(std::max(to[mask], from[mask]), to.back());
    }
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
