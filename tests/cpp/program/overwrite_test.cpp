#include "program/levers/overwrite.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "program/lower.h"
#include "sched/simulate.h"
#include "support/program_oracle.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::Oracle;
using test::RandomProgram;
using test::Shown;

TEST(Overwrite, FindsTheLowestOfAllOrdersAndChoices) {
  std::uint64_t gains = 0, choices = 0;
  for (std::uint64_t seed = 0; seed < Cases(1500); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const Oracle oracle(program);
    const std::int64_t lowest = oracle.LowestPeak({});
    const OverwritePlan found = PlanOverwrites(program, {});
    ASSERT_EQ(found.plan.peak_bytes, lowest);
    ASSERT_LE(found.plan.lower_bound_bytes, lowest);
    ASSERT_TRUE(found.plan.is_optimal());
    const sched::Graph graph = Lower(found.edited.program);
    ASSERT_EQ(sched::PeakBytes(graph, found.plan.order), lowest);
    std::set<BufferId> results, arguments;
    for (const std::size_t i : found.overwrites) {
      const Overwrite& overwrite = program.overwritable[i];
      ASSERT_TRUE(results.insert(overwrite.result).second);
      ASSERT_TRUE(arguments.insert(overwrite.argument).second);
    }
    gains += lowest < oracle.LowestPeak({.overwrite = false});
    choices += found.overwrites.size() > ForcedOverwrites(program).size();
  }
  EXPECT_GT(gains, Cases(1500) / 10);
  EXPECT_GT(choices, Cases(1500) / 100);
}

TEST(Overwrite, ABoundHoldsWhereChoicesAreLeft) {
  std::uint64_t open = 0;
  for (std::uint64_t seed = 0; seed < Cases(1500); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const std::int64_t lowest = Oracle(program).LowestPeak({});
    const OverwritePlan found = PlanOverwrites(program, {}, /*most_nodes=*/1);
    ASSERT_GE(found.plan.peak_bytes, lowest);
    ASSERT_LE(found.plan.lower_bound_bytes, lowest);
    ASSERT_EQ(found.plan.is_optimal(), found.plan.proof != sched::Proof::kNone);
    open += !found.plan.is_optimal();
  }
  EXPECT_GT(open, 0U);
}

TEST(Overwrite, WhatIsForcedNeverCosts) {
  for (std::uint64_t seed = 0; seed < Cases(1500); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const std::optional<Edited> base = WithOverwrites(program, ForcedOverwrites(program));
    ASSERT_TRUE(base.has_value());
    for (std::size_t i = 0; i < base->old_ops.size(); ++i) {
      ASSERT_EQ(base->old_ops[i], static_cast<OpId>(i));  // no order is lost
    }
    const sched::Graph before = Lower(program), after = Lower(base->program);
    for (OpId v = 0; v < before.num_ops(); ++v) {
      ASSERT_LE(sched::Simulate(after, after.OriginalOrder()).hill_bytes[v],
                sched::Simulate(before, before.OriginalOrder()).hill_bytes[v]);
    }
    // The same optimum is reached from there.
    ASSERT_EQ(Oracle(base->program).LowestPeak({}), Oracle(program).LowestPeak({}));
  }
}

TEST(Overwrite, AnArgumentThatIsReadLaterIsKeptOrItsReadersMove) {
  // x -> a -> b (over a?), and c reads a: c must come first, or b has memory of its own.
  Program program;
  program.buffers = {{.name = "a", .bytes = 4},
                     {.name = "b", .bytes = 4, .kept = true},
                     {.name = "c", .bytes = 1, .kept = true}};
  program.ops = {{.name = "make", .oper = "aten::make", .writes = {0}},
                 {.name = "over", .oper = "aten::relu", .reads = {0}, .writes = {1}},
                 {.name = "read", .oper = "aten::sum", .reads = {0}, .writes = {2}}};
  program.overwritable = {{1, 1, 0}};
  EXPECT_TRUE(ForcedOverwrites(program).empty());
  const OverwritePlan found = PlanOverwrites(program, {});
  ASSERT_EQ(found.overwrites.size(), 1U);
  EXPECT_EQ(found.plan.peak_bytes, 5);
  EXPECT_EQ(found.edited.old_ops, (std::vector<OpId>{0, 2, 1}));
  EXPECT_TRUE(found.plan.is_optimal());
}

TEST(Overwrite, WhatTheCallerHoldsIsNotWrittenTo) {
  for (const bool is_input : {true, false}) {
    Program program;
    program.buffers = {{.name = "a", .bytes = 4, .is_input = is_input, .kept = !is_input},
                       {.name = "b", .bytes = 4, .kept = true}};
    program.ops = {{.name = "over", .oper = "aten::relu", .reads = {0}, .writes = {1}}};
    if (!is_input) {
      program.ops.insert(program.ops.begin(),
                         {.name = "make", .oper = "aten::make", .writes = {0}});
    }
    program.overwritable = {{is_input ? 0 : 1, 1, 0}};
    const OverwritePlan found = PlanOverwrites(program, {});
    EXPECT_TRUE(found.overwrites.empty());
    EXPECT_EQ(found.plan.peak_bytes, 8);
  }
}

}  // namespace
}  // namespace torch_ext::program
