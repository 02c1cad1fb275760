#include "program/levers/repeat.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "program/levers/overwrite.h"
#include "program/lower.h"
#include "sched/simulate.h"
#include "support/repeat_machine.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::kNoBudget;
using test::RandomRepeatable;
using test::RandomRuns;
using test::Repeatable;
using test::SameContents;
using test::Shown;
using Random = sched::test::Random;

std::string Shown(const Repeatable& given, const Runs& runs, std::uint64_t seed) {
  std::string text = Shown(given.program, seed);
  for (const Op& op : given.program.ops) {
    for (const BufferId b : op.aliases) text += op.name + " views " + std::to_string(b) + "\n";
    for (const BufferId b : op.mutates) text += op.name + " changes " + std::to_string(b) + "\n";
  }
  for (const OpId v : runs) text += given.program.ops[v].name + " ";
  return text;
}

TEST(Repeat, ValidRunsDoTheSame) {
  std::uint64_t valid = 0, repeats = 0, refused = 0;
  for (std::uint64_t seed = 0; seed < Cases(3000); ++seed) {
    const Repeatable given = RandomRepeatable(seed, /*is_plain=*/false);
    Random random(seed);
    Rerunner rerunner(given.program, true);
    for (int i = 0; i < 20; ++i) {
      const Runs runs = RandomRuns(given.program, random);
      SCOPED_TRACE(Shown(given, runs, seed));
      const bool is_same = SameContents(given, runs);
      if (!rerunner.Judge(runs, kNoBudget).is_valid) {
        refused += is_same;
        continue;
      }
      ASSERT_TRUE(is_same);
      ++valid;
      repeats += runs.size() > given.program.ops.size();
      const Runs live = rerunner.WithoutDead(runs);
      const bool is_valid = rerunner.Judge(live, kNoBudget).is_valid;
      ASSERT_TRUE(!is_valid || SameContents(given, live));
    }
  }
  EXPECT_GT(repeats, Cases(3000));
  EXPECT_LT(refused, valid / 10);  // most that are right are seen to be
}

TEST(Repeat, EachRuleOfValidityIsNoticed) {
  for (const auto& [name, rule] : kRepeatRuleNames) {
    RepeatRules rules;
    rules.*rule = false;
    std::uint64_t wrong = 0;
    for (std::uint64_t seed = 0; seed < 2000 && wrong == 0; ++seed) {
      const Repeatable given = RandomRepeatable(seed, /*is_plain=*/false);
      Random random(seed);
      Rerunner rerunner(given.program, true, rules);
      for (int i = 0; i < 20; ++i) {
        const Runs runs = RandomRuns(given.program, random);
        wrong += rerunner.Judge(runs, kNoBudget).is_valid && !SameContents(given, runs);
      }
    }
    EXPECT_GT(wrong, 0U) << name;
  }
}

// The judge of orders on the program with each run as an op, and the overwrites that end there.
TEST(Repeat, TheProgramWithRepeatsHasThePeak) {
  std::uint64_t overwritten = 0, seen = 0;
  for (std::uint64_t seed = 0; seed < Cases(3000); ++seed) {
    const Repeatable given = RandomRepeatable(seed, /*is_plain=*/seed % 2 == 0);
    Random random(seed);
    Rerunner plain(given.program, false), over(given.program, true);
    for (int i = 0; i < 10; ++i) {
      const Runs runs = RandomRuns(given.program, random);
      const Rerunner::Judged judged = plain.Judge(runs, kNoBudget);
      if (!judged.is_valid) continue;
      ++seen;
      SCOPED_TRACE(Shown(given, runs, seed));
      const Program program = WithRepeats(given.program, runs);
      const sched::Graph graph = Lower(program);
      ASSERT_EQ(sched::PeakBytes(graph, graph.OriginalOrder()), judged.peak_bytes);
      const std::int64_t lower = over.Judge(runs, kNoBudget).peak_bytes;
      ASSERT_LE(lower, judged.peak_bytes);
      if (lower == judged.peak_bytes) continue;
      const OverwritePlan best = PlanOverwrites(program, {});
      ASSERT_LE(best.plan.peak_bytes, lower);
      ++overwritten;
    }
  }
  EXPECT_GT(overwritten, seen / 50);
}

TEST(Repeat, RunsHaveNames) {
  Program program;
  program.ops = {{.name = "a", .oper = "op", .nanoseconds = 1}, {.name = "b", .oper = "op"}};
  EXPECT_EQ(RunsNamed(program, {"a", "b", "a/2", "a/3"}), (Runs{0, 1, 0, 0}));
  const auto why = [&](const std::vector<std::string>& names) -> std::string {
    try {
      RequireValid(program, RunsNamed(program, names));
      return {};
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
  };
  EXPECT_EQ(why({"a", "b", "a/2"}), "");
  EXPECT_EQ(why({"a", "a"}), "op 'a' runs twice; its second run is called 'a/2'");
  EXPECT_EQ(why({"a", "a/3"}), "there is no op 'a/3'");
  EXPECT_EQ(why({"c"}), "there is no op 'c'");
  EXPECT_NE(why({"a", "a/2"}).find("does not run"), std::string::npos);
  const Program again = WithRepeats(program, Runs{0, 1, 0});
  EXPECT_EQ(again.ops[2].name, "a/2");
  program.ops[1].name = "a/2";
  EXPECT_THROW(WithRepeats(program, Runs{0, 1, 0}), std::invalid_argument);
}

}  // namespace
}  // namespace torch_ext::program
