#include "sched/dominant.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "sched/instance.h"
#include "sched/simulate.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

constexpr double kAmple = 1000;  // seconds of work, never reached

std::vector<Segment> CanonicalOf(const Graph& graph, const Order& order) {
  return Canonical(SegmentsOf(Simulate(graph, order)));
}

Reduction Reduced(const Graph& graph) {
  Budget budget(kAmple);
  return Reduce(graph, FindRegions(graph), {}, budget);
}

TEST(DominantOrderRandomTest, TheSearchedOrderDominatesEveryOther) {
  for (int i = 0; i < ScaledCount(600); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, i % 20 == 0 ? 8 : 7);
    SCOPED_TRACE(Describe(g, seed));
    Budget budget(kAmple);
    const std::optional<Order> order = DominantOrderBySearch(g, {}, budget);
    ASSERT_TRUE(order);
    ASSERT_TRUE(IsValidOrder(g, *order));
    const std::vector<Segment> form = CanonicalOf(g, *order);
    ForEachOrder(g, [&](const Order& other) {
      ASSERT_TRUE(Dominates(form, CanonicalOf(g, other)));
    });
  }
}

TEST(ReduceRandomTest, ADominantReductionDominatesEveryOrder) {
  int dominant = 0, primes = 0;
  for (int i = 0; i < ScaledCount(600); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, i % 20 == 0 ? 8 : 7);
    SCOPED_TRACE(Describe(g, seed));
    const Reduction reduction = Reduced(g);
    if (g.num_ops() == 0) continue;
    ASSERT_TRUE(reduction.is_dominant) << "the budget is ample";
    const Chain& chain = reduction.chains.front();
    ASSERT_TRUE(IsValidOrder(g, chain.ops));
    const std::vector<Segment> form = CanonicalOf(g, chain.ops);
    ASSERT_TRUE(Dominates(form, chain.segments));
    ASSERT_TRUE(Dominates(chain.segments, form));
    ForEachOrder(g, [&](const Order& other) {
      ASSERT_TRUE(Dominates(form, CanonicalOf(g, other)));
    });
    ++dominant;
    primes += reduction.has_prime;
  }
  EXPECT_GT(dominant, 100);
  EXPECT_GT(primes, 20);
}

TEST(ReduceRandomTest, ADominantReductionHasTheLowestPeak) {
  for (int i = 0; i < ScaledCount(1500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 16);
    SCOPED_TRACE(Describe(g, seed));
    const Reduction reduction = Reduced(g);
    if (g.num_ops() == 0) continue;
    ASSERT_TRUE(reduction.is_dominant);
    ASSERT_EQ(PeakBytes(g, reduction.chains.front().ops), DownSets(g).LowestPeak());
  }
}

// With next to no budget for search: what cannot be solved stays open, and what is left still has
// the lowest peak among its orders.
TEST(ReduceRandomTest, ReplacingRegionsNeverChangesTheOptimumAroundThem) {
  int partial = 0;
  for (int i = 0; i < ScaledCount(1500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    Budget budget(Random(seed).Between(0, 60) / Budget::kWorkPerSecond);
    const Reduction reduction = Reduce(g, FindRegions(g), {}, budget);
    const Contraction contraction = Contract(g, reduction.chains);
    ASSERT_EQ(DownSets(contraction.graph).LowestPeak(), DownSets(g).LowestPeak());
    const Order order = contraction.graph.OriginalOrder();
    ASSERT_EQ(PeakBytes(contraction.graph, order), PeakBytes(g, contraction.Expand(order)));
    partial += !reduction.is_dominant;
  }
  EXPECT_GT(partial, 100);
}

}  // namespace
}  // namespace torch_ext::sched::test
