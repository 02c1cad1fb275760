#include "sched/arena_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "sched/addresses.h"
#include "sched/simulate.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

std::int64_t HeightAlong(const Graph& graph, const Order& order) {
  Budget budget(1);
  return PlanAddresses(LifetimesAlong(graph, order), budget).height_bytes;
}

// Over all orders, of those whose peak is at most `limit_bytes`.
std::int64_t LeastHeight(const Graph& graph, std::int64_t limit_bytes) {
  Order order = graph.OriginalOrder();
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  do {
    if (IsValidOrder(graph, order) && PeakBytes(graph, order) <= limit_bytes) {
      least = std::min(least, HeightAlong(graph, order));
    }
  } while (std::next_permutation(order.begin(), order.end()));
  return least;
}

TEST(ArenaOrderTest, LifetimesAreThoseOfBuffersThatEndInside) {
  Graph graph;
  const BufferId in = graph.AddInput("in", 1000);
  const BufferId a = graph.AddBuffer("a", 100);
  const BufferId b = graph.AddBuffer("b", 64);
  const BufferId out = graph.AddBuffer("out", 10, /*kept=*/true);
  graph.AddOp("first", {in}, {a}, 30);
  graph.AddOp("second", {a}, {b});
  graph.AddOp("third", {b}, {out});
  const std::vector<Lifetime> lifetimes = LifetimesAlong(graph, graph.OriginalOrder());
  ASSERT_EQ(lifetimes.size(), 3u);
  const auto is = [&](std::size_t i, std::int64_t bytes, std::int32_t begin, std::int32_t end) {
    return lifetimes[i].bytes == bytes && lifetimes[i].begin == begin && lifetimes[i].end == end;
  };
  EXPECT_TRUE(is(0, 128, 0, 2));
  EXPECT_TRUE(is(1, 64, 1, 3));
  EXPECT_TRUE(is(2, 64, 0, 1));
  EXPECT_EQ(ArenaBoundBytes(graph, {}), 192);
}

// Results lie outside of arenas: of two orders of equal peak one needs less of one.
TEST(ArenaOrderTest, TheOrderWithTheLowerArenaIsFound) {
  Graph graph;
  const BufferId in = graph.AddInput("in", 64);
  const BufferId early = graph.AddBuffer("early", 6400, /*kept=*/true);
  const BufferId late = graph.AddBuffer("late", 6400);
  const BufferId sum = graph.AddBuffer("sum", 64, /*kept=*/true);
  const BufferId hill = graph.AddBuffer("hill", 6400);
  const BufferId end = graph.AddBuffer("end", 64, /*kept=*/true);
  graph.AddOp("make_early", {in}, {early});
  graph.AddOp("make_late", {in}, {late});
  graph.AddOp("make_hill", {in}, {hill});
  graph.AddOp("use_hill", {hill}, {end});
  graph.AddOp("use_late", {late}, {sum});
  const Order order = graph.OriginalOrder();
  ASSERT_EQ(HeightAlong(graph, order), 12800);
  const ArenaOrder found = LowerArena(graph, order, {});
  EXPECT_EQ(found.height_bytes, 6400);
  EXPECT_EQ(found.bound_bytes, 6400);
  EXPECT_LE(PeakBytes(graph, found.order), PeakBytes(graph, order));
}

TEST(ArenaOrderRandomTest, IsValidNoHigherAndAboveItsBound) {
  int num_lowered = 0, num_best = 0, num_seen = 0;
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph graph = RandomGraph(seed, 7);
    SCOPED_TRACE(Describe(graph, seed));
    const Order order = graph.OriginalOrder();
    const std::int64_t limit = PeakBytes(graph, order);
    const ArenaOrder found = LowerArena(graph, order, {.time_budget_seconds = 0.05});
    ASSERT_TRUE(IsValidOrder(graph, found.order));
    ASSERT_LE(PeakBytes(graph, found.order), limit);
    const std::int64_t least = LeastHeight(graph, limit);
    const std::int64_t least_of_all = LeastHeight(graph, std::numeric_limits<std::int64_t>::max());
    ASSERT_LE(found.bound_bytes, least_of_all);
    ASSERT_GE(found.height_bytes, least);
    ASSERT_LE(found.height_bytes, HeightAlong(graph, order));
    ASSERT_EQ(found.height_bytes, HeightAlong(graph, found.order));
    ++num_seen;
    num_lowered += found.height_bytes < HeightAlong(graph, order) ? 1 : 0;
    num_best += found.height_bytes == least ? 1 : 0;
  }
  EXPECT_GT(num_lowered, 0);
  EXPECT_GE(10 * num_best, 9 * num_seen);
}

}  // namespace
}  // namespace torch_ext::sched::test
