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
    ForEachOrder(g,
                 [&](const Order& other) { ASSERT_TRUE(Dominates(form, CanonicalOf(g, other))); });
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
    ForEachOrder(g,
                 [&](const Order& other) { ASSERT_TRUE(Dominates(form, CanonicalOf(g, other))); });
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

// Copies of one part, and perhaps another, between a source and a sink; all parts read the same one
// or two buffers.
Graph EqualParts(std::uint64_t seed) {
  Random random(seed);
  Graph g;
  std::vector<BufferId> shared;
  for (std::int64_t i = random.Between(1, 2); i > 0; --i) {
    shared.push_back(g.AddBuffer("shared" + std::to_string(i), random.Between(0, 9)));
  }
  g.AddOp("source", {}, shared);
  struct PartOp {
    std::vector<std::size_t> reads;  // of the part's earlier ops
    std::size_t shared;              // which shared buffer it reads, if there are as many
    std::int64_t size, workspace;
  };
  std::vector<BufferId> results;
  int part_number = 0;
  const auto add_part = [&](const std::vector<PartOp>& part) {
    std::vector<BufferId> written;
    ++part_number;
    for (std::size_t i = 0; i < part.size(); ++i) {
      const std::string name = std::to_string(part_number) + "_" + std::to_string(i);
      std::vector<BufferId> reads;
      for (std::size_t r : part[i].reads) reads.push_back(written[r]);
      if (part[i].shared < shared.size()) reads.push_back(shared[part[i].shared]);
      written.push_back(g.AddBuffer("b" + name, part[i].size));
      g.AddOp("op" + name, reads, {written.back()}, part[i].workspace);
    }
    results.push_back(written.back());
  };
  const auto draw_part = [&] {
    std::vector<PartOp> part;
    const auto size = static_cast<std::size_t>(random.Between(1, 4));
    for (std::size_t i = 0; i < size; ++i) {
      PartOp op{{},
                static_cast<std::size_t>(random.Between(0, 3)),
                random.Between(0, 9),
                random.Between(0, 3)};
      if (i > 0) op.reads.push_back(i - 1);
      if (i > 1 && random.Chance(30)) op.reads.assign(1, i - 2);
      if (i == 0) op.shared = 0;
      part.push_back(op);
    }
    return part;
  };
  const std::vector<PartOp> part = draw_part();
  const auto copies = random.Between(2, 3);
  for (std::int64_t i = 0; i < copies; ++i) add_part(part);
  if (random.Chance(40)) add_part(draw_part());
  g.AddOp("sink", results, {});
  return g;
}

TEST(ReduceRandomTest, EqualPartsMayKeepOneSequence) {
  for (int i = 0; i < ScaledCount(600); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = EqualParts(seed);
    SCOPED_TRACE(Describe(g, seed));
    std::vector<Segment> forms[2];
    for (const bool symmetry : {false, true}) {
      Rules rules;
      rules.symmetry = symmetry;
      Budget budget(kAmple);
      const Reduction reduction = Reduce(g, FindRegions(g), rules, budget);
      ASSERT_TRUE(reduction.is_dominant);
      ASSERT_TRUE(IsValidOrder(g, reduction.chains.front().ops));
      ASSERT_EQ(PeakBytes(g, reduction.chains.front().ops), DownSets(g).LowestPeak());
      forms[symmetry] = reduction.chains.front().segments;
    }
    ASSERT_TRUE(Dominates(forms[1], forms[0]));
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
