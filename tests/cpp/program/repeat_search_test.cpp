#include "program/levers/repeat_search.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "program/lower.h"
#include "support/repeat_machine.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::FewestNanoseconds;
using test::RandomRepeatable;
using test::Repeatable;
using test::Shown;

Runs OriginalRuns(const Program& program) {
  return Lower(program).OriginalOrder();
}

TEST(RepeatSearch, FindsFewRepeatsThatFit) {
  std::uint64_t possible = 0, found = 0, optimal = 0, repeated = 0;
  std::int64_t extra = 0, fewest_extra = 0;
  for (std::uint64_t seed = 0; seed < Cases(400); ++seed) {
    const Repeatable given = RandomRepeatable(seed, /*is_plain=*/true);
    const Program& program = given.program;
    if (program.ops.size() > 7) continue;
    SCOPED_TRACE(Shown(program, seed));
    const bool overwrite = seed % 2 == 0;
    Rerunner rerunner(program, overwrite);
    std::vector<char> may_repeat;
    std::vector<std::vector<OpId>> before, deadlines;
    for (const Rerunner::Step& step : rerunner.steps()) {
      may_repeat.push_back(step.may_repeat);
      before.push_back(step.before);
      deadlines.push_back(step.deadlines);
    }
    RepeatSearch search(program, overwrite, OriginalRuns(program));
    const std::int64_t start_bytes =
        rerunner.Judge(OriginalRuns(program), std::numeric_limits<std::int64_t>::max()).peak_bytes;
    for (std::int64_t budget_bytes = start_bytes; budget_bytes >= 0; --budget_bytes) {
      const auto fewest =
          FewestNanoseconds(program, may_repeat, before, deadlines, overwrite, budget_bytes);
      sched::Budget work(1.0);
      const RepeatSearch::Found runs = search.Fit(budget_bytes, work);
      const Rerunner::Judged judged = rerunner.Judge(runs.runs, budget_bytes);
      ASSERT_TRUE(judged.is_valid);
      ASSERT_EQ(judged.peak_bytes, runs.peak_bytes);
      ASSERT_EQ(judged.nanoseconds - rerunner.nanoseconds(), runs.extra_nanoseconds);
      ASSERT_EQ(runs.fits, runs.peak_bytes <= budget_bytes);
      if (!fewest) {
        // More than two runs of an op may do what two cannot.
        break;
      }
      ++possible;
      if (!runs.fits) continue;
      ++found;
      repeated += runs.extra_nanoseconds > 0;
      extra += runs.extra_nanoseconds;
      fewest_extra += *fewest - rerunner.nanoseconds();
      optimal += runs.extra_nanoseconds <= *fewest - rerunner.nanoseconds();
    }
  }
  std::printf("possible %lu found %lu optimal %lu repeated %lu extra %ld fewest %ld\n", possible,
              found, optimal, repeated, extra, fewest_extra);
  EXPECT_GT(repeated, 0U);
}

}  // namespace
}  // namespace torch_ext::program
