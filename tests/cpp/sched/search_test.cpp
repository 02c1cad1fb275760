#include "sched/search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "sched/bound.h"
#include "sched/instance.h"
#include "sched/simulate.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

constexpr double kAmple = 1000;  // seconds of work, never reached
constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();
constexpr std::array kDirections = {Direction::kForward, Direction::kBackward};

struct SearchResult {
  std::optional<Order> order;    // an order with the lowest peak, if that is below the limit
  std::int64_t bound_bytes = 0;  // no order has a lower peak
  bool exhausted = false;        // the search ended by itself: the bound is exact
};

SearchResult Search(const Graph& graph, Direction direction, std::int64_t floor_bytes,
                    std::int64_t below_bytes, Budget& budget) {
  DownSetSearch search(StateSpace(graph, direction), floor_bytes, below_bytes);
  const DownSetSearch::Found found = search.FindGoal(budget);
  SearchResult result{std::nullopt, search.key_bytes(),
                      found != DownSetSearch::Found::kOutOfBudget};
  if (found == DownSetSearch::Found::kGoal) {
    result.order = search.StepsToFound();
    if (direction == Direction::kBackward) std::ranges::reverse(*result.order);
  }
  return result;
}

TEST(SearchTest, AnEmptyGraphHasTheEmptyOrder) {
  Graph g;
  g.AddInput("kept", 5, true);
  for (const Direction direction : kDirections) {
    Budget budget(kAmple);
    const SearchResult result = Search(g, direction, 5, kNoLimit, budget);
    ASSERT_TRUE(result.order);
    EXPECT_TRUE(result.order->empty());
    EXPECT_EQ(result.bound_bytes, 5);
    EXPECT_TRUE(result.exhausted);
  }
}

// Finish one branch before the other starts: 10 + 1, not 10 + 10.
TEST(SearchTest, FinishesOneBranchBeforeTheOtherStarts) {
  const Graph g = ParseInstance(R"(graph 1
buffer a 10
buffer b 10
buffer small_a 1
buffer small_b 1
op wide_a writes a
op wide_b writes b
op narrow_a reads a writes small_a
op narrow_b reads b writes small_b
op join reads small_a small_b
)");
  for (const Direction direction : kDirections) {
    Budget budget(kAmple);
    const SearchResult result = Search(g, direction, 0, kNoLimit, budget);
    ASSERT_TRUE(result.order);
    EXPECT_EQ(PeakBytes(g, *result.order), 12);
    EXPECT_EQ(result.bound_bytes, 12);
    EXPECT_TRUE(result.exhausted);
  }
}

TEST(SearchTest, AFloorAtTheLimitLeavesNothingToSearch) {
  const Graph g = ParseInstance("graph 1\nop v workspace 7");
  Budget none(0);
  const SearchResult result = Search(g, Direction::kForward, 7, 7, none);
  EXPECT_FALSE(result.order);
  EXPECT_EQ(result.bound_bytes, 7);
  EXPECT_TRUE(result.exhausted);
}

TEST(SearchTest, MemoryEndsTheSearchToo) {
  Random random(1);
  const Graph g = RandomGraph(Shape::kIndependent, 14, random);
  const std::int64_t lowest = DownSets(g).LowestPeak();
  Budget budget(kAmple, /*memory_bytes=*/1);
  const SearchResult result = Search(g, Direction::kForward, 0, kNoLimit, budget);
  EXPECT_FALSE(result.exhausted);
  EXPECT_FALSE(result.order);
  EXPECT_LE(result.bound_bytes, lowest);
}

TEST(SearchRandomTest, BothDirectionsFindTheLowestPeakOfAllOrders) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 8);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = LowestPeakOfAllOrders(g);
    for (const Direction direction : kDirections) {
      Budget budget(kAmple);
      const SearchResult result = Search(g, direction, 0, kNoLimit, budget);
      ASSERT_TRUE(result.order);
      ASSERT_TRUE(result.exhausted);
      ASSERT_EQ(NaiveSimulate(g, *result.order).peak_bytes, lowest);
      ASSERT_EQ(result.bound_bytes, lowest);
    }
  }
}

TEST(SearchRandomTest, BothDirectionsAgreeWithTheDownSetOracleUnderAnyFloorAndLimit) {
  for (int i = 0; i < ScaledCount(800); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    Random random(seed);
    for (const Direction direction : kDirections) {
      Budget budget(kAmple);
      const std::int64_t closure = BestClosureBound(g, g.OriginalOrder(), budget).bytes;
      for (const std::int64_t floor :
           {std::int64_t{0}, closure, random.Between(0, lowest), lowest}) {
        for (const std::int64_t below :
             {kNoLimit, lowest + 1, lowest, random.Between(lowest / 2, lowest * 2)}) {
          const SearchResult result = Search(g, direction, floor, below, budget);
          ASSERT_TRUE(result.exhausted);
          ASSERT_EQ(result.order.has_value(), lowest < below) << floor << " " << below;
          ASSERT_EQ(result.bound_bytes, std::min(lowest, below)) << floor << " " << below;
          if (!result.order) continue;
          ASSERT_EQ(NaiveSimulate(g, *result.order).peak_bytes, lowest);
          ASSERT_TRUE(IsValidOrder(g, *result.order));
        }
      }
    }
  }
}

