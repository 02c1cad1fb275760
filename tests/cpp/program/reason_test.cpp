#include "program/reason.h"

#include <gtest/gtest.h>

#include <set>

#include "program/amount.h"
#include "program/lower.h"

namespace torch_ext::program {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

TEST(Amount, AdaptsItsUnit) {
  EXPECT_EQ(Amount(0), "0 B");
  EXPECT_EQ(Amount(102), "102 B");
  EXPECT_EQ(Amount(103), "0.10 KiB");
  EXPECT_EQ(Amount(4000), "3.91 KiB");
  EXPECT_EQ(Amount(kMiB / 10), "102.40 KiB");
  EXPECT_EQ(Amount(kMiB), "1.00 MiB");
  EXPECT_EQ(Amount(12345 * kMiB), "12,345.00 MiB");
  EXPECT_EQ(Amount(1234567 * kMiB), "1,234,567.00 MiB");
  EXPECT_EQ(InUnit(1234567, "B"), "1,234,567");
  EXPECT_EQ(InUnit(-1234, "B"), "-1,234");
  EXPECT_EQ(InUnit(123, "B"), "123");
}

TEST(Reason, EachKindHasANameAndASentence) {
  std::set<std::string> texts;
  for (const auto& [name, kind] : kReasonNames) {
    EXPECT_EQ(NameOf(kind), name);
    EXPECT_EQ(ReasonNamed(name), kind);
    const std::string text = English({.kind = kind, .detail = std::string("of ") + name});
    EXPECT_FALSE(text.empty()) << name;
    EXPECT_FALSE(text.ends_with('.')) << name;
    EXPECT_TRUE(texts.insert(text).second) << name;
  }
  EXPECT_THROW(ReasonNamed("none"), std::invalid_argument);
}

// small -> big -> end: `big` cannot run with less than all of it.
Program Chain() {
  Program program;
  program.buffers = {{.name = "small", .bytes = kMiB}, {.name = "big", .bytes = 3 * kMiB}};
  program.ops = {{.name = "first", .oper = "aten::first", .writes = {0}},
                 {.name = "second",
                  .oper = "aten::second",
                  .label = {.source = "model.py:3"},
                  .reads = {0},
                  .writes = {1},
                  .workspace_bytes = 2048},
                 {.name = "third", .oper = "aten::third", .reads = {1}}};
  return program;
}

std::vector<Reason> ReasonsOf(const Program& program) {
  return WhyNoGain(program, sched::MakePlan(Lower(program)), {});
}

TEST(Reason, AnOptimalOrderNamesTheOpAndWhatLivesWithIt) {
  EXPECT_EQ(English(ReasonsOf(Chain())),
            "the original order is optimal: no order runs second (model.py:3) with less than 4.00 "
            "MiB, for these must be alive together: big 3.00 MiB, small 1.00 MiB and its scratch "
            "memory 2.00 KiB");
}

TEST(Reason, WithoutMemoryThereIsNothingToOrder) {
  EXPECT_EQ(ReasonsOf(Program{})[0].kind, ReasonKind::kNoMemory);
}

// Two branches, begun one after the other and reduced afterwards.
Program Branches() {
  Program program;
  for (const char* name : {"a", "b", "small_a", "small_b"}) {
    program.buffers.push_back({.name = name, .bytes = name[0] == 's' ? kMiB : 8 * kMiB});
  }
  program.ops = {{.name = "make_a", .oper = "aten::make", .writes = {0}},
                 {.name = "make_b", .oper = "aten::make", .writes = {1}},
                 {.name = "use_a", .oper = "aten::use", .reads = {0}, .writes = {2}},
                 {.name = "use_b", .oper = "aten::use", .reads = {1}, .writes = {3}},
                 {.name = "end", .oper = "aten::end", .reads = {2, 3}}};
  return program;
}

TEST(Reason, AGainNeedsNone) {
  EXPECT_TRUE(ReasonsOf(Branches()).empty());
}

TEST(Reason, WhatHazardsCostIsTold) {
  Program held = Branches();
  held.ops[1].effects.undeclared = "written in Python";
  held.ops[2].effects.draws_random_numbers = held.ops[1].effects.draws_random_numbers = true;
  const std::vector<Reason> reasons = ReasonsOf(held);
  ASSERT_FALSE(reasons.empty());
  EXPECT_EQ(reasons.back().kind, ReasonKind::kHeld);
  EXPECT_EQ(reasons.back().bytes, 10 * kMiB);
  EXPECT_EQ(reasons.back().detail, "aten::make: written in Python");
}

}  // namespace
}  // namespace torch_ext::program
