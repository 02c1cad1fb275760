#include "program/instance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "program/levers/repeat_search.h"
#include "program/lower.h"
#include "sched/instance.h"
#include "support/random_graphs.h"
#include "support/repeat_machine.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::kNoBudget;
using Random = sched::test::Random;
using Names = std::vector<std::string>;

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

constexpr std::string_view kExample = R"(graph 2
buffer x 8 input
buffer p 4 input
buffer a 16
buffer b 16
buffer y 4 kept
op conv    reads x p writes a nanoseconds 5000 workspace 32
op dropout reads a writes b nanoseconds 900 once
op add_    mutates b reads b a nanoseconds 700
op look    reads b
op out     reads b x writes y nanoseconds 0
op update  reads p y mutates p nanoseconds 100 after look
)";

TEST(ProgramInstance, ReadsTheWordsOfVersion2) {
  const Program program = ParseInstance(kExample).Build();
  ASSERT_EQ(program.ops.size(), 6U);
  const Op &conv = program.ops[0], &dropout = program.ops[1], &add = program.ops[2];
  const Op &look = program.ops[3], &out = program.ops[4], &update = program.ops[5];
  EXPECT_EQ(conv.nanoseconds, 5000);
  EXPECT_EQ(conv.workspace_bytes, 32);
  EXPECT_TRUE(MayRepeat(conv));
  EXPECT_FALSE(MayRepeat(dropout));
  EXPECT_EQ(dropout.nanoseconds, 900);
  EXPECT_TRUE(MayRepeat(add));
  EXPECT_EQ(add.mutates, (std::vector<BufferId>{3}));
  EXPECT_FALSE(MayRepeat(look));  // nobody knows what it takes
  EXPECT_FALSE(MayRepeat(out));
  EXPECT_FALSE(MayRepeat(update));  // what it writes to outlives the call
  EXPECT_TRUE(update.effects.writes_outside);
  EXPECT_FALSE(add.effects.writes_outside);
}

TEST(ProgramInstance, OpsKeepTheirOrderAboutWritesInPlace) {
  const sched::Graph graph = Lower(ParseInstance(kExample).Build());
  EXPECT_EQ(graph.op(2).predecessors, (std::vector<OpId>{0, 1}));
  EXPECT_EQ(graph.op(3).predecessors, (std::vector<OpId>{1, 2}));
  EXPECT_EQ(graph.op(4).predecessors, (std::vector<OpId>{1, 2}));
  EXPECT_EQ(graph.op(5).predecessors, (std::vector<OpId>{0, 3, 4}));
}

// first reads x, writes in place wait for it, and each later read is of the latest write.
TEST(ProgramInstance, EachWriteWaitsForTheReadersOfTheOneBefore) {
  const Program program =
      ParseInstance(
          "graph 2\nbuffer x 1\nop make writes x\nop r reads x\nop w reads x mutates x\n"
          "op s reads x\nop v reads x mutates x\nop t reads x")
          .Build();
  std::vector<std::pair<OpId, OpId>> edges;
  for (const Conflict& conflict : program.conflicts) {
    EXPECT_TRUE(conflict.is_inside);
    edges.emplace_back(conflict.earlier, conflict.later);
  }
  EXPECT_EQ(edges, (std::vector<std::pair<OpId, OpId>>{{1, 2}, {2, 3}, {2, 4}, {3, 4}, {4, 5}}));
}

TEST(ProgramInstance, RepeatsReadWhatTheOriginalRead) {
  const Program program =
      ParseInstance(
          "graph 2\nbuffer x 1\nbuffer y 1 kept\nop make writes x nanoseconds 1\n"
          "op look reads x nanoseconds 1\nop add reads x mutates x nanoseconds 1\n"
          "op end reads x writes y nanoseconds 1")
          .Build();
  Rerunner rerunner(program, false);
  const auto is_valid = [&](const Runs& runs) { return rerunner.Judge(runs, kNoBudget).is_valid; };
  EXPECT_TRUE(is_valid({0, 1, 2, 3}));
  EXPECT_FALSE(is_valid({0, 2, 1, 3}));          // it would see the write
  EXPECT_FALSE(is_valid({0, 1, 2, 1, 3}));       // so would its repeat
  EXPECT_TRUE(is_valid({0, 1, 2, 0, 1, 2, 3}));  // unless all is made anew
  EXPECT_FALSE(is_valid({0, 1, 2, 0, 3}));       // which has to be written to again
  EXPECT_FALSE(is_valid({0, 1, 2, 2, 3}));       // and not twice
}

