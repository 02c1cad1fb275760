#include "program/levers/repeat_bound.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "program/lower.h"
#include "support/repeat_machine.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::kNoBudget;
using test::RandomRepeatable;
using test::Shown;

TEST(RepeatBound, NoRunsAreBelow) {
  std::uint64_t budgets = 0, floors = 0, extra_reached = 0, extra_positive = 0, programs = 0;
  for (std::uint64_t seed = 0; seed < Cases(300); ++seed) {
    const Program program = RandomRepeatable(seed, /*is_plain=*/true).program;
    if (program.ops.size() > test::kMostOps) continue;
    ++programs;
    SCOPED_TRACE(Shown(program, seed));
    const bool overwrite = seed % 2 == 0;
    const RepeatBound bound(program, overwrite);
    const auto check = [&](Rerunner& rerunner, const sched::Order& order, std::int64_t bytes,
                           const std::optional<std::int64_t>& fewest) {
      sched::Budget budget(1);
      const std::int64_t floor_bytes = bound.FindFloor(order, budget).bytes;
      const auto extra = bound.FindExtra(order, bytes, budget);
      if (!fewest) {
        floors += floor_bytes > bytes;
        return;
      }
      ++budgets;
      ASSERT_LE(floor_bytes, bytes);
      ASSERT_TRUE(extra.has_value());
      const std::int64_t fewest_extra = *fewest - rerunner.nanoseconds();
      ASSERT_LE(extra->nanoseconds, fewest_extra);
      extra_positive += fewest_extra > 0;
      extra_reached += fewest_extra > 0 && extra->nanoseconds == fewest_extra;
    };
    test::ForEachBudget(program, overwrite, check);
  }
  RecordProperty("budgets", static_cast<int>(budgets));
  EXPECT_GT(floors, programs / 2);  // mostly the floor is the least that is possible
  EXPECT_GT(extra_reached, extra_positive / 4);
}

// All valid lists of a few runs more than there are ops, views and writes in place among them.
void ForEachList(Rerunner& rerunner, std::size_t most_runs, Runs& runs, const auto& check) {
  const std::vector<Rerunner::Step>& steps = rerunner.steps();
  if (rerunner.Judge(runs, kNoBudget).is_valid) check(runs);
  if (runs.size() == most_runs) return;
  const auto has_run = [&](OpId v) { return std::ranges::count(runs, v) > 0; };
  for (OpId v = 0; v < static_cast<OpId>(steps.size()); ++v) {
    if (!std::ranges::all_of(steps[v].before, has_run)) continue;
    if (has_run(v) && !steps[v].may_repeat) continue;
    runs.push_back(v);
    ForEachList(rerunner, most_runs, runs, check);
    runs.pop_back();
  }
}

TEST(RepeatBound, HoldsWithViewsAndWritesInPlace) {
  std::uint64_t lists = 0, floors_reached = 0, programs = 0;
  for (std::uint64_t seed = 0; seed < Cases(600); ++seed) {
    const Program program = RandomRepeatable(seed, /*is_plain=*/false).program;
    if (program.ops.size() > 5) continue;
    ++programs;
    SCOPED_TRACE(Shown(program, seed));
    const bool overwrite = seed % 2 == 0;
    Rerunner rerunner(program, overwrite);
    const RepeatBound bound(program, overwrite);
    const sched::Order order = Lower(program).OriginalOrder();
    sched::Budget budget(1);
    const std::int64_t floor_bytes = bound.FindFloor(order, budget).bytes;
    // Of each peak the least time.
    std::map<std::int64_t, std::int64_t> least;
    Runs runs;
    ForEachList(rerunner, program.ops.size() + 2, runs, [&](const Runs& valid) {
      const Rerunner::Judged judged = rerunner.Judge(valid, kNoBudget);
      const std::int64_t extra = judged.nanoseconds - rerunner.nanoseconds();
      const auto [found, is_new] = least.emplace(judged.peak_bytes, extra);
      found->second = std::min(found->second, extra);
      ++lists;
    });
    ASSERT_FALSE(least.empty());
    ASSERT_LE(floor_bytes, least.begin()->first);
    floors_reached += floor_bytes == least.begin()->first;
    for (const auto& [bytes, extra] : least) {
      const auto found = bound.FindExtra(order, bytes, budget);
      ASSERT_TRUE(found.has_value());
      ASSERT_LE(found->nanoseconds, extra);
    }
  }
  EXPECT_GT(lists, programs * 10);
  EXPECT_GT(floors_reached, programs / 2);
}

// Prices of a second for a byte times gigabytes are beyond 64 bits.
TEST(RepeatBound, HoldsWhereBytesAreDear) {
  Program program;
  const std::int64_t bytes = std::int64_t{1} << 31, second = 1'000'000'000;
  const auto add = [&](std::vector<BufferId> reads, std::int64_t size, std::int64_t time) {
    const auto made = static_cast<BufferId>(program.buffers.size());
    const std::string name = "op" + std::to_string(made);
    program.buffers.push_back({.name = "of_" + name, .bytes = size});
    Op op{.name = name, .oper = "aten::op", .reads = reads, .writes = {made}};
    for (const BufferId b : reads) op.makers.push_back(b);
    op.nanoseconds = time;
    program.ops.push_back(std::move(op));
    return made;
  };
  std::vector<BufferId> small, large;
  for (int i = 0; i < 4; ++i) small.push_back(add({}, bytes, second));
  for (int i = 0; i < 4; ++i) large.push_back(add({small[i]}, bytes + 3, 17 * second));
  const BufferId middle = add({}, 8, 1);
  for (int i = 0; i < 4; ++i) add({large[i], middle}, 1, 1);
  const Runs order = Lower(program).OriginalOrder();
  const RepeatBound bound(program, false);
  sched::Budget budget(1);
  // Each large one that is not there while `middle` runs is made again, once.
  for (const std::int64_t saved : {1, 3, 4, 9, 12}) {
    const std::int64_t budget_bytes = 4 * (bytes + 3) + 8 - saved;
    const auto extra = bound.FindExtra(order, budget_bytes, budget);
    ASSERT_TRUE(extra.has_value());
    EXPECT_LE(extra->nanoseconds, 4 * 18 * second);
  }
}

}  // namespace
}  // namespace torch_ext::program
