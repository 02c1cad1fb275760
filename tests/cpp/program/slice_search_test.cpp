#include "program/levers/slice_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace torch_ext::program {
namespace {

// Layers that are called alike: each makes much of little, in rows, and little of much again. No
// stretch is longer than one.
Program Layers(int count, std::int64_t rows = 4) {
  Program program;
  const auto add_value = [&](const std::string& name, std::int64_t columns) {
    const auto buffer = static_cast<BufferId>(program.buffers.size());
    program.buffers.push_back({.name = name, .bytes = 8 * rows * columns});
    program.tensors[name] = {{rows, columns}, "", buffer, true};
  };
  const auto add_op = [&](const std::string& oper, const std::string& from, const std::string& to) {
    Op& op = program.ops.emplace_back();
    op.name = "make_" + to;
    op.oper = oper;
    op.inputs = {from};
    op.outputs = {to};
    op.reads = {program.tensors.at(from).buffer};
    op.writes = {program.tensors.at(to).buffer};
    op.slicings.resize(2);
    if (oper != "test::mix") op.slicings[0] = Slicing{.needs = {{from, {.dimension = 0}}}};
  };
  add_value("mixed0", 1);
  program.buffers[0].is_input = true;
  for (int layer = 0; layer < count; ++layer) {
    const auto name = [&](const std::string& stem, int number) {
      return stem + std::to_string(number);
    };
    add_value(name("many", layer), 16);
    add_value(name("few", layer), 1);
    add_value(name("mixed", layer + 1), 1);
    add_op("test::grow", name("mixed", layer), name("many", layer));
    add_op("test::shrink", name("many", layer), name("few", layer));
    add_op("test::mix", name("few", layer), name("mixed", layer + 1));
  }
  program.results = {"mixed" + std::to_string(count)};
  program.buffers.back().kept = true;
  return program;
}

TEST(SliceSearch, OfAlikeStretchesTheFirstRunsAlone) {
  const Program program = Layers(3);
  const sched::Order order{0, 1, 2, 3, 4, 5, 6, 7, 8};
  SliceFacts facts(program);
  std::vector<Stretch> learned;
  const auto learn = [&](const std::vector<Stretch>& stretches) {
    for (const Stretch& stretch : stretches) {
      learned.push_back(stretch);
      const SlicedStretch sliced = *Sliced(program, stretch, facts);
      for (const SlicedStretch::PartOp& op : sliced.ops) facts.Learn(op.Longest(), {});
    }
  };
  const auto choices = ChooseStretches(program, order, facts, {std::nullopt}, learn);
  ASSERT_EQ(choices.size(), 1);
  EXPECT_EQ(choices[0].stretches.size(), 3);
  ASSERT_EQ(learned.size(), 1);
  EXPECT_EQ(learned[0], choices[0].stretches[0]);
}

TEST(SliceSearch, WhatKeepsRowsIsTriedLast) {
  // Rows of "few" need those beside them of "many", and it takes much to multiply these.
  Program program = Layers(1, /*rows=*/32);
  program.ops[1].slicings[0]->needs[0].second = {.dimension = 0, .before = 1, .extent = 3};
  program.ops[0].multiplications = 1 << 26;
  SliceFacts facts(program);
  std::vector<bool> learned;
  const auto learn = [&](const std::vector<Stretch>& stretches) {
    for (const Stretch& stretch : stretches) {
      learned.push_back(stretch.keeps_rows);
      const SlicedStretch sliced = *Sliced(program, stretch, facts);
      for (const SlicedStretch::PartOp& op : sliced.ops) facts.Learn(op.Longest(), {});
    }
  };
  const std::int64_t budget_bytes = program.buffers[1].bytes * 3 / 4;
  const auto choices = ChooseStretches(program, {0, 1, 2}, facts, {budget_bytes}, learn);
  EXPECT_TRUE(choices[0].stretches[0].keeps_rows);
  ASSERT_GE(learned.size(), 2);
  EXPECT_TRUE(std::ranges::is_sorted(learned));
  EXPECT_FALSE(learned.front());
  // What may not keep its bits so is computed twice, as before.
  SliceFacts others(program);
  const auto learn_others = [&](const std::vector<Stretch>& stretches) {
    for (const Stretch& stretch : stretches) {
      const SlicedStretch sliced = *Sliced(program, stretch, others);
      for (const SlicedStretch::PartOp& op : sliced.ops) {
        others.Learn(op.Longest(), {.keeps_bits = !op.keeps_rows});
      }
    }
  };
  const auto twice = ChooseStretches(program, {0, 1, 2}, others, {budget_bytes}, learn_others);
  ASSERT_EQ(twice[0].stretches.size(), 1);
  const SlicedStretch sliced = *Sliced(program, twice[0].stretches[0], others);
  EXPECT_FALSE(sliced.ops[0].keeps_rows);
}

TEST(SliceSearch, ItIsToldWhatKeepsThePeak) {
  Program program = Layers(1);
  program.ops[0].workspace_bytes = 40;
  const auto obstacles = [&](OpId highest, const std::optional<SliceFacts::Fact>& of_first = {},
                             const std::vector<Stretch>& stretches = {}) {
    SliceFacts facts(program);
    if (of_first) facts.Learn({0, 0, 1, false}, *of_first);
    const Stretches::Choice high{.peak_bytes = 2}, low{1, stretches, highest};
    return ObstaclesText(program, facts, {high, low});
  };
  const std::string first = "make_many0 keeps the peak: ";
  EXPECT_EQ(ObstaclesText(program, SliceFacts(program), {}), "");
  EXPECT_EQ(obstacles(2), "make_mixed1 keeps the peak: no rule runs test::mix in parts");
  EXPECT_EQ(obstacles(0), first + "what it reads and makes is needed whole");
  EXPECT_EQ(obstacles(0, SliceFacts::Fact{false, 0}),
            first +
                "its bits are others in parts; "
                "in some of the parts tried the bits are others of test::grow");
  EXPECT_EQ(obstacles(0, SliceFacts::Fact{true, 40}),
            first + "its scratch memory is as large in parts");
  EXPECT_EQ(obstacles(0, SliceFacts::Fact{true, 10}),
            first + "what it reads and makes is needed whole");
  EXPECT_EQ(obstacles(1, {}, {{{0, 1}, 0, 1}}),
            "make_few0 keeps the peak: it runs in parts as small as are tried");
}

}  // namespace
}  // namespace torch_ext::program
