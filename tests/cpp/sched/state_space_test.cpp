#include "sched/state_space.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "sched/instance.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

constexpr std::array kDirections = {Direction::kForward, Direction::kBackward};

std::vector<OpId> ReadyOps(const StateSpace& space, const std::vector<StateSpace::Word>& state) {
  std::vector<OpId> ready;
  space.ForEach(space.ready(state.data()), [&](OpId v) { ready.push_back(v); });
  return ready;
}

TEST(StateSpaceTest, AnEmptyGraphHasNoSteps) {
  Graph g;
  g.AddInput("kept", 5, true);
  for (const Direction direction : kDirections) {
    const StateSpace space(g, direction);
    EXPECT_EQ(space.num_steps(), 0);
    EXPECT_EQ(space.start_bytes(), 5);
  }
}

// first raises memory by 3; then left changes nothing, for it reads a last, and right frees b. But
// left and right could do without first, and what they leave behind is lower by 1, which peak
// needs.
TEST(StateSpaceTest, AStepIsNotRepaidByWhatWasReadyBefore) {
  const Graph g = ParseInstance(R"(graph 1
buffer a 2 input
buffer b 10 input
buffer first_out 3
buffer left_out 2
buffer right_out 1
buffer result 50 kept
op first reads a writes first_out
op left reads a b writes left_out
op right reads b writes right_out
op peak reads left_out right_out workspace 100
op end reads first_out writes result
)");
  constexpr std::int64_t kLowest = 105;
  ASSERT_EQ(DownSets(g).LowestPeak(), kLowest);
  StateSpace space(g, Direction::kForward);
  std::vector<StateSpace::Word> state = space.start();
  std::int64_t looks = 0;
  EXPECT_EQ(space.FindSafeRun(state.data(), space.start_bytes(), kLowest, looks), kNoOp);
}

TEST(StateSpaceRandomTest, WalksAsStateDoesAndTakesTheSameSafeSteps) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    // Some graphs need several words.
    const Graph g = RandomGraph(seed, i % 10 == 0 ? 150 : 14);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    for (const Direction direction : kDirections) {
      StateSpace space(g, direction);
      State walked(g, direction);
      std::vector<StateSpace::Word> state = space.start();
      std::int64_t live_bytes = space.start_bytes();
      while (true) {
        ASSERT_EQ(live_bytes, walked.live_bytes());
        ASSERT_EQ(ReadyOps(space, state), walked.ready());
        if (walked.ready().empty()) break;
        if (random.Chance(30)) {
          const std::int64_t limit = live_bytes + random.Between(0, 20);
          State safely = walked;
          std::vector<OpId> expected, steps;
          safely.TakeSafeSteps(limit, expected);
          std::vector<StateSpace::Word> next = state;
          std::int64_t looks = 0;
          EXPECT_EQ(space.TakeSafeSteps(next.data(), live_bytes, limit, &steps, looks),
                    safely.live_bytes());
          std::ranges::sort(expected);
          std::ranges::sort(steps);
          ASSERT_EQ(steps, expected);
          ASSERT_EQ(ReadyOps(space, next), safely.ready());
        }
        const OpId v = random.Pick(walked.ready());
        const State::Move move = walked.Look(v);
        const State::Move same = space.Look(state.data(), live_bytes, v);
        ASSERT_EQ(same.hill_bytes, move.hill_bytes);
        ASSERT_EQ(same.live_bytes, move.live_bytes);
        walked.Step(v, move);
        space.Step(state.data(), v);
        live_bytes = move.live_bytes;
      }
    }
  }
}

