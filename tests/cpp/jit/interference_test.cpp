// One trap, one test: programs whose result depends on an order that the data flow does not tell.
//
// Each program is reordered at random. With the hazards every order must give the same result, and
// without them some order must give another one, so that a rule that does nothing cannot pass.
#include "jit/interference.h"

#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/library.h>
#include <torch/torch.h>

#include "jit/execute.h"
#include "jit/nodes.h"
#include "jit/prepare.h"
#include "jit/shuffle.h"
#include "jit/to_program.h"
#include "program/hazards.h"
#include "program/lower.h"
#include "support/modules.h"

namespace torch_ext::jit {
namespace {

using program::HazardRules;
using program::kHazardRuleNames;
using torch::jit::Module;
using torch::jit::Node;

// What the program is of which nothing has been run.
program::Program ProgramOf(const std::shared_ptr<torch::jit::Graph>& graph) {
  const std::vector<Node*> nodes = OpNodes(graph->block());
  Probe nothing_seen;
  nothing_seen.nodes.resize(nodes.size());
  return ToProgram(nodes, nothing_seen, FindInterference(graph, nodes, {}));
}

// The first difference between the module and a randomly reordered one; empty if there is none.
std::string DifferenceWhenReordered(const Module& module, const Stack& inputs,
                                    const HazardRules& rules, std::uint64_t seed) {
  const QuietRun quiet;
  const Execution expected = Execute(module.clone(true), inputs, /*copy_state=*/true, quiet);
  const Module reordered = Shuffle(module, seed, rules);
  try {
    return FindDifference(expected, Execute(reordered, inputs, /*copy_state=*/true, quiet));
  } catch (const std::exception& error) {
    return error.what();
  }
}

void ExpectHeld(const Module& module, const Stack& inputs) {
  constexpr std::uint64_t kOrders = 40;
  HazardRules none;
  for (const auto& rule : kHazardRuleNames) none.*rule.second = false;
  bool matters = false;
  for (std::uint64_t seed = 0; seed < kOrders; ++seed) {
    EXPECT_EQ(DifferenceWhenReordered(module, inputs, {}, seed), "") << "order number " << seed;
    matters = matters || !DifferenceWhenReordered(module, inputs, none, seed).empty();
  }
  EXPECT_TRUE(matters) << "no order gives another result: this program tests nothing";
}

at::Tensor Numbers() {
  return torch::arange(1, 13, torch::kFloat).reshape({3, 4});
}

TEST(Interference, AnInPlaceWriteKeepsItsPlaceAgainstReads) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        y = x * 2
        before = y + 1
        y.add_(5)
        return before, y * 3
  )"),
             {Numbers()});
}

TEST(Interference, AWriteThroughAViewKeepsItsPlace) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        y = x * 2
        row = y[0].view(2, 2)
        total = y.sum()
        row.fill_(3.0)
        return total, y.mean()
  )"),
             {Numbers()});
}

TEST(Interference, AWriteThroughWhatAnOpReturnsUnchangedKeepsItsPlace) {
  // The schemas of these ops tell of a new tensor, and they return the one they were given.
  for (const char* same : {"torch.dropout(y, 0.5, False)", "y.type_as(x)", "torch.atleast_2d(y)",
                           "torch.einsum('ij->ij', [y])", "torch._unsafe_view(y, [3, 4])",
                           "y.sum_to_size([3, 4])", "torch.empty([0]).set_(y)"}) {
    SCOPED_TRACE(same);
    ExpectHeld(Define(R"(
      def forward(self, x):
          y = x * 2
          z = )" + std::string(same) +
                      R"(
          before = y + 1
          z.view(-1).add_(5)
          return before, y * 3, z.sum()
    )"),
               {Numbers()});
  }
}

TEST(Interference, WhatFollowsAConvolutionInPlaceLeavesTheRestFree) {
  const Module module = Define(R"(
    def forward(self, x):
        weight = torch.ones([3, 3, 1, 1])
        a = torch.relu_(torch.conv2d(x, weight))
        b = torch.relu_(torch.conv2d(x, weight))
        return a, b
  )");
  auto graph = ForwardGraph(module)->copy();
  PrepareGraph(graph);
  const std::vector<Node*> nodes = OpNodes(graph->block());
  const auto is_relu = [&](std::int32_t i) { return nodes[i]->kind() == c10::aten::relu_; };
  for (const auto& [earlier, later] : program::OrderEdges(ProgramOf(graph))) {
    EXPECT_FALSE(is_relu(earlier) && is_relu(later));
  }
}

