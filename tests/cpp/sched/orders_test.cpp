#include "sched/orders.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "sched/bound.h"
#include "sched/instance.h"
#include "sched/simulate.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

constexpr double kAmple = 1000;  // seconds of work, never reached

struct Named {
  std::string name;
  std::optional<Order> order;
};

std::vector<Named> AllOrders(const Graph& g, double seconds = kAmple) {
  std::vector<Named> orders = {{"depth-first", DepthFirstOrder(g)}};
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    const std::string way = direction == Direction::kForward ? " forward" : " backward";
    Budget greedy(seconds);
    orders.push_back({"greedy" + way, GreedyOrder(g, direction, greedy)});
    for (const std::int32_t width : {1, 2, 16}) {
      Budget beam(seconds);
      orders.push_back(
          {"beam " + std::to_string(width) + way, BeamOrder(g, direction, width, 0, beam)});
    }
  }
  return orders;
}

TEST(OrdersTest, AnEmptyGraphHasTheEmptyOrder) {
  for (const Named& candidate : AllOrders(Graph())) {
    ASSERT_TRUE(candidate.order) << candidate.name;
    EXPECT_TRUE(candidate.order->empty()) << candidate.name;
  }
}

TEST(OrdersTest, AChainHasOnlyOneOrder) {
  const Graph g = ParseInstance("graph 1\nop a\nop b after a\nop c after b");
  for (const Named& candidate : AllOrders(g)) {
    EXPECT_EQ(candidate.order, (Order{0, 1, 2})) << candidate.name;
  }
}

TEST(OrdersTest, TiesGoToTheOriginalOrder) {
  const Graph g = ParseInstance("graph 1\nop a\nop b\nop c\nop d");
  EXPECT_EQ(DepthFirstOrder(g), (Order{0, 1, 2, 3}));
  Budget budget(kAmple);
  EXPECT_EQ(GreedyOrder(g, Direction::kForward, budget), (Order{0, 1, 2, 3}));
}

// Two branches: first the one that needs more on the way, then keep its small result.
TEST(OrdersTest, DepthFirstEntersTheDearerBranchFirst) {
  const Graph g = ParseInstance(R"(graph 1
buffer s 5
buffer l 50
buffer s2 1
buffer l2 1
op small_1 writes s
op large_1 writes l
op small_2 reads s writes s2
op large_2 reads l writes l2
op join reads s2 l2
)");
  EXPECT_EQ(DepthFirstOrder(g), (Order{1, 3, 0, 2, 4}));
}

TEST(OrdersTest, DepthFirstRunsNothingBeforeItIsNeeded) {
  const Graph g = ParseInstance(R"(graph 1
buffer a 1
buffer b 1
op make_a writes a
op make_b writes b
op use_a reads a
op use_b reads b
)");
  EXPECT_EQ(DepthFirstOrder(g), (Order{0, 2, 1, 3}));
}

TEST(OrdersTest, GreedyTakesTheStepThatLeavesLeastThenTheLowestHill) {
  const Graph g = ParseInstance(R"(graph 1
buffer x 5 input
buffer y 5 input
buffer z 3 input
op free_3 reads z
op free_5_high reads x workspace 9
op free_5_low reads y
)");
  Budget budget(kAmple);
  EXPECT_EQ(GreedyOrder(g, Direction::kForward, budget), (Order{2, 1, 0}));
}

TEST(OrdersTest, GreedyBackwardStartsOutputsLate) {
  // Forward greedy starts the cheap sources at once; backward nothing runs before it must.
  const Graph g = ParseInstance(R"(graph 1
buffer a 1
buffer b 2
buffer c 3
buffer r 9
op a writes a
op b writes b
op c writes c
op big reads c writes r
op sum reads r
op use_b reads b
op use_a reads a
)");
  Budget budget(kAmple);
  const auto order = GreedyOrder(g, Direction::kBackward, budget);
  ASSERT_TRUE(order);
  EXPECT_EQ(PeakBytes(g, *order), 12);
}

// The header's claim: where every good start is dearer than `width` bad ones, the beam is wrong.
TEST(OrdersTest, ANarrowBeamCanFailWhereAWideOneDoesNot) {
  bool narrow_failed = false;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const Graph g = RandomGraph(seed, 12);
    SCOPED_TRACE(Describe(g, seed));
    const std::int64_t lowest = DownSets(g).LowestPeak();
    Budget budget(kAmple);
    const auto narrow = BeamOrder(g, Direction::kForward, 1, 0, budget);
    const auto wide = BeamOrder(g, Direction::kForward, 4096, 0, budget);
    ASSERT_TRUE(narrow && wide);
    ASSERT_EQ(PeakBytes(g, *wide), lowest) << "a beam wider than all levels is exact";
    narrow_failed = narrow_failed || PeakBytes(g, *narrow) > lowest;
  }
  EXPECT_TRUE(narrow_failed);
}

TEST(OrdersTest, WithoutWorkThereIsNoOrder) {
  const Graph g = ParseInstance(
      "graph 1\nbuffer x 1 kept\nbuffer y 1 kept\nop a writes x\n"
      "op b writes y");
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    Budget none(0);
    EXPECT_FALSE(GreedyOrder(g, direction, none));
    EXPECT_FALSE(BeamOrder(g, direction, 4, 0, none));
  }
}

TEST(OrdersRandomTest, OrdersAreValidAndTheSameEveryTime) {
  for (int i = 0; i < ScaledCount(800); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 30);
    SCOPED_TRACE(Describe(g, seed));
    const std::vector<Named> first = AllOrders(g);
    const std::vector<Named> second = AllOrders(g);
    for (std::size_t k = 0; k < first.size(); ++k) {
      ASSERT_TRUE(first[k].order) << first[k].name;
      ASSERT_TRUE(IsValidOrder(g, *first[k].order)) << first[k].name;
      ASSERT_EQ(first[k].order, second[k].order) << first[k].name;
    }
  }
}

TEST(OrdersRandomTest, AFloorThatIsABoundLosesNothingInAWideBeam) {
  for (int i = 0; i < ScaledCount(400); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 11);
    SCOPED_TRACE(Describe(g, seed));
    Budget budget(kAmple);
    const std::int64_t floor = BestClosureBound(g, g.OriginalOrder(), budget).bytes;
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      const auto order = BeamOrder(g, direction, 4096, floor, budget);
      ASSERT_TRUE(order);
      ASSERT_EQ(PeakBytes(g, *order), DownSets(g).LowestPeak());
    }
  }
}

TEST(OrdersRandomTest, ABudgetThatEndsGivesNothingOrAWholeValidOrder) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 20);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const double units = static_cast<double>(random.Between(1, 200));
    for (const Named& candidate : AllOrders(g, units / Budget::kWorkPerSecond)) {
      if (candidate.order) {
        ASSERT_TRUE(IsValidOrder(g, *candidate.order)) << candidate.name;
      }
    }
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
