#include "memory/arena.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "memory/meter.h"
#include "memory/programs.h"
#include "memory/ranges.h"
#include "sched/addresses.h"

namespace torch_ext::memory::test {
namespace {

// Two blocks that meet, a third in the place of the first, and one that outlives the call.
const Steps kSteps = {{0, 1000}, {1, 300}, {0, 0}, {2, 900}, {3, 64}, {1, 0}, {2, 0}};

Recording RecordingOf(const Steps& steps) {
  Recorder recorder;
  const Live live = RunSteps(steps);
  recorder.Stop();
  return recorder.blocks();
}

ArenaPlan PlanOf(const Steps& steps) {
  sched::Budget budget(0.1);
  return PlanArena(RecordingOf(steps), budget);
}

ArenaPool PoolOf(const Steps& steps) {
  ArenaPool pool;
  pool.Insert("one", PlanOf(steps));
  return pool;
}

// What a call is counted as.
Deviation Call(const ArenaPool& pool, const Steps& steps, const std::string& signature = "one") {
  ArenaGuard guard(pool, signature);
  const Live live = RunSteps(steps);
  guard.Stop();
  return guard.deviation();
}

TEST(RecorderTest, SeesSizesBirthsAndDeathsOfItsThread) {
  const Recording recording = RecordingOf(kSteps);
  const Recording expected = {{1000, 0, 2}, {300, 1, 5}, {900, 3, 6}, {64, 4, std::nullopt}};
  EXPECT_EQ(recording, expected);
  const Recorder outer;
  EXPECT_THROW(Recorder(), std::logic_error);
}

TEST(ArenaPlanTest, LeavesWhatOutlivesTheCallToMalloc) {
  const ArenaPlan plan = PlanOf(kSteps);
  ASSERT_EQ(plan.slots.size(), 4u);
  EXPECT_EQ(plan.height_bytes, 1024 + 320);
  EXPECT_EQ(plan.bound_bytes, plan.height_bytes);
  EXPECT_EQ(plan.slots[3].offset, ArenaPlan::kOutlivesTheCall);
  for (const auto& slot : plan.slots) EXPECT_TRUE(slot.offset == -1 || slot.offset % 64 == 0);
}

TEST(ArenaTest, ServesACallAsPlanned) {
  const ArenaPool pool = PoolOf(kSteps);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kNone);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kNone);
  const ArenaStatistics statistics = pool.statistics();
  EXPECT_EQ(statistics.calls[0], 2);
  EXPECT_EQ(statistics.served_blocks, 6);
  EXPECT_EQ(statistics.served_bytes, 2 * (1000 + 300 + 900));
  EXPECT_EQ(StatisticsOfRanges().live_blocks, 0);
}

TEST(ArenaTest, BlocksLieWhereThePlanSays) {
  const ArenaPool pool = PoolOf(kSteps);
  const ArenaPlan plan = PlanOf(kSteps);
  const ArenaGuard guard(pool, "one");
  const Block first(1000, 1);
  const Block second(300, 2);
  EXPECT_EQ(static_cast<const char*>(second.address()) - static_cast<const char*>(first.address()),
            plan.slots[1].offset - plan.slots[0].offset);
}

TEST(ArenaTest, EveryDeviationIsCountedWithItsReason) {
  const ArenaPool pool = PoolOf(kSteps);
  Steps other = kSteps;
  other[1].bytes = 301;
  EXPECT_EQ(Call(pool, other), Deviation::kOtherSize);
  Steps more = kSteps;
  more.push_back({9, 8});
  EXPECT_EQ(Call(pool, more), Deviation::kMoreAllocations);
  EXPECT_EQ(Call(pool, {kSteps.begin(), kSteps.begin() + 3}), Deviation::kFewerAllocations);
  Steps late = kSteps;  // the first block lives on where the third one was to lie
  std::swap(late[2], late[3]);
  EXPECT_EQ(Call(pool, late), Deviation::kStillAlive);
  Steps kept = kSteps;
  kept.pop_back();
  EXPECT_EQ(Call(pool, kept), Deviation::kOutlived);
  EXPECT_EQ(Call(pool, kSteps, "another"), Deviation::kNoPlan);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kNone);  // none of them stays
  const ArenaStatistics statistics = pool.statistics();
  for (const auto& [deviation, name] : kDeviationNames) {
    EXPECT_EQ(statistics.calls[static_cast<std::size_t>(deviation)],
              deviation == Deviation::kNoRange || deviation == Deviation::kDisabled ? 0 : 1)
        << name;
  }
}

