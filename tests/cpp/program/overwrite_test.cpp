// The lever against all orders and all choices. The oracle walks sets of ops: what is alive after a
// set does not depend on how it was reached, and an op may write over an argument if all others
// that touch it are in the set.
#include "program/levers/overwrite.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <set>
#include <vector>

#include "program/hazards.h"
#include "program/levers/levers.h"
#include "program/lower.h"
#include "sched/simulate.h"
#include "support/random_graphs.h"

namespace torch_ext::program {
namespace {

using sched::test::Random;
using Mask = std::uint32_t;

class Oracle {
 public:
  explicit Oracle(const Program& program) : program_(program), before_(program.ops.size(), 0) {
    for (const auto& [earlier, later] : OrderEdges(program)) before_[later] |= Bit(earlier);
    maker_.assign(program.buffers.size(), 0);
    users_.assign(program.buffers.size(), 0);
    for (std::size_t v = 0; v < program.ops.size(); ++v) {
      for (const BufferId b : program.ops[v].writes) maker_[b] = Bit(v);
    }
    for (std::size_t v = 0; v < program.ops.size(); ++v) {
      for (const OpId u : program.ops[v].makers) before_[v] |= Bit(u);
      for (const BufferId b : program.ops[v].reads) {
        users_[b] |= Bit(v);
        before_[v] |= maker_[b];
      }
    }
  }

  std::int64_t LowestPeak(bool overwrites) const {
    constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
    const Mask full = (Mask{1} << program_.ops.size()) - 1;
    std::vector<std::int64_t> lowest(std::size_t{full} + 1, kNever);
    lowest[0] = Live(0);
    for (Mask done = 0; done < full; ++done) {
      if (lowest[done] == kNever) continue;
      for (std::size_t v = 0; v < program_.ops.size(); ++v) {
        if ((done & Bit(v)) || (before_[v] & ~done)) continue;
        std::int64_t& next = lowest[done | Bit(v)];
        next = std::min(next, std::max(lowest[done], Hill(done, v, overwrites)));
      }
    }
    return lowest[full];
  }

 private:
  static Mask Bit(std::size_t v) { return Mask{1} << v; }

  std::int64_t Live(Mask done) const {
    std::int64_t bytes = 0;
    for (std::size_t b = 0; b < program_.buffers.size(); ++b) {
      const Buffer& buffer = program_.buffers[b];
      const bool is_made = buffer.is_input || (maker_[b] & done);
      if (is_made && (buffer.kept || (users_[b] & ~done))) bytes += buffer.bytes;
    }
    return bytes;
  }

  // For each result the best of what may be overwritten by it; one storage serves one result.
  std::int64_t Hill(Mask done, std::size_t v, bool overwrites) const {
    std::int64_t bytes = Live(done) + program_.ops[v].workspace_bytes;
    for (const BufferId b : program_.ops[v].writes) bytes += program_.buffers[b].bytes;
    if (!overwrites) return bytes;
    std::vector<char> is_written(program_.buffers.size(), 0), is_used = is_written;
    for (const Overwrite& overwrite : program_.overwritable) {
      const Buffer& argument = program_.buffers[overwrite.argument];
      if (overwrite.op != static_cast<OpId>(v) || argument.is_input || argument.kept) continue;
      if (argument.bytes != program_.buffers[overwrite.result].bytes) continue;
      Mask others = users_[overwrite.argument];
      for (const OpId u : overwrite.others) others |= Bit(u);
      if (others & ~(done | Bit(v))) continue;
      if (is_written[overwrite.result] || is_used[overwrite.argument]) continue;
      is_written[overwrite.result] = is_used[overwrite.argument] = 1;
      bytes -= argument.bytes;
    }
    return bytes;
  }

