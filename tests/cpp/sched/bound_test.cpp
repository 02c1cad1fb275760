#include "sched/bound.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "sched/instance.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

constexpr double kAmple = 1000;  // seconds of work, never reached

OpBound Closure(const Graph& graph, OpId op) {
  Budget budget(kAmple);
  return ClosureBound(graph, op, budget);
}

OpBound Best(const Graph& graph, const Order& order) {
  Budget budget(kAmple);
  return BestClosureBound(graph, order, budget);
}

std::int64_t SumOf(const Graph& graph, const std::vector<BufferId>& buffers) {
  std::int64_t bytes = 0;
  for (BufferId b : buffers) bytes += graph.buffer(b).size_bytes;
  return bytes;
}

TEST(ClosureBoundTest, AnEmptyGraphHasNoBottleneck) {
  const OpBound best = Best(Graph(), {});
  EXPECT_EQ(best.op, kNoOp);
  EXPECT_EQ(best.bytes, 0);
  EXPECT_TRUE(best.buffers.empty());
}

TEST(ClosureBoundTest, AloneAnOpIsBoundByItsInputsItsHillAndWhatIsKept) {
  const Graph g = ParseInstance(R"(graph 1
buffer x 1 input
buffer kept_input 2 input kept
buffer unread 4 input
buffer y 8
op v reads x writes y workspace 16
)");
  const OpBound bound = Closure(g, 0);
  EXPECT_EQ(bound.op, 0);
  EXPECT_EQ(bound.bytes, 27);
  EXPECT_EQ(bound.buffers, (std::vector<BufferId>{0, 1, 3}));
}

// While `join` runs both of its inputs live; `free` can be run before to get rid of x.
TEST(ClosureBoundTest, WhatCanRunBeforeToFreeMemoryIsRunBefore) {
  const Graph g = ParseInstance(R"(graph 1
buffer x 100 input
buffer a 10
buffer b 20
buffer y 1 kept
op left writes a
op right writes b
op join reads a b writes y
op free reads x
)");
  EXPECT_EQ(Closure(g, 2).bytes, 31);
  EXPECT_EQ(Closure(g, 2).buffers, (std::vector<BufferId>{1, 2, 3}));
  EXPECT_EQ(Closure(g, 0).bytes, 10);
  EXPECT_EQ(Closure(g, 1).bytes, 20);
  EXPECT_EQ(Closure(g, 3).bytes, 100);
  EXPECT_EQ(Best(g, g.OriginalOrder()).op, 3);
}

// Running `shrink` first pays 3 for `small` to be rid of the 5 of `wide`; `grow` is no bargain.
TEST(ClosureBoundTest, RunsAnOpBeforeOnlyWhereItPays) {
  const Graph g = ParseInstance(R"(graph 1
buffer wide 5 input
buffer narrow 2 input
buffer small 3
buffer large 7
buffer r 1
op v writes r
op shrink reads wide writes small
op grow reads narrow writes large
op end reads small large r
)");
  EXPECT_EQ(Closure(g, 0).bytes, 3 + 2 + 1);
  EXPECT_EQ(Closure(g, 0).buffers, (std::vector<BufferId>{1, 2, 4}));
}

TEST(ClosureBoundTest, ASharedInputDiesOnlyWhenAllItsReadersRan) {
  const Graph g = ParseInstance(R"(graph 1
buffer x 10 input
buffer p 6
buffer q 6
buffer r 1
op v writes r
op one reads x writes p
op two reads x writes q
op end reads p q r
)");
  EXPECT_EQ(Closure(g, 0).bytes, 10 + 1) << "both readers together cost 12 to free 10";
}

TEST(ClosureBoundTest, SizesNearTheLimitDoNotOverflow) {
  Graph g;
  const BufferId x = g.AddInput("x", kSizeLimitBytes / 2);
  const BufferId y = g.AddBuffer("y", kSizeLimitBytes / 4);
  const BufferId z = g.AddBuffer("z", kSizeLimitBytes / 4 - 1, true);
  g.AddOp("make", {x}, {y});
  const OpId v = g.AddOp("v", {}, {});
  g.AddOp("use", {y}, {z});
  EXPECT_EQ(Closure(g, 0).bytes, kSizeLimitBytes / 4 * 3);
  EXPECT_EQ(Closure(g, v).bytes, kSizeLimitBytes / 4 - 1);
}