// The two faults of a first version: a bit for each offset, which says nothing of what overlaps it,
// and a call that begins in a range where something of an earlier call lives.
TEST(ArenaTest, ABlockThatOutlivesItsCallKeepsItsRange) {
  const ArenaPool pool = PoolOf(kSteps);
  Live kept;
  {
    const ArenaGuard guard(pool, "one");
    kept = RunSteps({kSteps.begin(), kSteps.end() - 1});
  }
  const std::int64_t ranges = StatisticsOfRanges().ranges;
  EXPECT_GT(StatisticsOfRanges().live_blocks, 0);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kNone);  // in a range of its own
  EXPECT_EQ(StatisticsOfRanges().ranges, ranges + 1);
  kept.clear();
  EXPECT_EQ(StatisticsOfRanges().live_blocks, 0);
}

TEST(ArenaTest, APlanIsNoLicence) {
  ArenaPool pool;
  ArenaPlan plan = PlanOf(kSteps);
  plan.slots[1].offset = plan.slots[0].offset;  // two that meet
  pool.Insert("one", plan);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kStillAlive);
  plan.slots[1].offset = std::int64_t{1} << 40;  // outside
  pool.Insert("one", plan);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kStillAlive);
  plan.height_bytes = 0;  // no range at all
  pool.Insert("one", plan);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kStillAlive);
}

TEST(ArenaTest, ReleasesInAnotherThread) {
  const ArenaPool pool = PoolOf(kSteps);
  Live live;
  {
    const ArenaGuard guard(pool, "one");
    live = RunSteps({kSteps.begin(), kSteps.begin() + 2});
  }
  std::thread([&] { live.clear(); }).join();
  EXPECT_EQ(StatisticsOfRanges().live_blocks, 0);
}

TEST(ArenaTest, AnExceptionEndsTheCall) {
  const ArenaPool pool = PoolOf(kSteps);
  try {
    const ArenaGuard guard(pool, "one");
    const Live live = RunSteps({kSteps.begin(), kSteps.begin() + 2});
    throw std::runtime_error("in the call");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(StatisticsOfRanges().live_blocks, 0);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kNone);
}

TEST(ArenaTest, TheOuterOfTwoGuardsServes) {
  const ArenaPool pool = PoolOf(kSteps);
  {
    const ArenaGuard outer(pool, "one");
    const ArenaGuard inner(pool, "another");
    EXPECT_TRUE(inner.is_nested());
    RunSteps(kSteps);
  }
  EXPECT_EQ(pool.statistics().calls[0], 1);
  EXPECT_EQ(pool.statistics().served_blocks, 3);
}

TEST(ArenaTest, MetersSeeWhatItServes) {
  const ArenaPool pool = PoolOf(kSteps);
  Meter plain;
  RunSteps(kSteps);
  plain.Stop();
  Meter served;
  EXPECT_EQ(Call(pool, kSteps), Deviation::kNone);
  served.Stop();
  EXPECT_EQ(served.peak_bytes(), plain.peak_bytes());
  EXPECT_EQ(served.live_bytes(), 0);
  EXPECT_EQ(served.num_events(), plain.num_events());
}

