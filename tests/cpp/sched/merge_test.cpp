#include "sched/merge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>

#include "sched/instance.h"
#include "sched/simulate.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

// Far from linear, and small enough to be summed.
std::int64_t Steep(std::int64_t hill_bytes) {
  const std::int64_t coarse = hill_bytes >> 16;
  return coarse * coarse;
}

TEST(MergeTest, TwoEmptyChainsMakeAnEmptyOrder) {
  const Graph g;
  EXPECT_EQ(MergeGrid(g, {}, {}).Cheapest(0, [](auto...) { return 0; }), Order{});
}

TEST(MergeTest, RunsTheSecondChainFirstAmongEqualCosts) {
  const Graph g = ParseInstance("graph 1\nop a\nop b\nop c");
  const MergeGrid grid(g, Order{2}, Order{0, 1});
  EXPECT_EQ(grid.num_points(), 6);
  EXPECT_EQ(grid.Cheapest(0, [](auto...) { return 0; }), (Order{0, 1, 2}));
}

// `grow` holds 5 for ever, `high` needs 10 while it runs: within 14, `high` must come first.
TEST(MergeTest, KeepsEveryHillWithinTheLimit) {
  const Graph g = ParseInstance(R"(graph 1
buffer y 5 kept
op grow writes y
op high workspace 10
)");
  const MergeGrid grid(g, Order{1}, Order{0});
  const auto free = [](auto...) { return 0; };
  EXPECT_EQ(grid.Cheapest(15, free), (Order{0, 1}));
  EXPECT_EQ(grid.Cheapest(14, free), (Order{1, 0}));
  EXPECT_EQ(grid.Cheapest(9, free), std::nullopt);
}

// Every interleaving of the two chains that is a valid order.
void ForEachInterleaving(const Graph& graph, const Order& a, const Order& b,
                         const std::function<void(const Order&)>& visit) {
  std::vector<char> from_b(a.size() + b.size(), 0);
  std::fill(from_b.begin() + static_cast<std::ptrdiff_t>(a.size()), from_b.end(), 1);
  do {
    Order order;
    std::size_t i = 0, j = 0;
    for (char b_next : from_b) order.push_back(b_next ? b[j++] : a[i++]);
    if (IsValidOrder(graph, order)) visit(order);
  } while (std::next_permutation(from_b.begin(), from_b.end()));
}

TEST(MergeRandomTest, IsTheCheapestOfAllInterleavings) {
  int impossible = 0;
  for (int k = 0; k < ScaledCount(2000); ++k) {
    const auto seed = static_cast<std::uint64_t>(k);
    const Graph g = RandomGraph(seed, 10);
    Random random(seed);
    Order a, b;  // the restrictions of two different orders
    std::vector<char> in_a;
    for (OpId v = 0; v < g.num_ops(); ++v) in_a.push_back(random.Chance(50));
    for (OpId v : RandomOrder(g, random)) {
      if (in_a[v]) a.push_back(v);
    }
    for (OpId v : RandomOrder(g, random)) {
      if (!in_a[v]) b.push_back(v);
    }
    const std::int64_t limit = random.Chance(50) ? kNoLimit : DownSets(g).LowestPeak();
    SCOPED_TRACE(Describe(g, seed) + "a " + ::testing::PrintToString(a) + ", b " +
                 ::testing::PrintToString(b) + ", limit " + std::to_string(limit));

    const auto cost_of = [&](const Order& order) {
      std::int64_t cost = 0;
      for (std::int64_t hill : NaiveSimulate(g, order).hill_bytes) cost += Steep(hill);
      return cost;
    };
    std::optional<std::int64_t> lowest;
    ForEachInterleaving(g, a, b, [&](const Order& order) {
      if (NaiveSimulate(g, order).peak_bytes > limit) return;
      lowest = std::min(lowest.value_or(kNoLimit), cost_of(order));
    });
    const std::optional<Order> merged = MergeGrid(g, a, b).Cheapest(
        limit, [](std::size_t, std::size_t, OpId, std::int64_t hill) { return Steep(hill); });
    ASSERT_EQ(merged.has_value(), lowest.has_value());
    impossible += !merged;
    if (!merged) continue;
    ASSERT_TRUE(IsValidOrder(g, *merged));
    ASSERT_LE(NaiveSimulate(g, *merged).peak_bytes, limit);
    ASSERT_EQ(cost_of(*merged), *lowest);
  }
  EXPECT_GT(impossible, 50) << "the test must see chains that do not fit the limit";
}

}  // namespace
}  // namespace torch_ext::sched::test
