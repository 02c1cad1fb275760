#include "sched/flow.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

struct Edge {
  std::int32_t from, to;
  std::int64_t capacity;
};

struct Network {
  std::int32_t num_nodes;
  std::vector<Edge> edges;

  FlowNetwork Build() const {
    FlowNetwork network;
    while (network.AddNode() + 1 < num_nodes) {
    }
    for (const Edge& e : edges) network.AddEdge(e.from, e.to, e.capacity);
    return network;
  }
  // By the definition, over all sets that hold the source and not the sink.
  std::int64_t MinimumCut() const {
    std::int64_t lowest = std::numeric_limits<std::int64_t>::max();
    for (std::uint32_t set = 1; set < 1u << num_nodes; set += 4) {
      std::int64_t cut = 0;
      for (const Edge& e : edges) cut += ((set >> e.from) & ~(set >> e.to) & 1) * e.capacity;
      lowest = std::min(lowest, cut);
    }
    return lowest;
  }
};

Network RandomNetwork(std::uint64_t seed) {
  Random random(seed);
  Network network{static_cast<std::int32_t>(random.Between(3, 8)), {}};
  for (std::int64_t i = random.Between(0, 20); i > 0; --i) {
    network.edges.push_back({static_cast<std::int32_t>(random.Between(0, network.num_nodes - 1)),
                             static_cast<std::int32_t>(random.Between(0, network.num_nodes - 1)),
                             random.Between(0, 9)});
  }
  return network;
}

TEST(FlowNetworkRandomTest, TheFlowIsTheMinimumCutAndBothEndsOfTheCutsAreCuts) {
  for (int i = 0; i < ScaledCount(2000); ++i) {
    SCOPED_TRACE(i);
    const Network random = RandomNetwork(static_cast<std::uint64_t>(i));
    FlowNetwork network = random.Build();
    Budget budget(1000);
    const std::int64_t flow = network.MaxFlow(budget);
    ASSERT_TRUE(network.is_maximal());
    ASSERT_EQ(flow, random.MinimumCut());
    const std::vector<char> waits = network.AlwaysOnSinkSide();
    std::int64_t smallest = 0, largest = 0;
    for (const Edge& e : random.edges) {
      if (network.OnSourceSide(e.from) && !network.OnSourceSide(e.to)) smallest += e.capacity;
      if (!waits[e.from] && waits[e.to]) largest += e.capacity;
    }
    ASSERT_EQ(smallest, flow);
    ASSERT_EQ(largest, flow);
  }
}

TEST(FlowNetworkRandomTest, GoesOnFromAMarkAndComesBack) {
  for (int i = 0; i < ScaledCount(1000); ++i) {
    SCOPED_TRACE(i);
    Network random = RandomNetwork(static_cast<std::uint64_t>(i));
    if (random.edges.empty()) continue;
    FlowNetwork network = random.Build();
    Budget budget(1000);
    const std::int64_t before = network.MaxFlow(budget);
    network.SetMark();
    network.RaiseCapacity(0, 5);
    random.edges.front().capacity += 5;
    const std::int64_t after = random.MinimumCut();
    ASSERT_EQ(network.MaxFlow(budget), after);
    network.ReturnToMark();
    ASSERT_EQ(network.MaxFlow(budget), before);
    network.RaiseCapacity(0, 5);
    const std::int64_t enough = before + 1;
    ASSERT_GE(network.MaxFlow(budget, enough), std::min(after, enough));
    ASSERT_LE(network.MaxFlow(budget, enough), after);
  }
}

TEST(FlowNetworkRandomTest, ABudgetThatEndsLeavesALowerBound) {
  int unfinished = 0;
  for (int i = 0; i < ScaledCount(500); ++i) {
    SCOPED_TRACE(i);
    const Network random = RandomNetwork(static_cast<std::uint64_t>(i));
    FlowNetwork network = random.Build();
    Budget none(0);
    ASSERT_LE(network.MaxFlow(none), random.MinimumCut());
    unfinished += !network.is_maximal();
  }
  EXPECT_GT(unfinished, 50);
}

}  // namespace
}  // namespace torch_ext::sched::test