TEST(ArenaTest, WithoutAddressesMallocServes) {
  ArenaPool pool;
  ArenaPlan plan{.slots = {{1000, 0}}, .height_bytes = std::int64_t{1} << 60};
  pool.Insert("one", plan);
  EXPECT_EQ(Call(pool, {{0, 1000}, {0, 0}}), Deviation::kNoRange);
}

// While other threads allocate: whatever locks they hold are free in the child.
TEST(ArenaTest, AChildProcessGoesOn) {
  const ArenaPool pool = PoolOf(kSteps);
  std::atomic<bool> is_over = false;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!is_over) {
        Meter meter;
        RunSteps(kSteps);
        Call(pool, kSteps);
      }
    });
  }
  for (int i = 0; i < 50; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);  // a child that hangs ends by a signal
      _exit(Call(pool, kSteps) == Deviation::kNone ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  is_over = true;
  for (std::thread& thread : threads) thread.join();
}

// What outlives its call keeps its own pages, and the rest of the range takes no memory.
TEST(ArenaTest, ABlockThatOutlivesItsCallKeepsNoOtherPages) {
  constexpr std::int64_t kLarge = 1 << 26;
  const Steps steps = {{0, 100}, {1, kLarge}, {1, 0}, {0, 0}};
  const ArenaPool pool = PoolOf(steps);
  std::vector<Live> kept;
  const auto resident = [] {
    std::int64_t pages = 0, total = 0;
    std::ifstream("/proc/self/statm") >> total >> pages;
    return pages * sysconf(_SC_PAGESIZE);
  };
  const std::int64_t before = resident();
  for (int i = 0; i < 4; ++i) {
    const ArenaGuard guard(pool, "one");
    kept.push_back(RunSteps({steps.begin(), steps.end() - 1}));
  }
  EXPECT_EQ(pool.statistics().calls[static_cast<std::size_t>(Deviation::kOutlived)], 4);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // their shadows take memory
  EXPECT_LT(resident() - before, kLarge);
#else
  EXPECT_GT(resident(), before - kLarge);
#endif
}

TEST(ArenaTest, TheEnvironmentLeavesCallsToMalloc) {
  const ArenaPool pool = PoolOf(kSteps);
  setenv("TORCH_EXT_DISABLE", "1", 1);
  EXPECT_EQ(Call(pool, kSteps), Deviation::kDisabled);
  unsetenv("TORCH_EXT_DISABLE");
  EXPECT_EQ(Call(pool, kSteps), Deviation::kNone);
}

TEST(ArenaTextTest, ComesBackAsItWas) {
  ArenaPool pool = PoolOf(kSteps);
  pool.Insert("Float[2,3] Long[]", PlanOf({{0, 10}, {1, 20}, {1, 0}, {0, 0}}));
  pool.Insert("", PlanOf({{0, 10}, {0, 0}}));
  const ArenaPool read = ArenaPool::FromText(pool.ToText());
  EXPECT_EQ(read.ToText(), pool.ToText());
  EXPECT_EQ(read.signatures(), pool.signatures());
  EXPECT_EQ(read.height_bytes(), pool.height_bytes());
  EXPECT_EQ(Call(read, kSteps), Deviation::kNone);
}