// From random states without safe steps, under random limits: StepSafely is a step and all safe
// steps; after a step that begins a safe run there is a way to the end within the limit if and only
// if there was one before.
TEST(StateSpaceRandomTest, SafeRunsNeverLoseAWayWithinTheLimit) {
  int runs = 0;
  int possible = 0;
  for (int i = 0; i < ScaledCount(3000); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 12);
    SCOPED_TRACE(Describe(g, seed));
    const DownSets sets(g);
    const auto to = sets.LowestPeaksTo();
    const auto from = sets.LowestPeaksFrom();
    Random random(seed);
    for (int round = 0; round < 8; ++round) {
      const bool forward = round % 2 == 0;
      StateSpace space(g, forward ? Direction::kForward : Direction::kBackward);
      std::vector<StateSpace::Word> state = space.start();
      const auto rest = [&](const StateSpace::Word stepped) {
        return forward ? from[stepped] : to[sets.full() & ~stepped];
      };
      std::int64_t live_bytes = space.start_bytes();
      for (std::int64_t k = random.Between(0, g.num_ops()); k > 0; --k) {
        const OpId v = random.Pick(ReadyOps(space, state));
        live_bytes = space.Look(state.data(), live_bytes, v).live_bytes;
        space.Step(state.data(), v);
      }
      const std::int64_t near = rest(state[0]);
      const std::int64_t limit = random.Between(near - near / 4 - 1, near + near / 4 + 1);
      std::int64_t looks = 0;
      live_bytes = space.TakeSafeSteps(state.data(), live_bytes, limit, nullptr, looks);
      const std::int64_t before = rest(state[0]);

      const std::vector<StateSpace::Word> same = state;
      const OpId v = space.FindSafeRun(state.data(), live_bytes, limit, looks);
      ASSERT_EQ(state, same);
      if (v != kNoOp) {
        space.Step(state.data(), v);
        ASSERT_EQ(rest(state[0]) <= limit, before <= limit)
            << (forward ? "forward" : "backward") << ", limit " << limit << ", op " << v;
        ++runs;
        possible += before <= limit;
        state = same;
      }
      for (const OpId u : ReadyOps(space, same)) {
        if (space.Look(same.data(), live_bytes, u).hill_bytes > limit) continue;
        std::vector<StateSpace::Word> slowly = same, quickly = same;
        std::int64_t expected = space.Look(same.data(), live_bytes, u).live_bytes;
        space.Step(slowly.data(), u);
        expected = space.TakeSafeSteps(slowly.data(), expected, limit, nullptr, looks);
        EXPECT_EQ(space.StepSafely(quickly.data(), live_bytes, limit, u, looks), expected);
        ASSERT_EQ(quickly, slowly);
      }
    }
  }
  EXPECT_GT(runs, 500) << "the test must see safe runs";
  EXPECT_GT(possible, 200) << "the test must see limits that can be kept";
}

// From one random down-set to a larger one, and back.
TEST(StateSpaceRandomTest, StaysBetweenTheDownSetsItIsGiven) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const DownSets oracle(g);
    const Order order = RandomOrder(g, random);
    const auto low = random.Between(0, g.num_ops()), high = random.Between(low, g.num_ops());
    std::vector<char> small(order.size(), 0), large(order.size(), 0);
    DownSets::Mask small_mask = 0, large_mask = 0;
    for (std::int64_t k = 0; k < high; ++k) {
      const OpId v = order[static_cast<std::size_t>(k)];
      large[v] = 1;
      large_mask |= DownSets::Mask{1} << v;
      if (k >= low) continue;
      small[v] = 1;
      small_mask |= DownSets::Mask{1} << v;
    }
    for (const Direction direction : kDirections) {
      const bool forward = direction == Direction::kForward;
      const StateSpace space(g, direction, forward ? small : large, forward ? large : small);
      EXPECT_EQ(space.num_steps(), high - low);
      EXPECT_EQ(space.start_bytes(), oracle.LiveBytes(forward ? small_mask : large_mask));
      std::vector<StateSpace::Word> state = space.start();
      std::int64_t live_bytes = space.start_bytes();
      std::vector<OpId> ready;
      std::int32_t steps = 0;
      for (; !(ready = ReadyOps(space, state)).empty(); ++steps) {
        const OpId v = random.Pick(ready);
        live_bytes = space.Look(state.data(), live_bytes, v).live_bytes;
        space.Step(state.data(), v);
      }
      EXPECT_EQ(steps, high - low);
      EXPECT_EQ(live_bytes, oracle.LiveBytes(forward ? large_mask : small_mask));
    }
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
