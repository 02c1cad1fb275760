#include "sched/decompose.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "sched/instance.h"
#include "sched/simulate.h"
#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

using Cuts = std::vector<std::int32_t>;

// precedes[u][v]: u runs before v in every order.
std::vector<std::vector<char>> TransitiveClosure(const Graph& graph) {
  const std::size_t n = graph.ops().size();
  std::vector<std::vector<char>> precedes(n, std::vector<char>(n, 0));
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    for (OpId p : graph.op(v).predecessors) {
      precedes[p][v] = 1;
      for (std::size_t u = 0; u < n; ++u) precedes[u][v] |= precedes[u][p];
    }
  }
  return precedes;
}

// By the definition: every one of the first k ops precedes every later op.
Cuts CutsByTransitiveClosure(const Graph& graph, const Order& order) {
  const auto n = order.size();
  const std::vector<std::vector<char>> precedes = TransitiveClosure(graph);
  Cuts cuts;
  for (std::size_t k = 1; k < n; ++k) {
    bool cut = true;
    for (std::size_t i = 0; i < k; ++i) {
      for (std::size_t j = k; j < n; ++j) cut = cut && precedes[order[i]][order[j]];
    }
    if (cut) cuts.push_back(static_cast<std::int32_t>(k));
  }
  return cuts;
}

TEST(SeriesCutsTest, EmptyAndSingleOpHaveNone) {
  EXPECT_TRUE(SeriesCuts(Graph(), Order{}).empty());
  const Graph one = ParseInstance("graph 1\nop a");
  EXPECT_TRUE(SeriesCuts(one, one.OriginalOrder()).empty());
}

TEST(SeriesCutsTest, AChainIsCutEverywhereAndIndependentOpsNowhere) {
  const Graph chain = ParseInstance("graph 1\nop a\nop b after a\nop c after b");
  EXPECT_EQ(SeriesCuts(chain, chain.OriginalOrder()), (Cuts{1, 2}));
  const Graph loose = ParseInstance("graph 1\nop a\nop b\nop c");
  EXPECT_TRUE(SeriesCuts(loose, loose.OriginalOrder()).empty());
}

TEST(SeriesCutsTest, ASkipConnectionDoesNotBreakACut) {
  const Graph g = ParseInstance(R"(graph 1
buffer skip 1
buffer x 1
buffer y 1
buffer z 1
op a writes skip
op b reads skip writes x
op c reads skip writes y
op d reads x y writes z
op e reads z skip
)");
  EXPECT_EQ(SeriesCuts(g, g.OriginalOrder()), (Cuts{1, 3, 4}));
  EXPECT_EQ(SeriesCuts(g, Order{0, 2, 1, 3, 4}), (Cuts{1, 3, 4}));
}

TEST(SeriesCutsTest, ACutNeedsNoSeparatingOpOnlyACompleteBipartiteEdge) {
  const Graph complete = ParseInstance("graph 1\nop a\nop b\nop c after a b\nop d after a b");
  EXPECT_EQ(SeriesCuts(complete, complete.OriginalOrder()), Cuts{2});
  const Graph one_missing = ParseInstance("graph 1\nop a\nop b\nop c after a b\nop d after b");
  EXPECT_TRUE(SeriesCuts(one_missing, one_missing.OriginalOrder()).empty());
}

TEST(SeriesCutsRandomTest, AgreeWithTheTransitiveClosureInEveryOrder) {
  for (int i = 0; i < ScaledCount(1500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 18);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const Order order = RandomOrder(g, random);
    const Cuts expected = CutsByTransitiveClosure(g, g.OriginalOrder());
    ASSERT_EQ(SeriesCuts(g, g.OriginalOrder()), expected);
    ASSERT_EQ(SeriesCuts(g, order), expected);
    ASSERT_EQ(CutsByTransitiveClosure(g, order), expected);
  }
}

TEST(SeriesCutsRandomTest, TheLowestPeakIsThatOfTheWorstBlock) {
  for (int i = 0; i < ScaledCount(500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 12);
    SCOPED_TRACE(Describe(g, seed));
    const Slicer slicer(g, g.OriginalOrder());
    Cuts ends = SeriesCuts(g, g.OriginalOrder());
    ends.push_back(g.num_ops());
    std::int64_t worst = 0;
    std::int32_t begin = 0;
    for (std::int32_t end : ends) {
      worst = std::max(worst, DownSets(slicer.Cut(begin, end).graph).LowestPeak());
      begin = end;
    }
    ASSERT_EQ(worst, DownSets(g).LowestPeak());
  }
}