std::string ErrorOf(const std::string& text) {
  try {
    ArenaPool::FromText(text);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(ArenaTextTest, TellsWhereItIsWrong) {
  EXPECT_EQ(ErrorOf(""), "line 1: expected \"arena 1\"");
  EXPECT_EQ(ErrorOf("arena 2\n"), "line 1: expected \"arena 1\"");
  EXPECT_EQ(ErrorOf("arena 1\n64 0\n"), "line 2: expected \"plan HEIGHT BOUND SIGNATURE\"");
  EXPECT_EQ(ErrorOf("arena 1\nplan 64 64 x\n64 1\n"), "line 3: an offset is a multiple of 64");
  EXPECT_EQ(ErrorOf("arena 1\nplan 64 64 x\n64 64\n"), "line 3: a block above the height");
  EXPECT_EQ(ErrorOf("arena 1\nplan 64 64 x\nten 0\n"),
            "line 3: expected a number of bytes in \"ten 0\"");
  EXPECT_EQ(ErrorOf("arena 1\nplan 64 64 x\n64 9223372036854775807\n"),
            "line 3: expected a number of bytes in \"9223372036854775807\"");
  EXPECT_EQ(ErrorOf("arena 1\nplan -64 64 x\n"),
            "line 2: expected a number of bytes in \"-64 64 x\"");
  EXPECT_EQ(ErrorOf("arena 1\nplan 64 64 x\n64 0 junk\n"),
            "line 3: expected nothing behind an offset");
  EXPECT_EQ(ErrorOf("arena 1\nplan 64 128 x\n"), "line 2: a bound above the height");
  EXPECT_EQ(ErrorOf("arena 1\nplan 0 0 x\nplan 0 0 x\n"), "line 3: a second plan for x");
  EXPECT_THROW(ArenaPool().Insert("two\nlines", {}), std::invalid_argument);
  EXPECT_THROW(ArenaPool().Insert("one", {.slots = {{64, 1}}}), std::invalid_argument);
}

// A program as it was recorded, with changes now and then.
Steps Changed(Steps steps, Random& random) {
  const auto at = [&] {
    return static_cast<std::ptrdiff_t>(
        random.Between(0, static_cast<std::int64_t>(steps.size()) - 1));
  };
  switch (random.Between(0, 5)) {
    case 0: {
      Step& step = steps[static_cast<std::size_t>(at())];
      if (step.bytes > 0) step.bytes = random.Between(1, 400);
      break;
    }
    case 1:
      steps.insert(steps.begin() + at(), {1000 + random.Between(0, 5), random.Between(1, 400)});
      break;
    case 2:
      steps.resize(static_cast<std::size_t>(at()) + 1);
      break;
    case 3: {  // a release that comes late, or never
      const auto release = std::find_if(steps.begin() + at(), steps.end(),
                                        [](const Step& step) { return step.bytes == 0; });
      if (release == steps.end()) break;
      const Step moved = *release;
      steps.erase(release);
      if (random.Chance(50)) steps.push_back(moved);
      break;
    }
    default:
      break;  // as recorded
  }
  return steps;
}

// Threads, deviations, blocks that outlive their call and are released by other threads.
TEST(ArenaRandomTest, NoBlocksEverShareAnAddress) {
  for (int round = 0; round < sched::test::ScaledCount(20); ++round) {
    SCOPED_TRACE(round);
    Random random(static_cast<std::uint64_t>(round));
    std::vector<Steps> programs;
    ArenaPool pool;
    for (int p = 0; p < 3; ++p) {
      programs.push_back(RandomSteps(random, 60));
      ArenaPlan plan = PlanOf(programs.back());
      for (ArenaPlan::Slot& slot : plan.slots) {  // half of all plans are wrong
        if (round % 2 == 1 && random.Chance(30)) slot.offset = 64 * random.Between(0, 40);
      }
      pool.Insert(std::to_string(p), plan);
    }
    std::mutex mutex;
    std::vector<Live> outlived;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        Random own(static_cast<std::uint64_t>(1000 * round + t));
        for (int call = 0; call < 50; ++call) {
          const auto p = static_cast<std::size_t>(own.Between(0, 2));
          ArenaGuard guard(pool, std::to_string(p));
          Live live =
              RunSteps(Changed(programs[p], own), static_cast<std::uint64_t>(97 * call + t));
          guard.Stop();
          if (!own.Chance(30)) continue;
          const std::lock_guard lock(mutex);
          outlived.push_back(std::move(live));
          if (outlived.size() > 8) outlived.erase(outlived.begin());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    if (round % 2 == 0) {
      EXPECT_GT(pool.statistics().calls[0], 0);
    }
  }
  EXPECT_EQ(StatisticsOfRanges().live_blocks, 0);
}

}  // namespace
}  // namespace torch_ext::memory::test
