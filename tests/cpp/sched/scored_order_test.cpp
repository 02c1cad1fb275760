#include "sched/scored_order.h"

#include <gtest/gtest.h>

#include "sched/simulate.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

void ExpectScored(const ScoredOrder& scored) {
  const Profile profile = Simulate(scored.graph(), scored.order());
  ASSERT_EQ(scored.hill_bytes(), profile.hill_bytes);
  ASSERT_EQ(scored.peak_bytes(), profile.PeakBytes());
  ASSERT_EQ(scored.peak_position(), profile.PeakPosition());
  for (std::int32_t i = 0; i < scored.size(); ++i) {
    ASSERT_EQ(scored.position(scored.order()[i]), i);
    ASSERT_EQ(scored.live_before_bytes(i + 1), profile.valley_bytes[i]);
  }
  for (BufferId b = 0; b < scored.graph().num_buffers(); ++b) {
    std::int32_t last = -1;
    for (OpId u : scored.graph().buffer(b).users) last = std::max(last, scored.position(u));
    ASSERT_EQ(scored.last_use(b), last);
  }
}

TEST(ScoredOrderRandomTest, ReplacingAWindowIsScoringAnew) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 16);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    ScoredOrder scored(g, g.OriginalOrder());
    for (int k = 0; k < 5; ++k) {
      // Windows between the positions at which two orders agree on what has run.
      const Order other = RandomOrder(g, random);
      const auto begin = static_cast<std::int32_t>(random.Between(0, g.num_ops()));
      std::vector<char> before(g.ops().size(), 0);
      for (std::int32_t j = 0; j < begin; ++j) before[scored.order()[j]] = 1;
      Order rest;
      for (OpId v : other) {
        if (!before[v]) rest.push_back(v);
      }
      scored.Replace(begin, rest);
      ASSERT_TRUE(IsValidOrder(g, scored.order()));
      ASSERT_NO_FATAL_FAILURE(ExpectScored(scored));
    }
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