TEST(ProgramInstance, NoRepeatComesAfterWhatHadToFollow) {
  const Program program = ParseInstance(
                              "graph 2\nbuffer x 1 input\nop look reads x nanoseconds 1\n"
                              "op update after look nanoseconds 1")
                              .Build();
  Rerunner rerunner(program, false);
  EXPECT_TRUE(rerunner.Judge(Runs{0, 0, 1}, kNoBudget).is_valid);
  EXPECT_FALSE(rerunner.Judge(Runs{0, 1, 0}, kNoBudget).is_valid);
}

TEST(ProgramInstance, NewWordsAreNamesInVersion1) {
  const std::string text =
      "graph 1\nbuffer nanoseconds 1 input\nbuffer once 2\nop mutates reads nanoseconds writes "
      "once\n";
  EXPECT_EQ(PrintInstance(ParseInstance(text)), text);
  EXPECT_ERROR("graph 1\nop v once", 2,
               "unknown word 'once': expected reads, writes, workspace or after");
}

TEST(ProgramInstance, NewWordsAreNoNamesInVersion2) {
  EXPECT_ERROR("graph 2\nbuffer once 1 input", 2, "'once' is not a name");
  EXPECT_ERROR("graph 2\nop mutates", 2, "'mutates' is not a name");
  EXPECT_ERROR("graph 2\nbuffer kept 1", 2, "'kept' is not a name");
}

TEST(ProgramInstance, HeadersNameBothVersions) {
  EXPECT_ERROR("buffer x 1", 1, "the first line must be 'graph 1' or 'graph 2'");
  EXPECT_ERROR("graph 3", 1,
               "this reader knows only versions 1 and 2 of the format ('graph 1' and 'graph 2')");
  EXPECT_ERROR("# nothing\n", 1, "the header 'graph 1' is missing");
}

TEST(ProgramInstance, MistakesNameTheLine) {
  EXPECT_ERROR("graph 2\nop v uses x", 2,
               "unknown word 'uses': expected reads, writes, workspace, after, nanoseconds, once "
               "or mutates");
  EXPECT_ERROR("graph 2\nop v nanoseconds", 2, "nothing follows 'nanoseconds'");
  EXPECT_ERROR("graph 2\nop v nanoseconds 1 2", 2, "unknown word '2' after the nanoseconds");
  EXPECT_ERROR("graph 2\nop v nanoseconds 1 nanoseconds 1", 2, "'nanoseconds' stands twice");
  EXPECT_ERROR("graph 2\nop v nanoseconds 1.5", 2, "'1.5' is not a time in nanoseconds");
  EXPECT_ERROR("graph 2\nop v nanoseconds -1", 2, "the time -1 is negative");
  EXPECT_ERROR("graph 2\nop v nanoseconds 36028797018963969", 2,
               "the time 36028797018963969 is above 2^55");
  EXPECT_ERROR("graph 2\nop v once x", 2, "unknown word 'x' after 'once'");
  EXPECT_ERROR("graph 2\nop v once once", 2, "'once' stands twice");
  EXPECT_ERROR("graph 2\nop v mutates", 2, "nothing follows 'mutates'");
  EXPECT_ERROR("graph 2\nbuffer x 1 input\n\nop v mutates x", 4,
               "op 'v' mutates 'x', which it does not read: name it behind reads, too");
  EXPECT_ERROR("graph 2\nbuffer x 1\nop v writes x mutates x", 3,
               "op 'v' mutates 'x', which it does not read: name it behind reads, too");
  EXPECT_ERROR("graph 2\nop u nanoseconds 36028797018963968\nop v nanoseconds 1", 3,
               "the sum of all times exceeds 2^55 nanoseconds at op 'v'");
}