TEST(RegionTreeTest, APumpkinIsASeriesAroundACoupledParallel) {
  const Graph g = ParseInstance(R"(graph 1
buffer x 1
buffer a 1
buffer b 1
op source writes x
op left reads x writes a
op right reads x writes b
op sink reads a b
)");
  const RegionTree tree = FindRegions(g);
  ASSERT_EQ(tree.nodes.size(), 6u);
  EXPECT_EQ(tree.nodes[0].kind, RegionTree::Kind::kSeries);
  EXPECT_EQ(tree.nodes[0].num_children, 3);
  EXPECT_EQ(tree.nodes[2].kind, RegionTree::Kind::kParallel);
  EXPECT_EQ(tree.nodes[2].open_depth, RegionTree::kClosed);
  EXPECT_EQ(tree.nodes[4].open_depth, 1) << "left sees x die or not";
  EXPECT_EQ(tree.nodes[5].coupled_with, 4);
}

TEST(RegionTreeTest, DepthIsLimitedWhereItIsAskedFor) {
  const Graph g = ParseInstance("graph 1\nop a\nop b after a\nop c after a\nop d after c");
  EXPECT_EQ(FindRegions(g).nodes.size(), 7u);
  EXPECT_EQ(FindRegions(g, 0).nodes.size(), 3u);
}

// Nodes are modules of the precedence order and partition their parents; a node is isolated exactly
// if no buffer couples it to something incomparable.
TEST(RegionTreeRandomTest, NodesAreModulesAndOpenExactlyWhereABufferCouplesThem) {
  int open = 0, closed = 0;
  for (int i = 0; i < ScaledCount(1500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 14);
    SCOPED_TRACE(Describe(g, seed));
    const std::vector<std::vector<char>> precedes = TransitiveClosure(g);
    const auto relation = [&](OpId x, OpId m) {
      return precedes[x][m] ? 1 : precedes[m][x] ? 2 : 0;
    };
    const RegionTree tree = FindRegions(g);
    ASSERT_TRUE(IsValidOrder(g, tree.ops));
    for (const RegionTree::Node& node : tree.nodes) {
      std::vector<char> inside(g.ops().size(), 0);
      for (std::int32_t k = node.begin; k < node.end; ++k) inside[tree.ops[k]] = 1;
      const OpId some = tree.ops[node.begin];
      for (OpId x = 0; x < g.num_ops(); ++x) {
        if (inside[x]) continue;
        for (std::int32_t k = node.begin; k < node.end; ++k) {
          ASSERT_EQ(relation(x, tree.ops[k]), relation(x, some));
        }
      }
      std::int32_t end = node.begin;
      for (std::int32_t c = 0; c < node.num_children; ++c) {
        const RegionTree::Node& child = tree.nodes[node.first_child + c];
        ASSERT_EQ(child.begin, end);
        ASSERT_LT(child.begin, child.end);
        end = child.end;
        const bool series = node.kind == RegionTree::Kind::kSeries;
        for (std::int32_t k = node.begin; k < child.begin; ++k) {
          ASSERT_EQ(relation(tree.ops[k], tree.ops[child.begin]), series ? 1 : 0);
        }
      }
      if (node.num_children > 0) {
        ASSERT_GT(node.num_children, 1);
        ASSERT_EQ(end, node.end);
      }

      bool coupled = false;
      for (const Buffer& buffer : g.buffers()) {
        if (buffer.kept || buffer.size_bytes == 0) continue;
        bool read_inside = false, read_beside = false, read_after = false;
        for (OpId u : buffer.users) {
          read_inside |= inside[u] != 0;
          read_beside |= !inside[u] && relation(u, some) == 0;
          read_after |= !inside[u] && relation(u, some) == 2;
        }
        const bool born_inside = !buffer.is_input() && inside[buffer.producer];
        coupled |= read_inside && read_beside && !read_after && !born_inside;
      }
      ASSERT_EQ(node.open_depth != RegionTree::kClosed, coupled);
      ++(coupled ? open : closed);
    }
  }
  EXPECT_GT(open, 500);
  EXPECT_GT(closed, 500);
}

