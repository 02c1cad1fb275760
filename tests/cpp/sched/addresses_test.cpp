#include "sched/addresses.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "sched/address_search.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

using Lifetimes = std::vector<Lifetime>;

std::string Describe(const Lifetimes& lifetimes) {
  std::string text;
  for (const Lifetime& l : lifetimes) {
    text += "{" + std::to_string(l.bytes) + ", " + std::to_string(l.begin) + ", " +
            std::to_string(l.end) + "} ";
  }
  return text;
}

Lifetimes RandomLifetimes(Random& random, std::int64_t most, std::int64_t largest) {
  Lifetimes lifetimes(static_cast<std::size_t>(random.Between(1, most)));
  const std::int64_t steps = random.Between(2, 12);
  for (Lifetime& l : lifetimes) {
    l.bytes = random.Between(1, largest);
    l.begin = static_cast<std::int32_t>(random.Between(0, steps - 2));
    l.end = static_cast<std::int32_t>(random.Between(l.begin + 1, steps));
  }
  return lifetimes;
}

// The smallest found of those that need more than what is alive: 6 where 5 are.
const Lifetimes kHard = {{3, 0, 4}, {2, 0, 3}, {1, 3, 6}, {1, 3, 5},
                         {1, 4, 6}, {3, 5, 8}, {2, 6, 8}};

// That with one change.
Lifetimes NearlyHard(Random& random) {
  Lifetimes lifetimes = kHard;
  Lifetime& l = lifetimes[static_cast<std::size_t>(random.Between(0, 6))];
  switch (random.Between(0, 3)) {
    case 0:
      l.bytes += random.Between(0, 2);
      break;
    case 1:
      ++l.end;
      break;
    case 2:
      l.begin = std::max(0, l.begin - 1);
      break;
    default:
      lifetimes.push_back({1, l.begin, l.end});
  }
  std::rotate(lifetimes.begin(), lifetimes.begin() + random.Between(0, 6), lifetimes.end());
  return lifetimes;
}

// The least height. Every placement, sorted by offset and placed anew, each buffer on top of what
// it meets, is no higher: so the least over all permutations is the least of all.
std::int64_t LeastHeight(const Lifetimes& lifetimes) {
  std::vector<std::size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), 0);
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  do {
    std::vector<std::int64_t> tops(lifetimes.size());
    std::int64_t height = 0;
    for (std::size_t k = 0; k < order.size(); ++k) {
      std::int64_t offset = 0;
      for (std::size_t j = 0; j < k; ++j) {
        if (lifetimes[order[j]].Meets(lifetimes[order[k]])) {
          offset = std::max(offset, tops[order[j]]);
        }
      }
      tops[order[k]] = offset + lifetimes[order[k]].bytes;
      height = std::max(height, tops[order[k]]);
    }
    least = std::min(least, height);
  } while (std::next_permutation(order.begin(), order.end()));
  return least;
}

std::string ErrorOf(const Lifetimes& lifetimes, const Offsets& offsets) {
  try {
    HeightBytes(lifetimes, offsets);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(AddressJudgeTest, TellsTheHeightAndWhatSharesAnAddress) {
  const Lifetimes lifetimes = {{4, 0, 2}, {3, 1, 3}, {4, 2, 4}};
  EXPECT_EQ(HeightBytes(lifetimes, Offsets{0, 4, 0}), 7);
  EXPECT_EQ(HeightBytes(lifetimes, Offsets{0, 10, 6}), 13);
  EXPECT_EQ(MostLiveBytes(lifetimes), 7);
  EXPECT_EQ(ErrorOf(lifetimes, {0, 3, 0}), "lifetimes 0 and 1 share an address at step 1");
  EXPECT_EQ(ErrorOf(lifetimes, {0, 4, 3}), "lifetimes 1 and 2 share an address at step 2");
  EXPECT_EQ(ErrorOf(lifetimes, {4, 2, 8}), "lifetimes 0 and 1 share an address at step 1");
  EXPECT_EQ(ErrorOf(lifetimes, {-1, 4, 0}), "lifetime 0 lies below offset 0");
  EXPECT_EQ(ErrorOf(lifetimes, {0, 4}), "2 offsets for 3 lifetimes");
  EXPECT_EQ(ErrorOf({{1, 0, 1}, {0, 0, 1}}, {0, 0}),
            "lifetime 1 needs more than 0 bytes and an end behind its begin");
  EXPECT_EQ(ErrorOf({{1, 2, 2}}, {0}),
            "lifetime 0 needs more than 0 bytes and an end behind its begin");
  EXPECT_EQ(HeightBytes({}, {}), 0);
}

// By the definition: every pair.
TEST(AddressJudgeRandomTest, AllowsWhatEveryPairAllows) {
  for (int i = 0; i < ScaledCount(3000); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    const Lifetimes lifetimes = RandomLifetimes(random, 5, 4);
    Offsets offsets(lifetimes.size());
    for (std::int64_t& offset : offsets) offset = random.Between(0, 9);
    bool is_allowed = true;
    for (std::size_t a = 0; a < offsets.size(); ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        is_allowed = is_allowed && !(lifetimes[a].Meets(lifetimes[b]) &&
                                     offsets[a] < offsets[b] + lifetimes[b].bytes &&
                                     offsets[b] < offsets[a] + lifetimes[a].bytes);
      }
    }
    ASSERT_EQ(ErrorOf(lifetimes, offsets).empty(), is_allowed) << Describe(lifetimes);
  }
}

TEST(AddressPlanTest, MayNeedMoreThanWhatIsAlive) {
  EXPECT_EQ(MostLiveBytes(kHard), 5);
  EXPECT_EQ(LeastHeight(kHard), 6);
  Budget budget(1);
  const AddressPlan plan = PlanAddresses(kHard, budget);
  EXPECT_EQ(plan.height_bytes, 6);
  EXPECT_EQ(plan.bound_bytes, 6);
}

TEST(AddressPlanRandomTest, IsTheLeastHeightAndProvesIt) {
  int num_above = 0;
  for (int i = 0; i < ScaledCount(3000); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    const Lifetimes lifetimes =
        i % 3 == 0 ? NearlyHard(random) : RandomLifetimes(random, 8, i % 3 == 1 ? 4 : 100);
    SCOPED_TRACE(std::to_string(i) + ": " + Describe(lifetimes));
    const std::int64_t least = LeastHeight(lifetimes);
    Budget budget(1);
    const AddressPlan plan = PlanAddresses(lifetimes, budget);
    ASSERT_EQ(plan.height_bytes, least);
    ASSERT_EQ(plan.bound_bytes, least);
    ASSERT_EQ(HeightBytes(lifetimes, plan.offsets), least);
    num_above += least > MostLiveBytes(lifetimes) ? 1 : 0;
  }
  EXPECT_GT(num_above, 0);
}

TEST(AddressPlanRandomTest, WithoutABudgetStaysValidAndAboveItsBound) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    const Lifetimes lifetimes = RandomLifetimes(random, 60, 50);
    SCOPED_TRACE(std::to_string(i) + ": " + Describe(lifetimes));
    Budget none(0), some(0.02);
    const AddressPlan first = PlanAddresses(lifetimes, none);
    ASSERT_EQ(HeightBytes(lifetimes, first.offsets), first.height_bytes);
    ASSERT_EQ(first.bound_bytes, MostLiveBytes(lifetimes));
    const AddressPlan second = PlanAddresses(lifetimes, some);
    ASSERT_EQ(HeightBytes(lifetimes, second.offsets), second.height_bytes);
    ASSERT_LE(second.height_bytes, first.height_bytes);
    ASSERT_GE(second.height_bytes, second.bound_bytes);
    ASSERT_GE(second.bound_bytes, first.bound_bytes);
  }
}

