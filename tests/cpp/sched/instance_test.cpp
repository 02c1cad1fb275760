#include "sched/instance.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <string_view>

#include "sched/simulate.h"
#include "support/random_graphs.h"

namespace torch_ext::sched::test {
namespace {

void ExpectSame(const Graph& a, const Graph& b) {
  ASSERT_EQ(a.num_buffers(), b.num_buffers());
  ASSERT_EQ(a.num_ops(), b.num_ops());
  for (BufferId i = 0; i < a.num_buffers(); ++i) {
    ASSERT_EQ(a.buffer(i).name, b.buffer(i).name);
    ASSERT_EQ(a.buffer(i).size_bytes, b.buffer(i).size_bytes);
    ASSERT_EQ(a.buffer(i).producer, b.buffer(i).producer);
    ASSERT_EQ(a.buffer(i).kept, b.buffer(i).kept);
    ASSERT_EQ(a.buffer(i).users, b.buffer(i).users);
  }
  for (OpId v = 0; v < a.num_ops(); ++v) {
    ASSERT_EQ(a.op(v).name, b.op(v).name);
    ASSERT_EQ(a.op(v).reads, b.op(v).reads);
    ASSERT_EQ(a.op(v).writes, b.op(v).writes);
    ASSERT_EQ(a.op(v).workspace_bytes, b.op(v).workspace_bytes);
    ASSERT_EQ(a.op(v).after, b.op(v).after);
    ASSERT_EQ(a.op(v).predecessors, b.op(v).predecessors);
    ASSERT_EQ(a.op(v).successors, b.op(v).successors);
    ASSERT_EQ(a.HillBytes(v), b.HillBytes(v));
  }
}

// What is wrong with `text`, as the message says it; empty if nothing is.
std::string ErrorOf(std::string_view text) {
  try {
    ParseInstance(text, "net.graph");
    return {};
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

// The whole message, for `text` with a wrong line `line`.
#define EXPECT_ERROR(text, line, sentence) \
  EXPECT_EQ(ErrorOf(text), "net.graph: line " #line ": " sentence)

TEST(InstanceTest, HeaderAloneIsAnEmptyGraph) {
  for (const char* text : {"graph 1", "graph 1\n", "\n\n# note\n graph\t1 # note\n\n"}) {
    const Graph g = ParseInstance(text);
    EXPECT_EQ(g.num_ops(), 0) << text;
    EXPECT_EQ(g.num_buffers(), 0) << text;
  }
  EXPECT_EQ(PrintInstance(Graph()), "graph 1\n");
}

TEST(InstanceTest, BuffersAloneAreAGraphThatKeepsThem) {
  const Graph g = ParseInstance(
      "graph 1\nbuffer x 5 input kept\nbuffer y 7 kept input\n"
      "buffer z 9 input\n");
  EXPECT_EQ(PeakBytes(g, {}), 12);
}

TEST(InstanceTest, ReadsTheExampleOfTheFormat) {
  const Graph g = ParseInstance(R"(graph 1          # the first line that is not a comment
buffer x   602112 input               # alive from the start
buffer a   3211264
buffer b   3211264
buffer y   4000 kept                  # never freed
op conv1   reads x writes a workspace 1048576
op relu    reads a writes b
op stat    reads a                    # an op may write nothing
op head    reads b writes y after stat
)");
  ASSERT_EQ(g.num_ops(), 4);
  EXPECT_EQ(g.op(3).name, "head");
  EXPECT_EQ(g.op(3).predecessors, (std::vector<OpId>{1, 2}));
  EXPECT_EQ(g.op(0).workspace_bytes, 1048576);
  EXPECT_TRUE(g.buffer(0).is_input());
  EXPECT_TRUE(g.buffer(3).kept);
  const Profile profile = Simulate(g, g.OriginalOrder());
  EXPECT_EQ(profile.hill_bytes,
            (std::vector<std::int64_t>{602112 + 3211264 + 1048576, 6422528, 6422528, 3215264}));
  EXPECT_EQ(profile.valley_bytes, (std::vector<std::int64_t>{3211264, 6422528, 3211264, 4000}));
}

TEST(InstanceTest, CarriageReturnsTabsAndMissingLastNewlineAreAccepted) {
  ExpectSame(ParseInstance("graph 1\r\nbuffer\tx 1 input\r\n\r\nop\tv  reads\tx\t\r\n# end\r"),
             ParseInstance("graph 1\nbuffer x 1 input\nop v reads x\n"));
}

TEST(InstanceTest, HashStartsACommentOnlyAfterWhiteSpace) {
  EXPECT_EQ(ParseInstance("graph 1 #1\nbuffer x 1 input #kept\n#op v reads x").num_ops(), 0);
  EXPECT_FALSE(ParseInstance("graph 1\nbuffer x 1 input #kept").buffer(0).kept);
  EXPECT_ERROR("graph 1\nbuffer x#y 1", 2, "'x#y' is not a name");
  EXPECT_ERROR("graph 1\nbuffer x 1#y", 2, "'1#y' is not a size in bytes");
}

TEST(InstanceTest, PartsOfAnOpComeInAnyOrder) {
  ExpectSame(ParseInstance("graph 1\nbuffer x 1 input\nbuffer y 2\nop u\n"
                           "op v after u workspace 3 writes y reads x"),
             ParseInstance("graph 1\nbuffer x 1 input\nbuffer y 2\nop u\n"
                           "op v reads x writes y workspace 3 after u"));
}

TEST(InstanceTest, WordsOfOtherPlacesAreNames) {
  const Graph g = ParseInstance(
      "graph 1\nbuffer buffer 1 input\nbuffer op 2\n"
      "op graph reads buffer writes op\nop 7 reads op");
  EXPECT_EQ(g.op(0).name, "graph");
  EXPECT_EQ(g.op(1).name, "7");
}

TEST(InstanceTest, OpsAndBuffersMayShareNamesAndBuffersMayStandBetweenOps) {
  const Graph g = ParseInstance(
      "graph 1\nbuffer v 1\nop v writes v\nbuffer w 2\n"
      "op w reads v writes w");
  EXPECT_EQ(g.num_ops(), 2);
}

TEST(InstanceTest, MissingHeaderIsAnError) {
  EXPECT_ERROR("# nothing\n\n", 2, "the header 'graph 1' is missing");
  EXPECT_ERROR("# note\nbuffer x 1 input\n", 2, "the first line must be 'graph 1'");
}

TEST(InstanceTest, EmptyTextHasNoHeader) {
  EXPECT_NE(ErrorOf("").find("the header 'graph 1' is missing"), std::string::npos);
}

TEST(InstanceTest, WrongVersionIsAnError) {
  for (const char* text : {"graph 2", "graph", "graph 1 1", "graph one", "graph 1.0"}) {
    EXPECT_ERROR(text, 1, "this reader knows only version 1 of the format ('graph 1')") << text;
  }
}

TEST(InstanceTest, UnknownWordsAreErrors) {
  EXPECT_ERROR("graph 1\ntensor x 1", 2, "unknown word 'tensor': expected buffer or op");
  EXPECT_ERROR("graph 1\ngraph 1", 2, "unknown word 'graph': expected buffer or op");
  EXPECT_ERROR("graph 1\nbuffer x 1 const", 2, "unknown word 'const': expected input or kept once");
  EXPECT_ERROR("graph 1\nbuffer x 1 kept kept", 2,
               "unknown word 'kept': expected input or kept once");
  EXPECT_ERROR("graph 1\n\nop v uses x", 3,
               "unknown word 'uses': expected reads, writes, workspace or after");
  EXPECT_ERROR("graph 1\nop v workspace 1 2", 2, "unknown word '2' after the workspace");
}

TEST(InstanceTest, IncompleteLinesAreErrors) {
  EXPECT_ERROR("graph 1\nbuffer x", 2, "'buffer' needs a name and a size");
  EXPECT_ERROR("graph 1\nbuffer", 2, "'buffer' needs a name and a size");
  EXPECT_ERROR("graph 1\nop", 2, "'op' needs a name");
  EXPECT_ERROR("graph 1\nop v reads", 2, "nothing follows 'reads'");
  EXPECT_ERROR("graph 1\nop v workspace after u", 2, "nothing follows 'workspace'");
}

TEST(InstanceTest, APartMayStandOnlyOnce) {
  EXPECT_ERROR("graph 1\nbuffer x 1 input\nop v reads x reads x", 3, "'reads' stands twice");
  EXPECT_ERROR("graph 1\nop v workspace 1 workspace 1", 2, "'workspace' stands twice");
}

TEST(InstanceTest, ReservedWordsAreNoNames) {
  EXPECT_ERROR("graph 1\nbuffer kept 1 input", 2, "'kept' is not a name");
  EXPECT_ERROR("graph 1\nop reads x", 2, "'reads' is not a name");
  EXPECT_ERROR("graph 1\nop v reads input", 2, "'input' is not a name");
}

TEST(InstanceTest, DuplicateNamesAreErrors) {
  EXPECT_ERROR("graph 1\nbuffer x 1 input\nbuffer x 2 input", 3, "buffer 'x' is declared twice");
  EXPECT_ERROR("graph 1\nop v\n\nop v", 4, "op 'v' is declared twice");
}

TEST(InstanceTest, UnknownBuffersAndOpsAreErrors) {
  EXPECT_ERROR("graph 1\nop v reads x", 2,
               "op 'v' names the unknown buffer 'x' "
               "(buffers come before the first op that names them)");
  EXPECT_ERROR("graph 1\nop v writes x\nbuffer x 1", 2,
               "op 'v' names the unknown buffer 'x' "
               "(buffers come before the first op that names them)");
  EXPECT_ERROR("graph 1\nop u\nop v after w", 3, "op 'v' comes after 'w', which is no earlier op");
}

TEST(InstanceTest, AfterNamesEarlierOpsOnly) {
  EXPECT_ERROR("graph 1\nop v after w\nop w", 2, "op 'v' comes after 'w', which is no earlier op");
  EXPECT_ERROR("graph 1\nop v after v", 2, "op 'v' comes after 'v', which is no earlier op");
}

TEST(InstanceTest, TwoProducersAreAnError) {
  EXPECT_ERROR("graph 1\nbuffer a 1\nop u writes a\nop v writes a", 4,
               "op 'v' writes 'a', which op 'u' wrote");
  EXPECT_ERROR("graph 1\nbuffer x 1 input\nop v writes x", 3,
               "op 'v' writes 'x', which is an input");
}

TEST(InstanceTest, ABufferWithoutProducerIsAnErrorAtItsOwnLine) {
  EXPECT_ERROR("graph 1\nbuffer x 1 input\nbuffer a 1\nbuffer b 1\nop v reads x writes b", 3,
               "buffer 'a' has no producer and is no input");
  EXPECT_ERROR("graph 1\nbuffer a 1 kept\nop v reads a", 2,
               "buffer 'a' has no producer and is no input");
}

TEST(InstanceTest, BadSizesAreErrors) {
  EXPECT_ERROR("graph 1\nbuffer a -1 input", 2, "the size -1 is negative");
  EXPECT_ERROR("graph 1\nop v workspace -7", 2, "the size -7 is negative");
  EXPECT_ERROR("graph 1\nbuffer a 99999999999999999999 input", 2,
               "the size 99999999999999999999 is above 2^62");
  EXPECT_ERROR("graph 1\nbuffer a 4611686018427387905 input", 2,
               "the size 4611686018427387905 is above 2^62");
  for (const char* size : {"1.5", "0x10", "1e3", "+1", "many", "1_000", "--1", "1k"}) {
    EXPECT_EQ(ErrorOf("graph 1\nbuffer a " + std::string(size) + " input"),
              "net.graph: line 2: '" + std::string(size) + "' is not a size in bytes");
  }
}

TEST(InstanceTest, TheSumOfSizesStaysBelowTwoToThe62) {
  EXPECT_ERROR("graph 1\nbuffer a 4611686018427387904 input", 2,
               "the sum of all sizes reaches 2^62 bytes at buffer 'a'");
  const std::string half = "graph 1\nbuffer a 2305843009213693952 input\n";
  EXPECT_ERROR(half + "buffer b 2305843009213693952 input", 3,
               "the sum of all sizes reaches 2^62 bytes at buffer 'b'");
  EXPECT_ERROR(half + "buffer b 2305843009213693951 input\nop v workspace 1", 4,
               "the sum of all sizes reaches 2^62 bytes at the workspace of op 'v'");
  const Graph g = ParseInstance(half + "buffer b 2305843009213693951\nop v writes b reads a");
  EXPECT_EQ(PeakBytes(g, g.OriginalOrder()), kSizeLimitBytes - 1);
}

TEST(InstanceTest, AnOpReadingWhatItWritesIsAnError) {
  EXPECT_ERROR("graph 1\nbuffer a 1\nop v reads a writes a", 3,
               "op 'v' reads 'a', which it writes itself");
}

TEST(InstanceTest, ACycleIsAnError) {
  EXPECT_ERROR("graph 1\nbuffer a 1\nbuffer b 1\nop u reads b writes a\nop v reads a writes b", 4,
               "op 'u' reads 'b', which op 'v' writes only later: a cycle");
  EXPECT_ERROR("graph 1\nbuffer b 1\nop u reads b\nop w after u\nop v writes b after w", 3,
               "op 'u' reads 'b', which op 'v' writes only later: a cycle");
}

TEST(InstanceTest, AnInvalidOriginalOrderIsAnError) {
  EXPECT_ERROR("graph 1\nbuffer a 1\nop u reads a\nop v writes a", 3,
               "op 'u' reads 'a', which op 'v' writes only later: "
               "the original order is not valid");
}

TEST(InstanceTest, TheMessageStartsWithTheFileOrAPlaceholder) {
  try {
    ParseInstance("graph 3");
    FAIL() << "version 3 was accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()).find("<text>: line 1: "), 0u);
  }
}

TEST(InstanceRandomTest, ParsingWhatIsPrintedGivesTheSameGraph) {
  for (int seed = 0; seed < ScaledCount(1000); ++seed) {
    const Graph g = RandomGraph(static_cast<std::uint64_t>(seed), 24);
    SCOPED_TRACE(Describe(g, static_cast<std::uint64_t>(seed)));
    const std::string text = PrintInstance(g);
    const Graph parsed = ParseInstance(text);
    ASSERT_NO_FATAL_FAILURE(ExpectSame(g, parsed));
    ASSERT_EQ(PrintInstance(parsed), text);
  }
}

// Damaged texts must be read or rejected with a message, never crash or come out invalid.
TEST(InstanceRandomTest, DamagedTextsAreRejectedWithALineOrReadAsValidGraphs) {
  for (int seed = 0; seed < ScaledCount(3000); ++seed) {
    Random random(static_cast<std::uint64_t>(seed));
    std::string text = PrintInstance(RandomGraph(random.Between(0, 1 << 20), 8));
    for (std::int64_t i = random.Between(1, 3); i > 0; --i) {
      const auto at = static_cast<std::size_t>(random.Between(0, std::ssize(text) - 1));
      switch (random.Between(0, 2)) {
        case 0:
          text.erase(at, static_cast<std::size_t>(random.Between(1, 8)));
          break;
        case 1:
          text.insert(at, std::string(1, "0a #\n\r\t-"[random.Between(0, 7)]));
          break;
        default:
          text.insert(at, text.substr(static_cast<std::size_t>(random.Between(0, at)), 12));
      }
      if (text.empty()) break;
    }
    SCOPED_TRACE("seed " + std::to_string(seed) + "\n" + text);
    const std::string error = ErrorOf(text);
    if (error.empty()) {
      const Graph g = ParseInstance(text);
      ASSERT_TRUE(IsValidOrder(g, g.OriginalOrder()));
      ASSERT_NO_FATAL_FAILURE(ExpectSame(g, ParseInstance(PrintInstance(g))));
    } else {
      ASSERT_EQ(error.find("net.graph: line "), 0u) << error;
    }
  }
}

}  // namespace
}  // namespace torch_ext::sched::test
