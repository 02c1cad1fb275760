#include "program/levers/repeat_search.h"

#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <vector>

#include "program/lower.h"
#include "support/repeat_machine.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::kNoBudget;
using test::RandomRepeatable;
using test::Shown;

TEST(RepeatSearch, FindsRunsThatFitAtLittleExtraTime) {
  std::uint64_t possible = 0, found = 0, repeated = 0, fewest_count = 0;
  for (std::uint64_t seed = 0; seed < Cases(300); ++seed) {
    const Program program = RandomRepeatable(seed, /*is_plain=*/true).program;
    if (program.ops.size() > test::kMostOps) continue;
    SCOPED_TRACE(Shown(program, seed));
    const bool overwrite = seed % 2 == 0;
    const auto check = [&](Rerunner& rerunner, const sched::Order& order, std::int64_t bytes,
                           const std::optional<std::int64_t>& fewest) {
      const RepeatPlan plan = PlanRepeats(program, overwrite, order, bytes, {});
      const Rerunner::Judged judged = rerunner.Judge(plan.runs, bytes);
      ASSERT_TRUE(judged.is_valid);
      ASSERT_EQ(judged.peak_bytes, plan.peak_bytes);
      ASSERT_EQ(judged.nanoseconds - rerunner.nanoseconds(), plan.extra_nanoseconds);
      ASSERT_EQ(plan.fits, plan.peak_bytes <= bytes);
      ASSERT_LE(plan.peak_bytes, rerunner.Judge(order, bytes).peak_bytes);
      if (!fewest) return;
      ++possible;
      found += plan.fits;
      repeated += plan.fits && plan.extra_nanoseconds > 0;
      fewest_count += plan.fits && plan.extra_nanoseconds <= *fewest - rerunner.nanoseconds();
    };
    test::ForEachBudget(program, overwrite, check);
  }
  RecordProperty("possible", static_cast<int>(possible));
  RecordProperty("found", static_cast<int>(found));
  RecordProperty("fewest", static_cast<int>(fewest_count));
  EXPECT_GT(repeated, Cases(300) / 20);
  EXPECT_GT(found, possible * 8 / 10);
  EXPECT_GT(fewest_count, possible * 6 / 10);
}

TEST(RepeatSearch, WhatIsNoOrderIsRefused) {
  Program program = RandomRepeatable(3, /*is_plain=*/true).program;
  Runs order = Lower(program).OriginalOrder();
  ASSERT_GT(order.size(), 1U);
  EXPECT_THROW(PlanRepeats(program, true, {order[0]}, 1, {}), std::invalid_argument);
  EXPECT_THROW(PlanRepeats(program, true, {order[0], order[0]}, 1, {}), std::invalid_argument);
  program.ops[0].nanoseconds = -1;
  EXPECT_THROW(PlanRepeats(program, true, order, 1, {}), std::invalid_argument);
  program.ops[0].nanoseconds = std::numeric_limits<std::int64_t>::max();
  EXPECT_THROW(PlanRepeats(program, true, order, 1, {}), std::invalid_argument);
}

TEST(RepeatSearch, TheSameEachTime) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const Program program = RandomRepeatable(seed, /*is_plain=*/false).program;
    const sched::Order order = Lower(program).OriginalOrder();
    const std::int64_t bytes = Rerunner(program, true).Judge(order, kNoBudget).peak_bytes - 1;
    EXPECT_EQ(PlanRepeats(program, true, order, bytes, {}).runs,
              PlanRepeats(program, true, order, bytes, {}).runs);
  }
}

TEST(RepeatSearch, AFrontFallsAndRisesAndHoldsItsBounds) {
  std::uint64_t points = 0;
  for (std::uint64_t seed = 0; seed < Cases(200); ++seed) {
    const Program program = RandomRepeatable(seed, /*is_plain=*/false).program;
    SCOPED_TRACE(Shown(program, seed));
    const bool overwrite = seed % 2 == 0;
    const sched::Order order = Lower(program).OriginalOrder();
    Rerunner rerunner(program, overwrite);
    const std::vector<RepeatPlan> front = PlanRepeatFront(program, overwrite, order, 6, {});
    ASSERT_FALSE(front.empty());
    ASSERT_EQ(front[0].extra_nanoseconds, 0);
    ASSERT_LE(front[0].peak_bytes, rerunner.Judge(order, kNoBudget).peak_bytes);
    points += front.size() - 1;
    for (std::size_t i = 0; i < front.size(); ++i) {
      const RepeatPlan& plan = front[i];
      const Rerunner::Judged judged = rerunner.Judge(plan.runs, kNoBudget);
      ASSERT_TRUE(judged.is_valid);
      ASSERT_EQ(judged.peak_bytes, plan.peak_bytes);
      ASSERT_EQ(judged.nanoseconds - rerunner.nanoseconds(), plan.extra_nanoseconds);
      ASSERT_GE(plan.peak_bytes, plan.floor.bytes);
      ASSERT_LE(*plan.extra_bound_nanoseconds, plan.extra_nanoseconds);
      if (i == 0) continue;
      ASSERT_LT(plan.peak_bytes, front[i - 1].peak_bytes);
      ASSERT_GT(plan.extra_nanoseconds, front[i - 1].extra_nanoseconds);
      ASSERT_GE(*plan.extra_bound_nanoseconds, *front[i - 1].extra_bound_nanoseconds);
      ASSERT_TRUE(plan.fits || i + 1 == front.size());
    }
  }
  EXPECT_GT(points, Cases(200) / 4);
}

