#include "program/levers/levers.h"

#include <gtest/gtest.h>

#include <optional>
#include <stdexcept>

#include "program/instance.h"
#include "program/lower.h"
#include "sched/addresses.h"
#include "sched/arena_order.h"
#include "sched/simulate.h"
#include "support/program_oracle.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::Oracle;
using test::RandomProgram;
using test::Shown;

TEST(Levers, AreAsLowAsTheirBestAndEditNoMoreThanThatNeeds) {
  std::uint64_t overwritten = 0, hoisted = 0;
  for (std::uint64_t seed = 0; seed < Cases(2000); ++seed) {
    const Program program = RandomProgram(seed, /*most_copies=*/seed % 4);
    SCOPED_TRACE(Shown(program, seed));
    const Oracle oracle(program);
    const LeverPlan found = PlanLevers(program, {}, {});
    const std::int64_t lowest = oracle.LowestPeak({});
    ASSERT_EQ(found.plan.peak_bytes, lowest);
    ASSERT_EQ(found.plan.lower_bound_bytes, lowest);
    ASSERT_NE(found.plan.proof, sched::Proof::kNone);
    ASSERT_EQ(sched::PeakBytes(found.graph, found.plan.order), lowest);
    const sched::Graph original = Lower(program);
    ASSERT_EQ(found.plan.original_peak_bytes, sched::PeakBytes(original, original.OriginalOrder()));
    ASSERT_EQ(found.uses.size(), 2U);
    ASSERT_EQ(found.uses[0].peak_bytes_after, oracle.LowestPeak({.overwrite = false}));
    ASSERT_EQ(found.uses[1].peak_bytes_after, lowest);
    // Without any of them this order has a higher peak, or is none.
    sched::Order old_order;
    for (const OpId v : found.plan.order) old_order.push_back(found.old_ops[v]);
    const auto is_enough = [&](const Edits& edits) {
      const std::optional<Edited> other = WithEdits(program, edits);
      if (!other) return false;
      const sched::Graph graph = Lower(other->program);
      const sched::Order order = other->ToNewOps(old_order);
      return sched::IsValidOrder(graph, order) && sched::PeakBytes(graph, order) <= lowest;
    };
    for (const std::size_t left_out : found.edits.overwrites) {
      Edits fewer = found.edits;
      std::erase(fewer.overwrites, left_out);
      ASSERT_FALSE(is_enough(fewer));
    }
    for (const std::size_t left_out : found.edits.hoists) {
      Edits fewer = found.edits;
      std::erase(fewer.hoists, left_out);
      ASSERT_FALSE(is_enough(fewer));
    }
    overwritten += !found.edits.overwrites.empty();
    hoisted += !found.edits.hoists.empty();
    ASSERT_EQ(found.program.ops.size(), program.ops.size() + found.edits.hoists.size());
  }
  EXPECT_GT(overwritten, Cases(2000) / 20);
  EXPECT_GT(hoisted, Cases(2000) / 50);
}

TEST(Levers, OrderAloneIsAPlanOfTheProgram) {
  for (std::uint64_t seed = 0; seed < Cases(200); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const LeverPlan found = PlanLevers(program, {.order = true, .overwrite = false}, {});
    const sched::Plan plan = sched::MakePlan(Lower(program), {});
    ASSERT_EQ(found.plan.order, plan.order);
    ASSERT_EQ(found.plan.lower_bound_bytes, plan.lower_bound_bytes);
    ASSERT_EQ(found.plan.proof, plan.proof);
    ASSERT_EQ(found.uses.size(), 1U);
  }
}

TEST(Levers, WithoutOrderAllOpsStay) {
  std::uint64_t gains = 0;
  for (std::uint64_t seed = 0; seed < Cases(500); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const LeverPlan found = PlanLevers(program, {.order = false, .overwrite = true}, {});
    ASSERT_EQ(found.plan.moved_ops, 0);
    for (std::size_t i = 0; i < found.plan.order.size(); ++i) {
      ASSERT_EQ(found.old_ops[found.plan.order[i]], static_cast<OpId>(i));
    }
    ASSERT_LE(found.plan.peak_bytes, found.plan.original_peak_bytes);
    gains += found.plan.peak_bytes < found.plan.original_peak_bytes;
  }
  EXPECT_GT(gains, 0U);
}

TEST(Levers, AreNamed) {
  EXPECT_TRUE(LeversNamed({"overwrite", "order"}).order);
  EXPECT_FALSE(LeversNamed({"order"}).overwrite);
  EXPECT_THROW(LeversNamed({"slices"}), std::invalid_argument);
}

// Results lie outside of an arena: of two orders of equal peak one needs less of it.
TEST(Levers, PlaceTakesAnOrderWithALowerArena) {
  const Program program = ParseInstance(
                              "graph 1\n"
                              "buffer in 64 input\n"
                              "buffer late 6400\n"
                              "buffer hill 6400\n"
                              "buffer sum 64 kept\n"
                              "buffer end 64 kept\n"
                              "buffer result 6400 kept\n"
                              "buffer other 6400 kept\n"
                              "op make_late reads in writes late\n"
                              "op make_hill reads in writes hill\n"
                              "op use_late reads late writes sum\n"
                              "op use_hill reads hill writes end\n"
                              "op make_result reads in writes result\n"
                              "op make_other reads in writes other\n",
                              "text")
                              .Build();
  Levers levers{.overwrite = false};
  const LeverPlan without = PlanLevers(program, levers, {});
  levers.place = true;
  const LeverPlan placed = PlanLevers(program, levers, {});
  EXPECT_FALSE(without.lowers_arena);
  EXPECT_LE(placed.plan.peak_bytes, without.plan.peak_bytes);
  EXPECT_TRUE(sched::IsValidOrder(placed.graph, placed.plan.order));
  EXPECT_EQ(placed.uses.size(), without.uses.size());
  const auto height = [](const LeverPlan& plan) {
    sched::Budget budget(1);
    return sched::PlanAddresses(sched::LifetimesAlong(plan.graph, plan.plan.order), budget)
        .height_bytes;
  };
  EXPECT_EQ(height(without), 12800);
  EXPECT_EQ(height(placed), 6400);
  EXPECT_TRUE(placed.lowers_arena);
}

}  // namespace
}  // namespace torch_ext::program