TEST(SlicerTest, AnEmptySliceHoldsWhatPassesBy) {
  const Graph empty;
  EXPECT_EQ(Slicer(empty, Order{}).Cut(0, 0).graph.num_ops(), 0);
  const Graph g = ParseInstance("graph 1\nbuffer x 5 input\nop a reads x\nop b after a");
  const Slicer slicer(g, g.OriginalOrder());
  EXPECT_EQ(PeakBytes(slicer.Cut(0, 0).graph, {}), 5);
  EXPECT_EQ(PeakBytes(slicer.Cut(1, 1).graph, {}), 0);
}

TEST(SlicerTest, BornEarlierIsInputUsedLaterIsKeptAndTheRestPassesBy) {
  const Graph g = ParseInstance(R"(graph 1
buffer far 100 input
buffer weights 40 input kept
buffer a 1
buffer b 2
buffer c 4
buffer d 8
op first writes a
op second reads a writes b
op third reads b writes c after first second
op fourth reads c far writes d
)");
  const Slice slice = Slicer(g, g.OriginalOrder()).Cut(1, 3);
  EXPECT_EQ(slice.ops, (std::vector<OpId>{1, 2}));
  EXPECT_EQ(PrintInstance(slice.graph), R"(graph 1
buffer a 1 input
buffer b 2
buffer c 4 kept
buffer passing_by 140 input kept
op second reads a writes b
op third reads b writes c after second
)");
}

TEST(SlicerTest, ABufferOfTheGraphMayBeCalledLikeThePassingOnes) {
  const Graph g = ParseInstance(R"(graph 1
buffer passing_by 3 input
buffer passing_by_ 5 input
buffer far 7 input
op a reads passing_by passing_by_
op b reads far after a
)");
  const Slice slice = Slicer(g, g.OriginalOrder()).Cut(0, 1);
  EXPECT_NO_THROW(ParseInstance(PrintInstance(slice.graph)));
  EXPECT_EQ(PeakBytes(slice.graph, Order{0}), 15);
}

TEST(SlicerRandomTest, TheWholeIsASliceOfItself) {
  for (int i = 0; i < ScaledCount(300); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 12);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const Order order = RandomOrder(g, random);
    const Slice slice = Slicer(g, order).Cut(0, g.num_ops());
    ASSERT_EQ(slice.ops, order);
    ASSERT_EQ(NaiveSimulate(slice.graph, slice.graph.OriginalOrder()).hill_bytes,
              NaiveSimulate(g, order).hill_bytes);
    ASSERT_EQ(DownSets(slice.graph).LowestPeak(), DownSets(g).LowestPeak());
  }
}

// Any order of a slice put into the whole has there the hills it has on its own, and leaves the
// hills outside the slice alone.
TEST(SlicerRandomTest, HillsOfASliceAreTheHillsInTheWhole) {
  for (int i = 0; i < ScaledCount(1500); ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Graph g = RandomGraph(seed, 18);
    SCOPED_TRACE(Describe(g, seed));
    Random random(seed);
    const Order order = RandomOrder(g, random);
    const auto begin = static_cast<std::int32_t>(random.Between(0, g.num_ops() - 1));
    const auto end = static_cast<std::int32_t>(random.Between(begin + 1, g.num_ops()));
    const Slice slice = Slicer(g, order).Cut(begin, end);
    ASSERT_NO_THROW(slice.graph.Validate());
    ASSERT_NO_THROW(ParseInstance(PrintInstance(slice.graph)));
    const NaiveProfile before = NaiveSimulate(g, order);

    const Order inner = RandomOrder(slice.graph, random);
    Order whole = order;
    for (std::size_t k = 0; k < inner.size(); ++k) whole[begin + k] = slice.ops[inner[k]];
    ASSERT_TRUE(IsValidOrder(g, whole));
    const NaiveProfile alone = NaiveSimulate(slice.graph, inner);
    const NaiveProfile after = NaiveSimulate(g, whole);
    for (std::int32_t k = 0; k < g.num_ops(); ++k) {
      const bool inside = begin <= k && k < end;
      ASSERT_EQ(after.hill_bytes[k], inside ? alone.hill_bytes[k - begin] : before.hill_bytes[k])
          << "position " << k << ", slice [" << begin << ", " << end << ")";
    }
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