  const Program& program_;
  std::vector<Mask> before_, maker_, users_;
};

// A random program in which many results could overwrite an argument.
Program RandomProgram(std::uint64_t seed) {
  Random random(seed);
  const sched::Graph graph = sched::test::RandomGraph(seed, 9);
  Program program;
  for (const sched::Buffer& buffer : graph.buffers()) {
    // Few sizes, so that results fit into arguments.
    program.buffers.push_back({.name = buffer.name,
                               .bytes = random.Between(1, 3),
                               .is_input = buffer.is_input(),
                               .kept = buffer.kept && random.Chance(50)});
  }
  for (sched::OpId v = 0; v < graph.num_ops(); ++v) {
    const sched::Op& op = graph.op(v);
    program.ops.push_back({.name = op.name,
                           .oper = "aten::op",
                           .makers = op.after,
                           .reads = op.reads,
                           .writes = op.writes,
                           .workspace_bytes = random.Between(0, 1)});
    if (op.writes.empty() || op.reads.empty()) continue;
    for (const BufferId argument : op.reads) {
      if (!random.Chance(70)) continue;
      Overwrite& overwrite = program.overwritable.emplace_back();
      overwrite = {v, op.writes[0], argument};
      while (random.Chance(15)) {
        overwrite.others.push_back(static_cast<OpId>(random.Between(0, graph.num_ops() - 1)));
      }
    }
  }
  if (program.ops.size() > 2 && random.Chance(30)) {
    const auto last = static_cast<OpId>(program.ops.size()) - 1;
    program.conflicts.push_back({static_cast<OpId>(random.Between(0, last - 1)), last});
  }
  return program;
}

std::string Shown(const Program& program, std::uint64_t seed) {
  std::string text = "seed " + std::to_string(seed) + "\n";
  for (const Op& op : program.ops) {
    text += op.name + " reads";
    for (const BufferId b : op.reads) text += " " + program.buffers[b].name;
    text += " writes";
    for (const BufferId b : op.writes) text += " " + program.buffers[b].name;
    text += " + " + std::to_string(op.workspace_bytes) + "\n";
  }
  for (const Buffer& b : program.buffers) {
    text += b.name + " " + std::to_string(b.bytes) + (b.is_input ? " input" : "") +
            (b.kept ? " kept" : "") + "\n";
  }
  for (const Overwrite& o : program.overwritable) {
    text += program.ops[o.op].name + ": " + program.buffers[o.result].name + " over " +
            program.buffers[o.argument].name;
    for (const OpId v : o.others) text += " after " + program.ops[v].name;
    text += "\n";
  }
  return text;
}

std::uint64_t Cases(std::uint64_t few) {
  const char* scale = std::getenv("TORCH_EXT_TEST_SCALE");
  return few * (scale == nullptr ? 1 : std::strtoull(scale, nullptr, 10));
}

TEST(Overwrite, FindsTheLowestOfAllOrdersAndChoices) {
  std::uint64_t gains = 0, choices = 0;
  for (std::uint64_t seed = 0; seed < Cases(1500); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const Oracle oracle(program);
    const std::int64_t lowest = oracle.LowestPeak(/*overwrites=*/true);
    const OverwritePlan found = PlanOverwrites(program, {});
    ASSERT_EQ(found.plan.peak_bytes, lowest);
    ASSERT_LE(found.plan.lower_bound_bytes, lowest);
    ASSERT_TRUE(found.plan.is_optimal());
    const sched::Graph graph = Lower(found.overwritten.program);
    ASSERT_EQ(sched::PeakBytes(graph, found.plan.order), lowest);
    std::set<BufferId> results, arguments;
    for (const std::size_t i : found.overwrites) {
      const Overwrite& overwrite = program.overwritable[i];
      ASSERT_TRUE(results.insert(overwrite.result).second);
      ASSERT_TRUE(arguments.insert(overwrite.argument).second);
    }
    gains += lowest < oracle.LowestPeak(/*overwrites=*/false);
    choices += found.overwrites.size() > ForcedOverwrites(program).size();
  }
  EXPECT_GT(gains, Cases(1500) / 10);
  EXPECT_GT(choices, Cases(1500) / 100);
}

TEST(Overwrite, ABoundHoldsWhereChoicesAreLeft) {
  std::uint64_t open = 0;
  for (std::uint64_t seed = 0; seed < Cases(1500); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const std::int64_t lowest = Oracle(program).LowestPeak(/*overwrites=*/true);
    const OverwritePlan found = PlanOverwrites(program, {}, /*most_nodes=*/1);
    ASSERT_GE(found.plan.peak_bytes, lowest);
    ASSERT_LE(found.plan.lower_bound_bytes, lowest);
    ASSERT_EQ(found.plan.is_optimal(), found.plan.proof != sched::Proof::kNone);
    open += !found.plan.is_optimal();
  }
  EXPECT_GT(open, 0U);
}

TEST(Overwrite, WhatIsForcedNeverCosts) {
  for (std::uint64_t seed = 0; seed < Cases(1500); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const std::optional<Overwritten> base = WithOverwrites(program, ForcedOverwrites(program));
    ASSERT_TRUE(base.has_value());
    for (std::size_t i = 0; i < base->old_ops.size(); ++i) {
      ASSERT_EQ(base->old_ops[i], static_cast<OpId>(i));  // no order is lost
    }
    const sched::Graph before = Lower(program), after = Lower(base->program);
    for (OpId v = 0; v < before.num_ops(); ++v) {
      ASSERT_LE(sched::Simulate(after, after.OriginalOrder()).hill_bytes[v],
                sched::Simulate(before, before.OriginalOrder()).hill_bytes[v]);
    }
    // The same optimum is reached from there.
    ASSERT_EQ(Oracle(base->program).LowestPeak(true), Oracle(program).LowestPeak(true));
  }
}

TEST(Overwrite, AnArgumentThatIsReadLaterIsKeptOrItsReadersMove) {
  // x -> a -> b (over a?), and c reads a: c must come first, or b has memory of its own.
  Program program;
  program.buffers = {{.name = "a", .bytes = 4},
                     {.name = "b", .bytes = 4, .kept = true},
                     {.name = "c", .bytes = 1, .kept = true}};
  program.ops = {{.name = "make", .oper = "aten::make", .writes = {0}},
                 {.name = "over", .oper = "aten::relu", .reads = {0}, .writes = {1}},
                 {.name = "read", .oper = "aten::sum", .reads = {0}, .writes = {2}}};
  program.overwritable = {{1, 1, 0}};
  EXPECT_TRUE(ForcedOverwrites(program).empty());
  const OverwritePlan found = PlanOverwrites(program, {});
  ASSERT_EQ(found.overwrites.size(), 1U);
  EXPECT_EQ(found.plan.peak_bytes, 5);
  EXPECT_EQ(found.overwritten.old_ops, (std::vector<OpId>{0, 2, 1}));
  EXPECT_TRUE(found.plan.is_optimal());
}

TEST(Overwrite, WhatTheCallerHoldsIsNotWrittenTo) {
  for (const bool is_input : {true, false}) {
    Program program;
    program.buffers = {{.name = "a", .bytes = 4, .is_input = is_input, .kept = !is_input},
                       {.name = "b", .bytes = 4, .kept = true}};
    program.ops = {{.name = "over", .oper = "aten::relu", .reads = {0}, .writes = {1}}};
    if (!is_input) {
      program.ops.insert(program.ops.begin(),
                         {.name = "make", .oper = "aten::make", .writes = {0}});
    }
    program.overwritable = {{is_input ? 0 : 1, 1, 0}};
    const OverwritePlan found = PlanOverwrites(program, {});
    EXPECT_TRUE(found.overwrites.empty());
    EXPECT_EQ(found.plan.peak_bytes, 8);
  }
}

TEST(Levers, AreAsLowAsTheirBestAndEditNoMoreThanThatNeeds) {
  std::uint64_t edited = 0;
  for (std::uint64_t seed = 0; seed < Cases(1000); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const Oracle oracle(program);
    const LeverPlan found = PlanLevers(program, {}, {});
    const std::int64_t lowest = oracle.LowestPeak(/*overwrites=*/true);
    ASSERT_EQ(found.plan.peak_bytes, lowest);
    ASSERT_EQ(found.plan.lower_bound_bytes, lowest);
    ASSERT_NE(found.plan.proof, sched::Proof::kNone);
    ASSERT_EQ(sched::PeakBytes(found.graph, found.plan.order), lowest);
    const sched::Graph original = Lower(program);
    ASSERT_EQ(found.plan.original_peak_bytes, sched::PeakBytes(original, original.OriginalOrder()));
    ASSERT_EQ(found.uses.size(), 2U);
    ASSERT_EQ(found.uses[0].peak_bytes_after, oracle.LowestPeak(/*overwrites=*/false));
    ASSERT_EQ(found.uses[1].peak_bytes_after, lowest);
    // Without any of them this order has a higher peak.
    for (const std::size_t left_out : found.overwrites) {
      std::vector<std::size_t> fewer = found.overwrites;
      std::erase(fewer, left_out);
      const Overwritten other = *WithOverwrites(program, fewer);
      sched::Order old_order;
      for (const OpId v : found.plan.order) old_order.push_back(found.old_ops[v]);
      ASSERT_GT(sched::PeakBytes(Lower(other.program), other.ToNewOps(old_order)), lowest);
    }
    edited += !found.overwrites.empty();
    if (found.overwrites.empty()) {
      ASSERT_EQ(found.program.ops.size(), program.ops.size());
    }
  }
  EXPECT_GT(edited, Cases(1000) / 20);
}

TEST(Levers, OrderAloneIsAPlanOfTheProgram) {
  for (std::uint64_t seed = 0; seed < Cases(200); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const LeverPlan found = PlanLevers(program, {.order = true, .overwrite = false}, {});
    const sched::Plan plan = sched::MakePlan(Lower(program), {});
    ASSERT_EQ(found.plan.order, plan.order);
    ASSERT_EQ(found.plan.lower_bound_bytes, plan.lower_bound_bytes);
    ASSERT_EQ(found.plan.proof, plan.proof);
    ASSERT_EQ(found.uses.size(), 1U);
  }
}

TEST(Levers, WithoutOrderAllOpsStay) {
  std::uint64_t gains = 0;
  for (std::uint64_t seed = 0; seed < Cases(500); ++seed) {
    const Program program = RandomProgram(seed);
    SCOPED_TRACE(Shown(program, seed));
    const LeverPlan found = PlanLevers(program, {.order = false, .overwrite = true}, {});
    ASSERT_EQ(found.plan.moved_ops, 0);
    for (std::size_t i = 0; i < found.plan.order.size(); ++i) {
      ASSERT_EQ(found.old_ops[found.plan.order[i]], static_cast<OpId>(i));
    }
    ASSERT_LE(found.plan.peak_bytes, found.plan.original_peak_bytes);
    gains += found.plan.peak_bytes < found.plan.original_peak_bytes;
  }
  EXPECT_GT(gains, 0U);
}

TEST(Levers, AreNamed) {
  EXPECT_TRUE(LeversNamed({"overwrite", "order"}).order);
  EXPECT_FALSE(LeversNamed({"order"}).overwrite);
  EXPECT_THROW(LeversNamed({"slices"}), std::invalid_argument);
}

}  // namespace
}  // namespace torch_ext::program
