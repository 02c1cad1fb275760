// Graphs that are easy to write down and hard on a planner: nothing may crash, recurse deeply, take
// quadratic memory or return anything but a valid plan.
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "sched/plan.h"
#include "sched/simulate.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

std::string Name(const char* what, std::int64_t i) {
  return what + std::to_string(i);
}

void ExpectAValidPlan(const Graph& graph, const Rules& rules = {}) {
  PlanOptions options;
  options.time_budget_seconds = 0.3;
  options.rules = rules;
  const Plan plan = MakePlan(graph, options);
  ASSERT_TRUE(IsValidOrder(graph, plan.order));
  ASSERT_EQ(PeakBytes(graph, plan.order), plan.peak_bytes);
  ASSERT_LE(plan.peak_bytes, plan.original_peak_bytes);
  ASSERT_LE(plan.lower_bound_bytes, plan.peak_bytes);
}

TEST(HostileGraphTest, OneChain) {
  Graph g;
  BufferId last = g.AddInput("x", 1);
  for (int i = 0; i < 200'000; ++i) {
    const BufferId next = g.AddBuffer(Name("b", i), i % 7 + 1);
    g.AddOp(Name("op", i), {last}, {next});
    last = next;
  }
  ExpectAValidPlan(g);
}

TEST(HostileGraphTest, OneOpWithVeryManyReaders) {
  for (const bool kept : {false, true}) {
    Graph g;
    const BufferId hub = g.AddBuffer("hub", 100);
    g.AddOp("source", {}, {hub});
    for (int i = 0; i < 50'000; ++i) {
      g.AddOp(Name("op", i), {hub}, {g.AddBuffer(Name("b", i), i % 9, kept)});
    }
    ExpectAValidPlan(g);
  }
}

TEST(HostileGraphTest, ACompleteBipartiteGraph) {
  Graph g;
  std::vector<BufferId> all;
  for (int i = 0; i < 300; ++i) {
    all.push_back(g.AddBuffer(Name("b", i), i % 9 + 1));
    g.AddOp(Name("left", i), {}, {all.back()});
  }
  for (int i = 0; i < 300; ++i) g.AddOp(Name("right", i), all, {});
  ExpectAValidPlan(g);
}

TEST(HostileGraphTest, AGrid) {
  constexpr int kSide = 60;
  Random random(1);
  Graph g;
  std::vector<BufferId> buffers;
  for (int i = 0; i < kSide * kSide; ++i) {
    std::vector<BufferId> reads;
    if (i >= kSide) reads.push_back(buffers[static_cast<std::size_t>(i - kSide)]);
    if (i % kSide > 0) reads.push_back(buffers.back());
    buffers.push_back(g.AddBuffer(Name("b", i), random.Between(1, 20)));
    g.AddOp(Name("op", i), reads, {buffers.back()});
  }
  ExpectAValidPlan(g);
}

TEST(HostileGraphTest, NoEdgesAtAll) {
  Random random(1);
  Graph g;
  for (int i = 0; i < 10'000; ++i) {
    g.AddOp(Name("op", i), {}, {g.AddBuffer(Name("b", i), random.Between(0, 20), i % 2 == 0)},
            random.Between(0, 50));
  }
  ExpectAValidPlan(g);
}

// Regions nested as deep as there are ops.
TEST(HostileGraphTest, ACaterpillar) {
  Random random(1);
  Graph g;
  BufferId spine = g.AddInput("x", 1);
  for (int i = 0; i < 20'000; ++i) {
    const BufferId next = g.AddBuffer(Name("spine", i), random.Between(1, 9));
    g.AddOp(Name("spine_op", i), {spine}, {next});
    g.AddOp(Name("leaf_op", i), {next}, {g.AddBuffer(Name("leaf", i), random.Between(1, 9), true)});
    spine = next;
  }
  ExpectAValidPlan(g);
}

// Nested deeply, with readers of one buffer at every depth: finding what is open must not be cubic.
TEST(HostileGraphTest, ACaterpillarThatSharesItsInputs) {
  Graph g;
  std::vector<BufferId> shared;
  for (int i = 0; i < 4; ++i) shared.push_back(g.AddInput(Name("x", i), 5));
  std::vector<BufferId> reads = shared;
  for (int i = 0; i < 1'000; ++i) {
    const BufferId next = g.AddBuffer(Name("spine", i), i % 9 + 1);
    g.AddOp(Name("spine_op", i), reads, {next});
    reads = shared;
    reads.push_back(next);
    g.AddOp(Name("leaf_op", i), reads, {g.AddBuffer(Name("leaf", i), i % 7 + 1, true)});
  }
  ExpectAValidPlan(g);
}

// Too many ops for the searches, and nothing else allowed: planning must end all the same.
TEST(HostileGraphTest, NothingLeftToTry) {
  Graph g;
  const BufferId hub = g.AddBuffer("hub", 100);
  g.AddOp("source", {}, {hub});
  for (int i = 0; i < 21'000; ++i) {
    g.AddOp(Name("op", i), {hub}, {g.AddBuffer(Name("b", i), i % 9, i % 2 == 0)}, i % 13);
  }
  Rules rules;
  for (const auto& rule : kRuleNames) rules.*rule.second = false;
  ExpectAValidPlan(g, rules);
}

TEST(HostileGraphTest, SizesThatJustFitAndJustDoNot) {
  const std::int64_t half = kSizeLimitBytes / 2;
  Graph fits;
  fits.AddOp("a", {}, {fits.AddBuffer("a", half, true)});
  fits.AddOp("b", {}, {fits.AddBuffer("b", half - 1, true)});
  ExpectAValidPlan(fits);
  Graph overflows;
  overflows.AddBuffer("a", half);
  EXPECT_THROW(overflows.AddBuffer("b", half), std::invalid_argument);
}

}  // namespace
}  // namespace torch_ext::sched::test
