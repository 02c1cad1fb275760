#include "sched/state_space.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

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

TEST(StateSpaceRandomTest, WalksAsStateDoesAndTakesTheSameSafeSteps) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    // Some graphs need several words.
    const Graph g = RandomGraph(seed, i % 10 == 0 ? 150 : 14);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    for (const Direction direction : kDirections) {
      const StateSpace space(g, direction);
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