TEST(ProgramInstance, MistakesOfMethodsNameTheOp) {
  GraphBuilder builder;
  builder.AddBuffer("x", 1, /*input=*/true, /*kept=*/false);
  const auto add = [&](const Names& reads, const OpFacts& facts) {
    builder.AddOp("v", reads, {}, 0, {}, facts);
  };
  EXPECT_THROW(add({"x"}, {.mutates = {"y"}}), std::invalid_argument);
  EXPECT_THROW(add({"x"}, {.nanoseconds = -1}), std::invalid_argument);
  EXPECT_THROW(add({"y"}, {}), std::invalid_argument);
  add({"x"}, {.nanoseconds = 1});  // none of them was added
  EXPECT_EQ(builder.Build().ops.size(), 1U);
}

TEST(ProgramInstance, PrintsTheLowestVersionThatSaysAll) {
  EXPECT_EQ(PrintInstance(GraphBuilder()), "graph 1\n");
  EXPECT_EQ(PrintInstance(ParseInstance("graph 2\nop v nanoseconds 0\n")), "graph 1\nop v\n");
  const char* text =
      "graph 2\nbuffer x 1 input\nop v reads x mutates x nanoseconds 7\nop w after v once\n";
  EXPECT_EQ(PrintInstance(ParseInstance(text)), text);
}

TEST(ProgramInstance, NamesThatAreWordsOfVersion2CannotBePrintedInIt) {
  GraphBuilder builder;
  builder.AddOp("once", {}, {}, 0, {});
  EXPECT_EQ(PrintInstance(builder), "graph 1\nop once\n");
  builder.AddOp("v", {}, {}, 0, {}, {.nanoseconds = 1});
  try {
    PrintInstance(builder);
    FAIL() << "it was printed";
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()),
              "'once' is a word of 'graph 2', which says what this graph needs: give it another "
              "name");
  }
}

// --- at random -----------------------------------------------------------------------------------

// At most `most_ops` ops, with all that version 2 can say.
GraphBuilder RandomInstance(std::uint64_t seed, std::int64_t most_ops) {
  Random random(seed * 7 + 3);
  GraphBuilder builder;
  Names known, ops;
  for (std::int64_t i = random.Between(0, 2); i > 0; --i) {
    known.push_back("in" + std::to_string(i));
    builder.AddBuffer(known.back(), random.Between(0, 6), /*input=*/true, random.Chance(20));
  }
  const std::int64_t num_ops = random.Between(1, most_ops);
  for (std::int64_t v = 0; v < num_ops; ++v) {
    Names reads, writes, after;
    OpFacts facts;
    for (const std::string& b : known) {
      if (!random.Chance(45)) continue;
      reads.push_back(b);
      if (random.Chance(20)) facts.mutates.push_back(b);
    }
    for (std::int64_t i = random.Chance(15) ? 2 : random.Chance(90); i > 0; --i) {
      writes.push_back("b" + std::to_string(known.size() + writes.size()));
      builder.AddBuffer(writes.back(), random.Between(0, 9), /*input=*/false, random.Chance(15));
    }
    for (const std::string& op : ops) {
      if (random.Chance(6)) after.push_back(op);
    }
    if (random.Chance(90)) facts.nanoseconds = random.Between(1, 9);
    facts.once = random.Chance(8);
    const std::int64_t workspace_bytes = random.Chance(20) ? random.Between(1, 6) : 0;
    ops.push_back("op" + std::to_string(v));
    builder.AddOp(ops.back(), reads, writes, workspace_bytes, after, facts);
    known.insert(known.end(), writes.begin(), writes.end());
  }
  return builder;
}