TEST(Interference, AWriteToAListElementKeepsItsPlace) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        parts = [x * 2, x * 3]
        total = torch.cat(parts).sum()
        parts[0].add_(1)
        return total, torch.stack(parts)
  )"),
             {Numbers()});
}

TEST(Interference, AListAndALaterWriteToItsElementKeepTheirOrder) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        y = x * 2
        parts = [y, x]
        y.add_(1)
        z = torch.cat(parts)
        y.mul_(2)
        return z, y
  )"),
             {Numbers()});
}

TEST(Interference, AnAppendKeepsItsPlaceAgainstUsesOfTheList) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        parts = [x]
        parts.append(x * 2)
        n = len(parts)
        parts.append(x * 3)
        return n, torch.cat(parts)
  )"),
             {Numbers()});
}

TEST(Interference, AWriteInsideAnInnerBlockKeepsItsPlace) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        y = x * 2
        total = y.sum()
        if bool(x.sum() > 0):
            y.add_(1)
        else:
            y.mul_(2)
        return total, y.mean()
  )"),
             {Numbers()});
}

TEST(Interference, AWriteInsideALoopKeepsItsPlace) {
  ExpectHeld(Define(R"(
    def forward(self, x, n: int):
        y = x * 2
        total = y.sum()
        for i in range(n):
            y.add_(i + 1)
        return total, y.mean()
  )"),
             {Numbers(), 3});
}

TEST(Interference, InputsMayAliasEachOther) {
  const at::Tensor x = Numbers();
  ExpectHeld(Define(R"(
    def forward(self, x, y):
        total = y.sum()
        x.add_(1)
        return total, y * 2
  )"),
             {x, x.view({4, 3})});
}

TEST(Interference, RunningStatisticsKeepTheirPlace) {
  ExpectHeld(Define(R"(
    def forward(self, x, mean, var):
        before = mean.sum()
        y = torch.batch_norm(x, None, None, mean, var, True, 0.1, 1e-5, False)
        return before, y, mean * 2
  )"),
             {Numbers(), torch::zeros({4}), torch::ones({4})});
}

TEST(Interference, AMetadataWriteKeepsItsPlace) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        y = x * 2
        rows = y.size(0)
        y.t_()
        return rows, y.size(0), y
  )"),
             {Numbers()});
}

TEST(Interference, RandomOpsKeepTheirOrder) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        a = torch.dropout(x, 0.5, True)
        b = torch.dropout(x * 2, 0.5, True)
        return a, b
  )"),
             {Numbers()});
}

TEST(Interference, RandomOpsInsideInnerBlocksKeepTheirOrder) {
  ExpectHeld(Define(R"(
    def forward(self, x, train: bool):
        a = x
        if train:
            a = torch.dropout(x, 0.5, True)
        b = x
        if train:
            b = torch.dropout(x * 2, 0.5, True)
        return a, b
  )"),
             {Numbers(), true});
}

TEST(Interference, InPlaceRandomOpsKeepTheirOrder) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        a = torch.empty_like(x).normal_()
        b = torch.empty_like(x).uniform_()
        return a, b
  )"),
             {Numbers()});
}

TEST(Interference, PrintsKeepTheirOrder) {
  ExpectHeld(Define(R"(
    def forward(self, x):
        print("first")
        print("second")
        return x * 2
  )"),
             {Numbers()});
}

TEST(Interference, AnAttributeWriteKeepsItsPlace) {
  Module module = Define("");
  module.register_attribute("count", c10::IntType::get(), 7);
  module.define(R"(
    def forward(self, x):
        before = self.count
        self.count = before + 1
        after = self.count
        return x * before, after
  )");
  ExpectHeld(module, {Numbers()});
}

TEST(Interference, ABufferWriteKeepsItsPlace) {
  Module module = Define("");
  module.register_buffer("total", torch::zeros({3, 4}));
  module.define(R"(
    def forward(self, x):
        before = self.total.sum()
        self.total.add_(x)
        return before, self.total * 2
  )");
  ExpectHeld(module, {Numbers()});
}

// --- traps that cannot be told by running: the edges themselves --------------------------------

// True if the hazards (with the data flow) put `earlier` before `later`, directly or through
// others.
bool AreOrdered(Module& module, c10::Symbol earlier, c10::Symbol later) {
  std::shared_ptr<torch::jit::Graph> graph = ForwardGraph(module);
  const std::vector<Node*> nodes = OpNodes(graph->block());
  const sched::Graph lowered = program::Lower(ProgramOf(graph));
  std::vector<char> reached(nodes.size(), 0);
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i]->kind() == earlier) reached[i] = 1;
    for (sched::OpId p : lowered.op(static_cast<sched::OpId>(i)).predecessors) {
      reached[i] |= reached[p];
    }
    if (nodes[i]->kind() == later && reached[i]) return true;
  }
  return false;
}