TEST(ClosureBoundRandomTest, EqualsTheMinimumOverAllDownSets) {
  for (int i = 0; i < ScaledCount(800); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const std::vector<std::int64_t> expected = DownSets(g).LowestHills();
    for (OpId v = 0; v < g.num_ops(); ++v) {
      const OpBound bound = Closure(g, v);
      ASSERT_EQ(bound.op, v);
      ASSERT_EQ(bound.bytes, expected[v]) << g.op(v).name;
    }
  }
}

TEST(ClosureBoundRandomTest, TheBuffersOfTheBoundAddUpToItsBytes) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 20);
    SCOPED_TRACE(Describe(g, seed));
    for (OpId v = 0; v < g.num_ops(); ++v) {
      const OpBound bound = Closure(g, v);
      ASSERT_EQ(SumOf(g, bound.buffers) + g.op(v).workspace_bytes, bound.bytes) << g.op(v).name;
      ASSERT_TRUE(std::ranges::is_sorted(bound.buffers));
    }
  }
}

TEST(ClosureBoundRandomTest, TheBestBoundIsTheHighestAndNeverAboveAnyPeak) {
  for (int i = 0; i < ScaledCount(800); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const DownSets sets(g);
    const std::vector<std::int64_t> hills = sets.LowestHills();
    Random random(seed);
    for (const Order& order : {g.OriginalOrder(), RandomOrder(g, random)}) {
      const OpBound best = Best(g, order);
      ASSERT_EQ(best.bytes, *std::ranges::max_element(hills)) << "laziness must lose nothing";
      ASSERT_EQ(best.bytes, hills[best.op]);
      ASSERT_LE(best.bytes, sets.LowestPeak());
    }
  }
}

TEST(ClosureBoundRandomTest, ABudgetThatEndsStillGivesATrueBound) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const std::vector<std::int64_t> hills = DownSets(g).LowestHills();
    Budget budget(static_cast<double>(i % 50) / Budget::kWorkPerSecond);
    const OpBound best = BestClosureBound(g, g.OriginalOrder(), budget);
    ASSERT_NE(best.op, kNoOp);
    ASSERT_LE(best.bytes, hills[best.op]);
    std::int64_t bytes = g.op(best.op).workspace_bytes;
    for (BufferId b : best.buffers) bytes += g.buffer(b).size_bytes;
    ASSERT_EQ(best.bytes, bytes);
  }
}

TEST(NeighbourBoundRandomTest, NeverExceedsTheLowestPeakAndHelpsSometimes) {
  int helped = 0;
  for (int i = 0; i < ScaledCount(1500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    Budget budget(1000);
    const std::int64_t lowest = DownSets(g).LowestPeak();
    for (OpId v = 0; v < g.num_ops(); ++v) ASSERT_LE(NeighbourBound(g, v, 0, budget), lowest);
    const std::int64_t closure = BestClosureBound(g, g.OriginalOrder(), budget).bytes;
    const std::int64_t neighbour = BestNeighbourBound(g, g.OriginalOrder(), closure, budget);
    ASSERT_LE(neighbour, lowest);
    helped += neighbour > closure;
  }
  EXPECT_GT(helped, 10);
}

TEST(LowestLiveBytesRandomTest, IsTheLowestOverAllDownSets) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 12);
    SCOPED_TRACE(Describe(g, seed));
    Budget budget(1000);
    const DownSets sets(g);
    const std::vector<std::int64_t> reachable = sets.LowestPeaksTo();
    std::int64_t lowest = sets.LiveBytes(0);
    for (std::size_t mask = 0; mask < reachable.size(); ++mask) {
      if (reachable[mask] == DownSets::kUnreachable) continue;
      lowest = std::min(lowest, sets.LiveBytes(static_cast<DownSets::Mask>(mask)));
    }
    ASSERT_EQ(LowestLiveBytes(g, budget), lowest);
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
