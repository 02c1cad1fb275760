#include "sched/profile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

std::vector<Segment> RandomSegments(Random& random, std::int64_t most) {
  std::vector<Segment> segments;
  const std::int64_t n = random.Between(0, most);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t net = random.Between(-4, 4);
    segments.push_back({std::max<std::int64_t>(net, 0) + random.Between(0, 5), net, 1});
  }
  return segments;
}

// Valley, hill, valley, ..., valley.
std::vector<std::int64_t> Points(const std::vector<Segment>& segments) {
  std::vector<std::int64_t> points{0};
  for (const Segment& s : segments) {
    const std::int64_t start = points.back();
    points.push_back(start + s.hill_bytes);
    points.push_back(start + s.net_bytes);
  }
  return points;
}

// The definition: walk both at once, each step forward in one or both, P never above Q.
bool WalksBelow(const std::vector<Segment>& p, const std::vector<Segment>& q) {
  const std::vector<std::int64_t> a = Points(p), b = Points(q);
  std::vector<std::vector<char>> can(a.size(), std::vector<char>(b.size(), 0));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < b.size(); ++j) {
      const bool reached = (i == 0 && j == 0) || (i > 0 && can[i - 1][j]) ||
                           (j > 0 && can[i][j - 1]) || (i > 0 && j > 0 && can[i - 1][j - 1]);
      can[i][j] = reached && a[i] <= b[j];
    }
  }
  return can.back().back() != 0;
}

// Without the numbers of ops, on which equally high or low places may disagree.
std::vector<Segment> Shape(std::vector<Segment> segments) {
  for (Segment& s : segments) s.num_ops = 0;
  return segments;
}

std::vector<Segment> Concatenated(std::vector<Segment> a, const std::vector<Segment>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(ProfileTest, TheCanonicalFormCutsAtTheLowestValley) {
  // 0 /5\ 2 /9\ -3 /4\ 1 /3\ 0 /1\ 1
  const std::vector<Segment> segments = {{5, 2}, {7, -5}, {7, 4}, {2, -1}, {1, 1}};
  const std::vector<Segment> expected = {{9, -3, 2}, {7, 3, 2}, {1, 1, 1}};
  EXPECT_EQ(Canonical(segments), expected);
}

TEST(ProfileTest, EquivalentProfilesGetTheSameForm) {
  // The valleys and hills (3,3,3,4,1) and (3,4,1,4,3,3,1): the theory's example of a tie.
  const std::vector<Segment> once = {{0, 0}, {1, -2}};
  const std::vector<Segment> twice = {{1, -2}, {3, 2}, {0, -2}};
  EXPECT_TRUE(WalksBelow(once, twice));
  EXPECT_TRUE(WalksBelow(twice, once));
  EXPECT_EQ(Shape(Canonical(once)), Shape(Canonical(twice)));
}

TEST(ProfileRandomTest, TheCanonicalFormIsEquivalentShorterAndUnique) {
  for (int i = 0; i < ScaledCount(20000); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    SCOPED_TRACE(i);
    const std::vector<Segment> p = RandomSegments(random, 8);
    const std::vector<Segment> canonical = Canonical(p);
    ASSERT_TRUE(WalksBelow(p, canonical));
    ASSERT_TRUE(WalksBelow(canonical, p));
    ASSERT_LE(canonical.size(), p.size());
    ASSERT_EQ(Canonical(canonical), canonical);
    ASSERT_EQ(std::accumulate(canonical.begin(), canonical.end(), std::size_t{0},
                              [](std::size_t n, const Segment& s) {
                                return n + static_cast<std::size_t>(s.num_ops);
                              }),
              p.size());
    // Falling ones first, their hills rising and valleys falling; then the mirror image.
    ASSERT_TRUE(
        std::ranges::is_partitioned(canonical, [](const Segment& s) { return s.net_bytes < 0; }));
    for (std::size_t k = 1; k < canonical.size(); ++k) {
      const Segment &a = canonical[k - 1], &b = canonical[k];
      if (b.net_bytes < 0) {
        ASSERT_GT(a.net_bytes + b.hill_bytes, a.hill_bytes);
      } else if (a.net_bytes >= 0) {
        ASSERT_GT(b.net_bytes, 0);
        ASSERT_LT(a.net_bytes + b.hill_bytes, a.hill_bytes);
      }
    }
  }
}

TEST(ProfileRandomTest, DominanceIsTheJointWalk) {
  int dominated = 0;
  for (int i = 0; i < ScaledCount(20000); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    SCOPED_TRACE(i);
    const std::vector<Segment> p = RandomSegments(random, 5), q = RandomSegments(random, 5);
    const bool expected = WalksBelow(p, q);
    ASSERT_EQ(Dominates(Canonical(p), Canonical(q)), expected);
    dominated += expected;
    if (expected && WalksBelow(q, p) && !p.empty() && !q.empty()) {
      ASSERT_EQ(Shape(Canonical(p)), Shape(Canonical(q)));
    }
  }
  EXPECT_GT(dominated, 100);
}

TEST(ProfileRandomTest, ConcatenationAndCanonicalFormCommute) {
  for (int i = 0; i < ScaledCount(5000); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    SCOPED_TRACE(i);
    const std::vector<Segment> p = RandomSegments(random, 6), q = RandomSegments(random, 6);
    ASSERT_EQ(Shape(Canonical(Concatenated(Canonical(p), Canonical(q)))),
              Shape(Canonical(Concatenated(p, q))));
  }
}

// Every interleaving of the original segments, not only of the canonical ones.
TEST(ProfileRandomTest, TheMergeDominatesEveryInterleaving) {
  for (int i = 0; i < ScaledCount(1500); ++i) {
    Random random(static_cast<std::uint64_t>(i));
    SCOPED_TRACE(i);
    const std::vector<std::vector<Segment>> parts = {
        RandomSegments(random, 3), RandomSegments(random, 3), RandomSegments(random, 2)};
    std::vector<std::vector<Segment>> canonical;
    for (const auto& part : parts) canonical.push_back(Canonical(part));
    std::vector<Segment> merged;
    std::vector<std::size_t> next(parts.size(), 0);
    for (const MergedSegment& m : MergeIndependent(canonical)) {
      ASSERT_EQ(m.segment, next[m.part]++);
      merged.push_back(canonical[m.part][m.segment]);
    }
    merged = Canonical(merged);

    std::vector<std::size_t> choice;
    for (std::size_t p = 0; p < parts.size(); ++p) choice.insert(choice.end(), parts[p].size(), p);
    do {
      std::vector<Segment> other;
      std::vector<std::size_t> at(parts.size(), 0);
      for (std::size_t p : choice) other.push_back(parts[p][at[p]++]);
      ASSERT_TRUE(Dominates(merged, Canonical(other)));
    } while (std::ranges::next_permutation(choice).found);
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