TEST(Interference, ARaiseKeepsItsPlaceAgainstWritesThatOutliveTheCall) {
  Module module = Define(R"(
    def forward(self, x):
        assert x.size(0) <= 2, "too long"
        x.add_(1)
        return x
  )");
  EXPECT_TRUE(AreOrdered(module, c10::prim::If, c10::aten::add_));
}

TEST(Interference, AnAssertionOnATensorIsARaise) {
  // From TorchScript's own compiler it does not come: that drops what returns nothing.
  Module module = DefineFromIr(R"IR(
graph(%self, %x : Tensor):
  %one : int = prim::Constant[value=1]()
  %condition : Tensor = aten::lt(%x, %one)
  aten::_assert_async(%condition)
  %y : Tensor = aten::add_(%x, %one, %one)
  return (%y)
)IR");
  EXPECT_TRUE(
      AreOrdered(module, c10::Symbol::fromQualString("aten::_assert_async"), c10::aten::add_));
}

TEST(Interference, CollectivesKeepTheirOrder) {
  Module module = DefineFromIr(R"IR(
graph(%self, %x : Tensor, %y : Tensor):
  %sum : str = prim::Constant[value="sum"]()
  %group : str = prim::Constant[value="0"]()
  %root : int = prim::Constant[value=0]()
  %first : Tensor = _c10d_functional::all_reduce_(%x, %sum, %group)
  %second : Tensor = _c10d_functional::broadcast_(%y, %root, %group)
  %all : (Tensor, Tensor) = prim::TupleConstruct(%first, %second)
  return (%all)
)IR");
  EXPECT_TRUE(AreOrdered(module, c10::Symbol::fromQualString("_c10d_functional::all_reduce_"),
                         c10::Symbol::fromQualString("_c10d_functional::broadcast_")));
}

TEST(Interference, ACallThatIsNotInlinedIsABarrier) {
  Module module = Define(R"(
    def helper(self, x):
        return x * 2

    def forward(self, x):
        a = x + 1
        b = self.helper(x)
        return a, b, x.sum()
  )");
  EXPECT_TRUE(AreOrdered(module, c10::aten::add, c10::prim::CallMethod));
  EXPECT_TRUE(AreOrdered(module, c10::prim::CallMethod, c10::aten::sum));
}

at::Tensor BumpSecretly(const at::Tensor& x) {
  const_cast<at::Tensor&>(x).add_(1);
  return x.clone();
}

TORCH_LIBRARY(torch_ext_test, m) {
  m.def("bump(Tensor x) -> Tensor", BumpSecretly);
}

TEST(Interference, ACustomOpWithoutAliasAnnotationIsABarrier) {
  ExpectHeld(DefineFromIr(R"IR(
graph(%self, %x : Tensor):
  %two : int = prim::Constant[value=2]()
  %none : NoneType = prim::Constant()
  %y : Tensor = aten::mul(%x, %two)
  %before : Tensor = aten::sum(%y, %none)
  %z : Tensor = torch_ext_test::bump(%y)
  %after : Tensor = aten::mean(%y, %none)
  %all : (Tensor, Tensor, Tensor) = prim::TupleConstruct(%before, %z, %after)
  return (%all)
)IR"),
             {Numbers()});
}

TEST(Interference, AWaitIsABarrier) {
  Module module = DefineFromIr(R"IR(
graph(%self, %x : Tensor, %future : Future(Tensor)):
  %none : NoneType = prim::Constant()
  %before : Tensor = aten::sum(%x, %none)
  %waited : Tensor = aten::wait(%future)
  %after : Tensor = aten::mean(%x, %none)
  %all : (Tensor, Tensor, Tensor) = prim::TupleConstruct(%before, %waited, %after)
  return (%all)
)IR");
  EXPECT_TRUE(AreOrdered(module, c10::aten::sum, c10::aten::wait));
  EXPECT_TRUE(AreOrdered(module, c10::aten::wait, c10::aten::mean));
}

TEST(Interference, DropoutOutOfTrainingIsFree) {
  Module module = Define(R"(
    def forward(self, x):
        a = torch.dropout(x, 0.5, False)
        b = torch.dropout(x * 2, 0.5, False)
        return a, b
  )");
  std::shared_ptr<torch::jit::Graph> graph = ForwardGraph(module);
  EXPECT_TRUE(program::OrderEdges(ProgramOf(graph)).empty());
}

}  // namespace
}  // namespace torch_ext::jit
