// Each rule by what it does to a program; that adaptors see what the rules need is tested there
// (interference_test.cpp, test_fx_ordering.py).
#include "program/hazards.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "program/lower.h"

namespace torch_ext::program {
namespace {

Program Ops(const std::vector<Effects>& effects) {
  Program program;
  for (const Effects& each : effects) {
    program.ops.push_back(
        {.name = "op" + std::to_string(program.ops.size()), .oper = "aten::op", .effects = each});
  }
  return program;
}

std::set<std::pair<OpId, OpId>> EdgesOf(const Program& program, const HazardRules& rules = {}) {
  const Edges edges = OrderEdges(program, rules);
  return {edges.begin(), edges.end()};
}

const Effects kNone;
using Pairs = std::set<std::pair<OpId, OpId>>;

TEST(Hazards, AProgramWithoutEffectsIsFree) {
  EXPECT_EQ(EdgesOf(Ops({kNone, kNone, kNone})), Pairs{});
}

TEST(Hazards, NothingPassesABarrier) {
  const Effects unknown{.undeclared = "written in Python"}, stateful{.is_stateful = true};
  const Effects metadata{.changes_metadata = true};
  for (const Effects& barrier : {unknown, stateful, metadata}) {
    const Program program = Ops({kNone, kNone, barrier, kNone});
    EXPECT_EQ(EdgesOf(program), (Pairs{{0, 2}, {1, 2}, {2, 3}}));
    EXPECT_FALSE(WhyBarrier(program.ops[2]).empty());
    EXPECT_TRUE(WhyBarrier(program.ops[1]).empty());
  }
  EXPECT_EQ(WhyBarrier(Ops({unknown}).ops[0]), "aten::op: written in Python");
}

TEST(Hazards, WhatShowsOrDrawsKeepsItsSequence) {
  for (const Effects& each : {Effects{.draws_random_numbers = true},
                              Effects{.has_side_effect = true}, Effects{.is_collective = true}}) {
    EXPECT_EQ(EdgesOf(Ops({each, kNone, each, each})), (Pairs{{0, 2}, {2, 3}}));
  }
}

TEST(Hazards, SideEffectsKeepTheirPlaceAgainstWhatOutlivesTheCall) {
  const Effects shows{.has_side_effect = true};
  for (const Effects& lasting :
       {Effects{.draws_random_numbers = true}, Effects{.writes_outside = true}}) {
    EXPECT_EQ(EdgesOf(Ops({lasting, kNone, shows, lasting})).contains({0, 2}), true);
    EXPECT_EQ(EdgesOf(Ops({lasting, kNone, shows, lasting})).contains({2, 3}), true);
    EXPECT_EQ(EdgesOf(Ops({lasting, kNone, shows, lasting})).contains({1, 2}), false);
  }
}

TEST(Hazards, EachRuleIsWhatHoldsItsOwn) {
  Program conflicts = Ops({kNone, kNone, kNone});
  conflicts.conflicts = {{0, 1, false}, {1, 2, true}};
  const Effects draws{.draws_random_numbers = true}, shows{.has_side_effect = true};
  const std::vector<std::pair<const char*, Program>> held = {
      {"mutation", conflicts},
      {"statistics", conflicts},
      {"random", Ops({draws, draws})},
      {"side_effect", Ops({shows, shows})},
      {"outlives", Ops({draws, shows})},
      {"unknown", Ops({kNone, {.undeclared = "?"}})},
      {"stateful", Ops({kNone, {.is_stateful = true}})},
  };
  ASSERT_EQ(held.size(), kHazardRuleNames.size());
  for (std::size_t i = 0; i < held.size(); ++i) {
    ASSERT_STREQ(held[i].first, kHazardRuleNames[i].first);
    HazardRules without;
    without.*kHazardRuleNames[i].second = false;
    EXPECT_LT(EdgesOf(held[i].second, without).size(), EdgesOf(held[i].second).size())
        << held[i].first;
  }
}

TEST(Lower, PrecedenceIsDataFlowAndHazards) {
  Program program = Ops({kNone, kNone, kNone, kNone});
  program.buffers = {{.name = "x", .bytes = 4, .is_input = true},
                     {.name = "y", .bytes = 8, .kept = true}};
  program.ops[0].reads = {0};
  program.ops[1].writes = {1};
  program.ops[1].workspace_bytes = 16;
  program.ops[2].makers = {0};
  program.conflicts = {{0, 3, false}};
  const sched::Graph graph = Lower(program);
  EXPECT_EQ(graph.op(2).predecessors, std::vector<OpId>{0});
  EXPECT_EQ(graph.op(3).predecessors, std::vector<OpId>{0});
  EXPECT_TRUE(graph.op(1).predecessors.empty());
  EXPECT_EQ(graph.HillBytes(1), 24);
  EXPECT_TRUE(graph.buffer(0).is_input());
  EXPECT_TRUE(graph.buffer(1).kept);
}

}  // namespace
}  // namespace torch_ext::program