// A chain forward, and a chain backward that reads each result of it: what all training has.
Program ForwardAndBackward(int length) {
  Program program;
  const auto add = [&](std::string name, std::vector<BufferId> reads) {
    const auto made = static_cast<BufferId>(program.buffers.size());
    program.buffers.push_back({.name = "of_" + name, .bytes = 10});
    Op op{.name = std::move(name), .oper = "aten::op", .reads = reads, .writes = {made}};
    for (const BufferId b : reads) op.makers.push_back(b);
    op.nanoseconds = 100;
    program.ops.push_back(std::move(op));
    return made;
  };
  std::vector<BufferId> made;
  for (int i = 0; i < length; ++i) {
    const std::vector<BufferId> reads = i ? std::vector{made.back()} : std::vector<BufferId>();
    made.push_back(add("f" + std::to_string(i), reads));
  }
  BufferId gradient = add("loss", {made.back()});
  for (int i = length; i-- > 0;) gradient = add("b" + std::to_string(i), {gradient, made[i]});
  program.buffers[gradient].kept = true;
  return program;
}

TEST(RepeatSearch, LogarithmicMemoryForAChain) {
  const Program program = ForwardAndBackward(32);
  const sched::Order order = Lower(program).OriginalOrder();
  const std::int64_t whole_bytes = Rerunner(program, false).Judge(order, kNoBudget).peak_bytes;
  ASSERT_EQ(whole_bytes, 34 * 10);
  // A third of the memory for each op of the forward pass run once more, at most.
  const RepeatPlan plan = PlanRepeats(program, false, order, 120, {});
  EXPECT_TRUE(plan.fits);
  EXPECT_LE(plan.extra_nanoseconds, 32 * 100);
  ASSERT_TRUE(plan.extra_bound_nanoseconds.has_value());
  EXPECT_LE(*plan.extra_bound_nanoseconds, plan.extra_nanoseconds);
  EXPECT_GT(*plan.extra_bound_nanoseconds, 0);
  EXPECT_EQ(plan.nanoseconds, 65 * 100);
  // Below what one op needs nothing helps: the loss, or a step back.
  const RepeatPlan none = PlanRepeats(program, false, order, 20, {});
  EXPECT_FALSE(none.fits);
  EXPECT_EQ(none.floor.bytes, 30);
  EXPECT_FALSE(none.extra_bound_nanoseconds.has_value());
  EXPECT_LT(none.peak_bytes, 80);  // as low as it gets
}

TEST(RepeatSearch, AnUpdateWaitsForTheRepeatsThatReadWhatItWrites) {
  // f0 reads a parameter that `update` writes, and its result is needed once more after that.
  Program program = ForwardAndBackward(4);
  Op update{.name = "update", .oper = "aten::add_", .nanoseconds = 1};
  update.effects.writes_outside = true;
  const auto gradient = static_cast<OpId>(program.ops.size()) - 4;  // b3
  update.makers = {gradient};
  update.reads = {program.ops[gradient].writes[0]};
  program.ops.push_back(update);
  program.conflicts.push_back({0, static_cast<OpId>(program.ops.size()) - 1});
  const sched::Order order = Lower(program).OriginalOrder();
  const RepeatPlan plan = PlanRepeats(program, false, order, 40, {});
  EXPECT_TRUE(plan.fits);
  const auto last = std::ranges::find(plan.runs.rbegin(), plan.runs.rend(), 0);
  const auto updated = std::ranges::find(plan.runs, static_cast<OpId>(program.ops.size()) - 1);
  EXPECT_LT(last.base() - plan.runs.begin(), updated - plan.runs.begin() + 1);
  EXPECT_GT(std::ranges::count(plan.runs, 0), 1);
}

}  // namespace
}  // namespace torch_ext::program