void ExpectSame(const Program& a, const Program& b) {
  ASSERT_EQ(a.buffers.size(), b.buffers.size());
  ASSERT_EQ(a.ops.size(), b.ops.size());
  ASSERT_EQ(a.conflicts.size(), b.conflicts.size());
  for (std::size_t i = 0; i < a.buffers.size(); ++i) {
    ASSERT_EQ(a.buffers[i].name, b.buffers[i].name);
    ASSERT_EQ(a.buffers[i].bytes, b.buffers[i].bytes);
    ASSERT_EQ(a.buffers[i].is_input, b.buffers[i].is_input);
    ASSERT_EQ(a.buffers[i].kept, b.buffers[i].kept);
  }
  for (std::size_t v = 0; v < a.ops.size(); ++v) {
    ASSERT_EQ(a.ops[v].name, b.ops[v].name);
    ASSERT_EQ(a.ops[v].reads, b.ops[v].reads);
    ASSERT_EQ(a.ops[v].writes, b.ops[v].writes);
    ASSERT_EQ(a.ops[v].mutates, b.ops[v].mutates);
    ASSERT_EQ(a.ops[v].workspace_bytes, b.ops[v].workspace_bytes);
    ASSERT_EQ(a.ops[v].nanoseconds, b.ops[v].nanoseconds);
    ASSERT_EQ(MayRepeat(a.ops[v]), MayRepeat(b.ops[v]));
  }
  for (std::size_t i = 0; i < a.conflicts.size(); ++i) {
    ASSERT_EQ(a.conflicts[i].earlier, b.conflicts[i].earlier);
    ASSERT_EQ(a.conflicts[i].later, b.conflicts[i].later);
    ASSERT_EQ(a.conflicts[i].is_inside, b.conflicts[i].is_inside);
  }
}

TEST(ProgramInstance, ParsingWhatIsPrintedGivesTheSameProgram) {
  for (std::uint64_t seed = 0; seed < Cases(1000); ++seed) {
    const GraphBuilder builder = RandomInstance(seed, 20);
    const std::string text = PrintInstance(builder);
    SCOPED_TRACE(text);
    const GraphBuilder parsed = ParseInstance(text);
    ASSERT_NO_FATAL_FAILURE(ExpectSame(builder.Build(), parsed.Build()));
    ASSERT_EQ(PrintInstance(parsed), text);
  }
}

TEST(ProgramInstance, Version1IsTheGraphOfTheCore) {
  for (std::uint64_t seed = 0; seed < Cases(1000); ++seed) {
    const std::string text = sched::PrintInstance(sched::test::RandomGraph(seed, 24));
    SCOPED_TRACE(text);
    const GraphBuilder parsed = ParseInstance(text);
    ASSERT_EQ(PrintInstance(parsed), text);
    ASSERT_EQ(sched::PrintInstance(Lower(parsed.Build())), text);
  }
}

// Damaged texts must be read or rejected with a message, never crash.
TEST(ProgramInstance, DamagedTextsAreRejectedWithALineOrRead) {
  for (std::uint64_t seed = 0; seed < Cases(3000); ++seed) {
    Random random(seed);
    std::string text = PrintInstance(RandomInstance(seed, 6));
    for (std::int64_t i = random.Between(1, 3); i > 0 && !text.empty(); --i) {
      const auto at = static_cast<std::size_t>(random.Between(0, std::ssize(text) - 1));
      if (random.Chance(50)) {
        text.erase(at, static_cast<std::size_t>(random.Between(1, 8)));
      } else {
        text.insert(at, text.substr(static_cast<std::size_t>(random.Between(0, at)), 12));
      }
    }
    SCOPED_TRACE(text);
    const std::string error = ErrorOf(text);
    if (error.empty()) {
      const std::string printed = PrintInstance(ParseInstance(text));
      ASSERT_EQ(PrintInstance(ParseInstance(printed)), printed);
    } else {
      ASSERT_EQ(error.find("net.graph: line "), 0U) << error;
    }
  }
}

// A machine that knows of contents alone reads by the makers, which the format does not name.
TEST(ProgramInstance, ValidRunsReadWhatTheOriginalRead) {
  std::uint64_t valid = 0, repeats = 0, refused = 0;
  for (std::uint64_t seed = 0; seed < Cases(3000); ++seed) {
    test::Repeatable given{.program = RandomInstance(seed, 7).Build()};
    SCOPED_TRACE(PrintInstance(RandomInstance(seed, 7)));
    given.outside.assign(given.program.ops.size(), 0);
    Rerunner rerunner(given.program, false);
    test::Repeatable made = given;
    std::vector<OpId> maker(given.program.buffers.size(), sched::kNoOp);
    for (OpId v = 0; v < static_cast<OpId>(made.program.ops.size()); ++v) {
      Op& op = made.program.ops[v];
      for (const BufferId b : op.reads) {
        if (maker[b] != sched::kNoOp) op.makers.push_back(maker[b]);
      }
      for (const BufferId b : op.writes) maker[b] = v;
    }
    Random random(seed);
    for (int i = 0; i < 20; ++i) {
      const Runs runs = test::RandomRuns(given.program, random);
      const bool is_same = test::SameContents(made, runs);
      if (!rerunner.Judge(runs, kNoBudget).is_valid) {
        refused += is_same;
        continue;
      }
      ASSERT_TRUE(is_same);
      ++valid;
      repeats += runs.size() > given.program.ops.size();
    }
  }
  EXPECT_GT(repeats, Cases(3000));
  EXPECT_LT(refused, valid);  // what runs once, or before others, might as well do otherwise
}