// A block of memory over time, cut into buffers: instances of which it is known that they fit
// without a gap.
void Cut(std::int64_t bytes, std::int32_t begin, std::int32_t end, int cuts, Random& random,
         Lifetimes& lifetimes) {
  if (cuts == 0 || (bytes == 1 && end - begin == 1)) {
    lifetimes.push_back({bytes, begin, end});
    return;
  }
  const int first = static_cast<int>(random.Between(0, cuts - 1));
  if (end - begin > 1 && (bytes == 1 || random.Chance(60))) {
    const auto at = static_cast<std::int32_t>(random.Between(begin + 1, end - 1));
    Cut(bytes, begin, at, first, random, lifetimes);
    Cut(bytes, at, end, cuts - 1 - first, random, lifetimes);
  } else {
    const std::int64_t lower = random.Between(1, bytes - 1);
    Cut(lower, begin, end, first, random, lifetimes);
    Cut(bytes - lower, begin, end, cuts - 1 - first, random, lifetimes);
  }
}

TEST(AddressPlanRandomTest, FillsABlockWithoutAGap) {
  constexpr std::int64_t kBytes = 1000;
  for (int i = 0; i < ScaledCount(100); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    Lifetimes lifetimes;
    Cut(kBytes, 0, 200, 60, random, lifetimes);
    std::shuffle(lifetimes.begin(), lifetimes.end(), std::mt19937(static_cast<unsigned>(i)));
    SCOPED_TRACE(std::to_string(i) + ": " + Describe(lifetimes));
    Budget budget(10);
    const AddressPlan plan = PlanAddresses(lifetimes, budget);
    ASSERT_EQ(plan.bound_bytes, kBytes);
    ASSERT_EQ(HeightBytes(lifetimes, plan.offsets), kBytes);
  }
}

TEST(AddressPlanTest, StopsAtAHeightThatIsEnough) {
  Budget budget(1);
  const Lifetimes lifetimes = {{5, 0, 2}, {4, 1, 3}, {5, 2, 4}};
  EXPECT_LE(PlanAddresses(lifetimes, budget, 14).height_bytes, 14);
}

TEST(AddressPlanTest, OfNothingIsNothing) {
  Budget budget(1);
  const AddressPlan plan = PlanAddresses({}, budget);
  EXPECT_EQ(plan.height_bytes, 0);
  EXPECT_TRUE(plan.is_optimal());
}

TEST(AddressSearchRandomTest, FindsAPlacementOfEveryHeightThatHasOne) {
  for (int i = 0; i < ScaledCount(2000); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    const Lifetimes lifetimes =
        i % 3 == 0 ? NearlyHard(random) : RandomLifetimes(random, 8, i % 3 == 1 ? 5 : 1000);
    SCOPED_TRACE(std::to_string(i) + ": " + Describe(lifetimes));
    const std::int64_t least = LeastHeight(lifetimes);
    for (const std::int64_t capacity : {least - 1, least, least + 1}) {
      Budget budget(1);
      Offsets offsets;
      const Fit fit = FindAddresses(lifetimes, capacity, offsets, budget);
      ASSERT_EQ(fit, capacity < least ? Fit::kImpossible : Fit::kFound);
      if (fit == Fit::kFound) {
        ASSERT_LE(HeightBytes(lifetimes, offsets), capacity);
      }
    }
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
