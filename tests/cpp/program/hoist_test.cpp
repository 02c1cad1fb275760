#include "program/levers/hoist.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "program/lower.h"
#include "sched/simulate.h"
#include "support/program_oracle.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::Oracle;
using test::RandomProgram;
using test::Shown;

// In the program's own order, and in any other: copies run right before their op.
TEST(Hoist, NeverCosts) {
  std::uint64_t copies = 0;
  for (std::uint64_t seed = 0; seed < Cases(1500); ++seed) {
    const Program program = RandomProgram(seed, /*most_copies=*/3);
    SCOPED_TRACE(Shown(program, seed));
    std::vector<std::size_t> all(program.copyable.size());
    std::iota(all.begin(), all.end(), 0);
    const Edited hoisted = WithHoists(program, all);
    ASSERT_EQ(hoisted.program.ops.size(), program.ops.size() + all.size());
    const sched::Graph before = Lower(program), after = Lower(hoisted.program);
    sched::test::Random random(seed);
    sched::Order order = before.OriginalOrder();
    for (int round = 0; round < 3; ++round) {
      sched::Order with_copies;
      for (const OpId v : order) {
        for (std::size_t i = 0; i < program.copyable.size(); ++i) {
          if (program.copyable[i].op == v) with_copies.push_back(OldOpOfCopy(program, i));
        }
        with_copies.push_back(v);
      }
      const sched::Order new_order = hoisted.ToNewOps(with_copies);
      ASSERT_TRUE(sched::IsValidOrder(after, new_order));
      ASSERT_LE(sched::PeakBytes(after, new_order), sched::PeakBytes(before, order));
      order = sched::test::RandomOrder(before, random);
    }
    copies += all.size();
    // What is found with all hoisted is the lowest of all choices.
    Program overwriting = hoisted.program;
    ASSERT_EQ(Oracle(overwriting).LowestPeak({}), Oracle(program).LowestPeak({}));
  }
  EXPECT_GT(copies, Cases(1500));
}

TEST(Hoist, ACopyLetsItsArgumentDie) {
  // A product copies both halves of one storage; a third reader of it comes first.
  Program program;
  program.buffers = {{.name = "both", .bytes = 8}, {.name = "product", .bytes = 4, .kept = true}};
  program.ops = {{.name = "make", .oper = "aten::make", .writes = {0}},
                 {.name = "multiply",
                  .oper = "aten::matmul",
                  .inputs = {"left", "right"},
                  .reads = {0},
                  .writes = {1},
                  .workspace_bytes = 9}};
  program.copyable = {
      {.op = 1, .value = "left", .makers = {0}, .reads = {0}, .bytes = 4},
      {.op = 1, .value = "right", .makers = {0}, .reads = {0}, .bytes = 4},
  };
  const std::vector<std::size_t> one{1}, both{0, 1};
  const Edited half = WithHoists(program, one);
  EXPECT_EQ(half.old_ops, (std::vector<OpId>{0, 3, 1}));
  EXPECT_EQ(half.program.ops[2].reads, (std::vector<BufferId>{0, 2}));  // for the other half
  EXPECT_EQ(half.program.ops[2].workspace_bytes, 5);
  const Edited whole = WithHoists(program, both);
  EXPECT_EQ(whole.program.ops[3].reads, (std::vector<BufferId>{2, 3}));
  EXPECT_EQ(whole.program.ops[3].inputs,
            (std::vector<std::string>{"multiply/copy0", "multiply/copy1"}));
  const sched::Graph graph = Lower(whole.program);
  EXPECT_EQ(sched::PeakBytes(graph, graph.OriginalOrder()), 16);  // and 21 before
}

TEST(Hoist, ACopyKeepsItsDistanceToWriters) {
  Program program;
  program.buffers = {{.name = "a", .bytes = 1}, {.name = "b", .bytes = 1, .kept = true}};
  program.ops = {
      {.name = "make", .oper = "aten::make", .writes = {0}},
      {.name = "before", .oper = "aten::add_", .reads = {0}},
      {.name = "read", .oper = "aten::matmul", .reads = {0}, .writes = {1}, .workspace_bytes = 1},
      {.name = "after", .oper = "aten::add_", .reads = {0}}};
  program.conflicts = {{1, 2}, {2, 3}};
  program.copyable = {{.op = 2, .value = "a", .makers = {0}, .reads = {0}, .bytes = 1}};
  const std::vector<std::size_t> all{0};
  const Edited hoisted = WithHoists(program, all);
  const Edges edges = OrderEdges(hoisted.program);
  const auto has = [&](OpId earlier, OpId later) {
    return std::ranges::count(edges, std::pair(earlier, later)) > 0;
  };
  EXPECT_TRUE(has(1, 2) && has(1, 3) && has(2, 4) && has(3, 4));
}

}  // namespace
}  // namespace torch_ext::program
