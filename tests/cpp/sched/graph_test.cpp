#include "sched/graph.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <stdexcept>
#include <string>

#include "support/brute_force.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

using Ids = std::vector<std::int32_t>;

// What the call says when it refuses; empty if it does not.
template <typename Call>
std::string ComplaintOf(const Call& call) {
  try {
    call();
    return {};
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

#define EXPECT_COMPLAINT(call, sentence) EXPECT_EQ(ComplaintOf([&] { call; }), sentence)

TEST(GraphTest, EmptyGraphHasNothing) {
  const Graph graph;
  EXPECT_NO_THROW(graph.Validate());
  EXPECT_EQ(graph.num_ops(), 0);
  EXPECT_EQ(graph.num_buffers(), 0);
  EXPECT_EQ(graph.StartBytes(), 0);
  EXPECT_TRUE(graph.OriginalOrder().empty());
}

TEST(GraphTest, PredecessorsComeFromReadsAndAfterWithoutRepeats) {
  Graph g;
  const BufferId x = g.AddInput("x", 1);
  const BufferId a1 = g.AddBuffer("a1", 2);
  const BufferId a2 = g.AddBuffer("a2", 3);
  const BufferId b = g.AddBuffer("b", 4, true);
  const OpId split = g.AddOp("split", {x}, {a2, a1});
  const OpId mute = g.AddOp("mute", {x, x}, {});
  const OpId join = g.AddOp("join", {a2, a1, x, a2}, {b, b}, 5, {mute, split, mute});
  EXPECT_TRUE(g.op(split).predecessors.empty());
  EXPECT_EQ(g.op(mute).reads, (Ids{x}));
  EXPECT_EQ(g.op(join).reads, (Ids{x, a1, a2}));
  EXPECT_EQ(g.op(join).writes, (Ids{b}));
  EXPECT_EQ(g.op(join).predecessors, (Ids{split, mute}));
  EXPECT_EQ(g.op(split).successors, (Ids{join}));
  EXPECT_EQ(g.op(mute).successors, (Ids{join}));
  EXPECT_EQ(g.buffer(x).users, (Ids{split, mute, join}));
  EXPECT_EQ(g.buffer(b).producer, join);
  EXPECT_TRUE(g.buffer(x).is_input());
  EXPECT_FALSE(g.buffer(a1).is_input());
  EXPECT_NO_THROW(g.Validate());
}

TEST(GraphTest, HillIsOutputsAndWorkspaceIncludingDeadOutputs) {
  Graph g;
  const BufferId dead = g.AddBuffer("dead", 7);
  const BufferId kept = g.AddBuffer("kept_result", 11, true);
  const OpId v = g.AddOp("v", {}, {dead, kept}, 100);
  EXPECT_EQ(g.HillBytes(v), 118);
  EXPECT_EQ(g.HillBytes(g.AddOp("nothing", {}, {})), 0);
}

TEST(GraphTest, StartCountsInputsThatAreReadOrKept) {
  Graph g;
  const BufferId read = g.AddInput("read", 1);
  g.AddInput("kept_unread", 2, true);
  g.AddInput("unread", 4);
  const BufferId made = g.AddBuffer("made", 8, true);
  g.AddOp("v", {read}, {made});
  EXPECT_EQ(g.StartBytes(), 3);
}

TEST(GraphTest, ReadingWhatIsNotYetWrittenIsRejected) {
  Graph g;
  const BufferId a = g.AddBuffer("a", 1);
  EXPECT_COMPLAINT(g.AddOp("early", {a}, {}), "op 'early' reads 'a' before it is written");
}

TEST(GraphTest, ReadingOnesOwnOutputIsRejected) {
  Graph g;
  const BufferId a = g.AddBuffer("a", 1);
  EXPECT_COMPLAINT(g.AddOp("loop", {a}, {a}), "op 'loop' reads 'a', which it writes itself");
}

TEST(GraphTest, ABufferHasOneProducerAndAnInputNone) {
  Graph g;
  const BufferId x = g.AddInput("x", 1);
  const BufferId a = g.AddBuffer("a", 1);
  g.AddOp("first", {}, {a});
  EXPECT_COMPLAINT(g.AddOp("second", {}, {a}), "op 'second' writes 'a', which op 'first' wrote");
  EXPECT_COMPLAINT(g.AddOp("third", {}, {x}), "op 'third' writes 'x', which is an input");
}

TEST(GraphTest, UnknownIdsAreRejected) {
  Graph g;
  EXPECT_COMPLAINT(g.AddOp("v", {0}, {}), "op 'v' reads no known buffer");
  EXPECT_COMPLAINT(g.AddOp("v", {-1}, {}), "op 'v' reads no known buffer");
  EXPECT_COMPLAINT(g.AddOp("v", {}, {0}), "op 'v' writes no known buffer");
  EXPECT_COMPLAINT(g.AddOp("v", {}, {}, 0, {0}), "op 'v' comes after no known earlier op");
  EXPECT_COMPLAINT(g.AddOp("v", {}, {}, 0, {-1}), "op 'v' comes after no known earlier op");
}

TEST(GraphTest, ARejectedOpLeavesTheGraphAsItWas) {
  Graph g;
  const BufferId x = g.AddInput("x", 1);
  const BufferId a = g.AddBuffer("a", 1);
  EXPECT_THROW(g.AddOp("v", {x}, {a}, -1), std::invalid_argument);
  EXPECT_THROW(g.AddOp("v", {x}, {a}, 0, {5}), std::invalid_argument);
  EXPECT_EQ(g.num_ops(), 0);
  EXPECT_TRUE(g.buffer(x).users.empty());
  EXPECT_TRUE(g.buffer(a).is_input());
  EXPECT_NO_THROW(g.AddOp("v", {x}, {a}));
}

TEST(GraphTest, NegativeSizesAreRejected) {
  Graph g;
  EXPECT_COMPLAINT(g.AddInput("x", -1), "buffer 'x' has a negative size");
  EXPECT_COMPLAINT(g.AddBuffer("a", -5), "buffer 'a' has a negative size");
  EXPECT_COMPLAINT(g.AddOp("v", {}, {}, -1), "the workspace of op 'v' has a negative size");
}

TEST(GraphTest, TheSumOfSizesAndWorkspacesStaysBelowTheLimit) {
  Graph g;
  g.AddInput("half", kSizeLimitBytes / 2);
  const BufferId rest = g.AddBuffer("rest", kSizeLimitBytes / 2 - 1);
  EXPECT_COMPLAINT(g.AddInput("x", 1), "the sum of all sizes reaches 2^62 bytes at buffer 'x'");
  EXPECT_COMPLAINT(g.AddOp("v", {}, {rest}, 1),
                   "the sum of all sizes reaches 2^62 bytes at the workspace of op 'v'");
  EXPECT_COMPLAINT(g.AddInput("y", std::numeric_limits<std::int64_t>::max()),
                   "the sum of all sizes reaches 2^62 bytes at buffer 'y'");
  EXPECT_NO_THROW(g.AddInput("nothing", 0));
  EXPECT_NO_THROW(g.AddOp("v", {}, {rest}));
}

TEST(GraphTest, ValidateWantsAProducerForEveryBufferThatIsNoInput) {
  Graph g;
  const BufferId a = g.AddBuffer("a", 1);
  EXPECT_COMPLAINT(g.Validate(), "buffer 'a' has no producer");
  g.AddOp("v", {}, {a});
  EXPECT_NO_THROW(g.Validate());
}

TEST(GraphTest, PositionsInvertTheOrder) {
  const Order order = {2, 0, 3, 1};
  EXPECT_EQ(PositionsOf(order), (Ids{1, 3, 0, 2}));
  EXPECT_TRUE(PositionsOf(Order{}).empty());
}

TEST(CheckNameTest, NamesAreTokensOfTheTextFormat) {
  for (const char* name : {"a", "conv1", "a.b/c:0", "-1", "%3", "buffer", "op", "graph", "Reads"}) {
    EXPECT_NO_THROW(CheckName(name)) << name;
  }
  for (const char* name : {"", " ", "a b", "a\tb", "a\n", "a\r", "a#b", "#", "reads", "writes",
                           "workspace", "after", "input", "kept"}) {
    EXPECT_THROW(CheckName(name), std::invalid_argument) << name;
  }
}

TEST(GraphBuilderTest, TranslatesNames) {
  GraphBuilder builder;
  builder.AddBuffer("x", 3, true, false);
  builder.AddBuffer("y", 5, false, true);
  builder.AddOp("first", {}, {}, 0, {});
  builder.AddOp("second", {"x"}, {"y"}, 7, {"first"});
  const Graph& g = builder.Build();
  ASSERT_EQ(g.num_ops(), 2);
  EXPECT_EQ(g.op(1).reads, (Ids{0}));
  EXPECT_EQ(g.op(1).writes, (Ids{1}));
  EXPECT_EQ(g.op(1).after, (Ids{0}));
  EXPECT_EQ(g.HillBytes(1), 12);
  EXPECT_TRUE(g.buffer(1).kept);
}

TEST(GraphBuilderTest, NamesTheOffender) {
  GraphBuilder builder;
  builder.AddBuffer("x", 3, true, false);
  builder.AddOp("v", {"x"}, {}, 0, {});
  EXPECT_COMPLAINT(builder.AddBuffer("x", 1, false, false), "buffer 'x' is declared twice");
  EXPECT_COMPLAINT(builder.AddBuffer("kept", 1, false, false), "'kept' is not a name");
  EXPECT_COMPLAINT(builder.AddOp("v", {}, {}, 0, {}), "op 'v' is declared twice");
  EXPECT_COMPLAINT(builder.AddOp("w", {"z"}, {}, 0, {}), "op 'w' names the unknown buffer 'z'");
  EXPECT_COMPLAINT(builder.AddOp("w", {}, {"z"}, 0, {}), "op 'w' names the unknown buffer 'z'");
  EXPECT_COMPLAINT(builder.AddOp("w", {}, {}, 0, {"w"}),
                   "op 'w' comes after 'w', which is no earlier op");
  builder.AddBuffer("late", 1, false, false);
  EXPECT_COMPLAINT(builder.Build(), "buffer 'late' has no producer");
}

TEST(GraphBuilderTest, GoesOnFromAGraph) {
  Graph start;
  start.AddInput("x", 3);
  start.AddBuffer("open", 5);
  start.AddOp("v", {0}, {});
  GraphBuilder builder(start);
  EXPECT_COMPLAINT(builder.AddBuffer("x", 1, true, false), "buffer 'x' is declared twice");
  EXPECT_COMPLAINT(builder.AddOp("v", {}, {}, 0, {}), "op 'v' is declared twice");
  builder.AddOp("w", {"x"}, {"open"}, 0, {"v"});
  EXPECT_EQ(builder.Build().op(1).predecessors, Ids{0});
  EXPECT_EQ(builder.FindOps({"w", "v"}), (Order{1, 0}));
  EXPECT_COMPLAINT(builder.FindOps({"v", "u"}), "there is no op 'u'");
  Graph nameless;
  nameless.AddInput("", 1);
  EXPECT_COMPLAINT(GraphBuilder{nameless}, "'' is not a name");
}

TEST(GraphRandomTest, DerivedFieldsAgreeWithEachOther) {
  for (int seed = 0; seed < ScaledCount(500); ++seed) {
    const Graph g = RandomGraph(static_cast<std::uint64_t>(seed), 20);
    SCOPED_TRACE(Describe(g, static_cast<std::uint64_t>(seed)));
    ASSERT_NO_THROW(g.Validate());
    std::vector<std::set<OpId>> predecessors(g.ops().size()), successors(g.ops().size());
    std::vector<std::set<OpId>> users(g.buffers().size());
    for (OpId v = 0; v < g.num_ops(); ++v) {
      for (BufferId b : g.op(v).reads) {
        users[b].insert(v);
        if (!g.buffer(b).is_input()) predecessors[v].insert(g.buffer(b).producer);
      }
      predecessors[v].insert(g.op(v).after.begin(), g.op(v).after.end());
      for (OpId p : predecessors[v]) {
        ASSERT_LT(p, v);
        successors[p].insert(v);
      }
      for (BufferId b : g.op(v).writes) ASSERT_EQ(g.buffer(b).producer, v);
    }
    for (OpId v = 0; v < g.num_ops(); ++v) {
      ASSERT_EQ(g.op(v).predecessors, Ids(predecessors[v].begin(), predecessors[v].end()));
      ASSERT_EQ(g.op(v).successors, Ids(successors[v].begin(), successors[v].end()));
    }
    for (BufferId b = 0; b < g.num_buffers(); ++b) {
      ASSERT_EQ(g.buffer(b).users, Ids(users[b].begin(), users[b].end()));
    }
    ASSERT_EQ(g.StartBytes(), NaiveSimulate(g, {}).start_bytes);
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