// Of budgets that some list of runs meets.
struct Counts {
  int budgets = 0;
  int met = 0;
  int needed = 0;   // by no list without repeats
  int least = 0;    // of these, met in the least time
  int reached = 0;  // of these, that least time is proven
};

// Every list in which each op runs at most twice, against what is found and what is proven.
TEST(ProgramInstance, PlansAndProofsHoldAgainstAllRuns) {
  std::map<std::string, Counts> counts;
  std::uint64_t programs = 0, floors = 0;
  for (std::uint64_t seed = 0; seed < Cases(1000); ++seed) {
    const std::string text = PrintInstance(RandomInstance(seed, test::kMostOps));
    const Program program = ParseInstance(text).Build();
    SCOPED_TRACE(text);
    const bool has_writes =
        std::ranges::any_of(program.ops, [](const Op& op) { return !op.mutates.empty(); });
    Counts& count = counts[has_writes ? "with_writes_in_place_" : "without_"];
    std::optional<std::int64_t> lowest_bytes;
    const auto check = [&](Rerunner& rerunner, const sched::Order& order, std::int64_t bytes,
                           const std::optional<std::int64_t>& fewest) {
      const RepeatPlan plan = PlanRepeats(program, false, order, bytes, {});
      ASSERT_TRUE(rerunner.Judge(plan.runs, bytes).is_valid);
      ASSERT_LE(plan.floor.bytes, plan.peak_bytes);
      std::vector<int> runs(program.ops.size(), 0);
      for (const OpId v : plan.runs) ++runs[v];
      const bool is_searched = std::ranges::max(runs) <= 2;
      if (!fewest) {
        ASSERT_FALSE(is_searched && plan.fits);
        return;
      }
      lowest_bytes = bytes;
      const std::int64_t extra = *fewest - rerunner.nanoseconds();
      ASSERT_LE(plan.floor.bytes, bytes);
      ASSERT_TRUE(plan.extra_bound_nanoseconds.has_value());
      ASSERT_LE(*plan.extra_bound_nanoseconds, extra);
      if (plan.fits && is_searched) {
        ASSERT_GE(plan.extra_nanoseconds, extra);
      }
      ++count.budgets;
      count.met += plan.fits;
      if (extra == 0) return;
      ++count.needed;
      count.least += plan.fits && plan.extra_nanoseconds <= extra;
      count.reached += *plan.extra_bound_nanoseconds == extra;
    };
    ASSERT_NO_FATAL_FAILURE(test::ForEachBudget(program, false, check));
    const sched::Order order = Lower(program).OriginalOrder();
    ++programs;
    floors += PlanRepeats(program, false, order, 0, {}).floor.bytes == lowest_bytes;
  }
  RecordProperty("programs", static_cast<int>(programs));
  RecordProperty("floor_reached", static_cast<int>(floors));
  EXPECT_GT(floors, programs * 8 / 10);
  for (const auto& [kind, count] : counts) {
    RecordProperty(kind + "budgets", count.budgets);
    RecordProperty(kind + "met", count.met);
    RecordProperty(kind + "needed", count.needed);
    RecordProperty(kind + "least", count.least);
    RecordProperty(kind + "reached", count.reached);
    EXPECT_GT(count.met, count.budgets * 9 / 10) << kind;
    EXPECT_GT(count.needed, count.budgets / 20) << kind;
    EXPECT_GT(count.least, count.needed * 6 / 10) << kind;
    EXPECT_GT(count.reached, count.needed / 10) << kind;
  }
}

}  // namespace
}  // namespace torch_ext::program