// A floor above the optimum, as the plan uses it for a block that something else outweighs: hills
// up to it are all the same, so whatever keeps within it will do.
TEST(SearchRandomTest, AFloorAboveTheOptimumIsKept) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 12);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const std::int64_t lowest = DownSets(g).LowestPeak();
    const std::int64_t floor = random.Between(lowest, lowest * 2 + 1);
    Budget budget(kAmple);
    for (const Direction direction : kDirections) {
      const SearchResult result = Search(g, direction, floor, kNoLimit, budget);
      ASSERT_TRUE(result.order);
      ASSERT_LE(PeakBytes(g, *result.order), floor);
    }
  }
}

TEST(SearchRandomTest, ATruncatedSearchReturnsABoundThatHolds) {
  int truncated = 0;
  for (int i = 0; i < ScaledCount(600); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    for (const Direction direction : kDirections) {
      std::int64_t previous = 0;
      for (const int units : {1, 10, 40, 160, 640}) {
        Budget budget(units / Budget::kWorkPerSecond);
        const SearchResult result = Search(g, direction, 0, kNoLimit, budget);
        ASSERT_LE(result.bound_bytes, lowest);
        ASSERT_GE(result.bound_bytes, previous) << "more work, weaker bound";
        previous = result.bound_bytes;
        ASSERT_EQ(result.order.has_value(), result.exhausted);
        if (result.exhausted) {
          ASSERT_EQ(result.bound_bytes, lowest);
        }
        truncated += !result.exhausted;
      }
    }
  }
  EXPECT_GT(truncated, 200) << "the test must see truncated searches";
}

TEST(SearchRandomTest, TheResultIsTheSameEveryTime) {
  for (int i = 0; i < ScaledCount(200); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    for (const Direction direction : kDirections) {
      Budget once(kAmple);
      Budget again(kAmple);
      ASSERT_EQ(Search(g, direction, 0, kNoLimit, once).order,
                Search(g, direction, 0, kNoLimit, again).order);
      ASSERT_EQ(once.work_left(), again.work_left());
    }
  }
}

// Reversing time turns one direction into the other and leaves the lowest peak as it is.
TEST(SearchRandomTest, ReversedTimeSwapsTheDirections) {
  for (int i = 0; i < ScaledCount(400); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = WithOneReaderEach(RandomGraph(seed, 12));
    SCOPED_TRACE(Describe(g, seed));
    const Graph reversed = Reversed(g);
    Random random(seed);
    Order order = RandomOrder(g, random);
    const NaiveProfile profile = NaiveSimulate(g, order);
    Order mirrored(order.rbegin(), order.rend());
    for (OpId& v : mirrored) v = g.num_ops() - 1 - v;
    NaiveProfile mirror = NaiveSimulate(reversed, mirrored);
    std::ranges::reverse(mirror.hill_bytes);
    ASSERT_EQ(mirror.hill_bytes, profile.hill_bytes) << PrintInstance(reversed);
    const std::int64_t lowest = DownSets(g).LowestPeak();
    for (const Direction direction : kDirections) {
      Budget budget(kAmple);
      ASSERT_EQ(Search(reversed, direction, 0, kNoLimit, budget).bound_bytes, lowest);
    }
  }
}

// In small portions, and with a limit that falls on the way.
TEST(SearchRandomTest, GoesOnWhereABudgetEnded) {
  int portions = 0;
  for (int i = 0; i < ScaledCount(400); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    for (const Direction direction : kDirections) {
      DownSetSearch search(StateSpace(g, direction), 0, kNoLimit);
      DownSetSearch::Found found = DownSetSearch::Found::kOutOfBudget;
      while (found == DownSetSearch::Found::kOutOfBudget) {
        Budget part = Budget(kAmple).Part(5);
        found = search.FindGoal(part);
        ASSERT_LE(search.key_bytes(), lowest);
        search.LowerLimit(lowest + 1 + 100 / ++portions);
      }
      ASSERT_EQ(found, DownSetSearch::Found::kGoal);
      ASSERT_EQ(search.key_bytes(), lowest);
      DownSetSearch impossible(StateSpace(g, direction), 0, kNoLimit);
      impossible.LowerLimit(lowest);
      Budget ample(kAmple);
      ASSERT_EQ(impossible.FindGoal(ample), DownSetSearch::Found::kNothing);
      ASSERT_EQ(impossible.key_bytes(), lowest);
    }
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
