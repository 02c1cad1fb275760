// What types tell against what a run shows: the same graph estimated and probed.
#include "jit/estimate.h"

#include <gtest/gtest.h>
#include <torch/csrc/jit/passes/pass_manager.h>
#include <torch/torch.h>

#include "jit/nodes.h"
#include "jit/to_program.h"
#include "program/lower.h"
#include "sched/simulate.h"
#include "support/modules.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Module;

// The graph as a pass sees it, with profiled types.
std::shared_ptr<Graph> ProfiledGraph(Module& module, const Stack& inputs) {
  std::shared_ptr<Graph> seen;
  const auto pass =
      torch::jit::registerPostPass([&](std::shared_ptr<Graph>& graph) { seen = graph->copy(); });
  const torch::NoGradGuard no_grad;
  module.forward(inputs);
  module.forward(inputs);
  torch::jit::clearPostPass(pass);
  return seen;
}

struct Estimated {
  std::int64_t peak_bytes = 0;
  std::int64_t guessed = 0;
};

std::int64_t PeakOf(Block* block, const Probe& probe) {
  const sched::Graph graph = program::Lower(ToProgram(OpNodes(block), probe, Interference{}));
  return sched::PeakBytes(graph, graph.OriginalOrder());
}

Estimated Estimate(Graph& graph, OpCosts& costs) {
  Estimator estimator(costs, std::chrono::steady_clock::time_point::max(),
                      [](Block* block, const BlockEstimate& inner) {
                        const std::int64_t peak = PeakOf(block, inner.probe);
                        return BlockPeaks{peak, peak};
                      });
  const BlockEstimate estimate = estimator.Estimate(graph);
  return {PeakOf(graph.block(), estimate.probe), estimator.num_guessed()};
}

void ExpectTheSamePeak(const char* source, const std::vector<at::Tensor>& inputs,
                       OpCosts&& costs = OpCosts()) {
  Module module = Define(source);
  const Stack stack(inputs.begin(), inputs.end());
  const std::shared_ptr<Graph> graph = ProfiledGraph(module, stack);
  ASSERT_NE(graph, nullptr);
  const Probe probe = RunProbe(graph, [&] {
    Stack all{module._ivalue()};
    all.insert(all.end(), stack.begin(), stack.end());
    return all;
  });
  const Estimated estimated = Estimate(*graph, costs);
  EXPECT_EQ(estimated.guessed, 0) << *graph;
  EXPECT_EQ(estimated.peak_bytes, PeakOf(graph->block(), probe)) << *graph;
}

at::Tensor Numbers() {
  return torch::arange(1, 4097, torch::kFloat).reshape({16, 256});
}

TEST(Estimate, ArithmeticAndReductions) {
  ExpectTheSamePeak(R"(
    def forward(self, x):
        y = x * 2 + 1
        return y.sum(1), (y - x).mean()
  )",
                    {Numbers()});
}

TEST(Estimate, WhatIsKnownOfAnOpIsKnownForTheSettingsItRanWith) {
  constexpr const char* kSource = R"(
    def forward(self, x):
        y = torch.ones([x.size(0), 1000])
        return y.sum() + x.sum()
  )";
  OpCosts costs;
  const caffe2::TypeMeta before = c10::get_default_dtype();
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kFloat}) {
    c10::set_default_dtype(c10::scalarTypeToTypeMeta(dtype));
    ExpectTheSamePeak(kSource, {Numbers()}, std::move(costs));
  }
  c10::set_default_dtype(before);
}

TEST(Estimate, ViewsHoldWhatTheyAreViewsOf) {
  ExpectTheSamePeak(R"(
    def forward(self, x):
        y = x * 2
        row = y[0].view(16, 16).t()
        z = x * 3
        return row + 1, z + 1
  )",
                    {Numbers()});
}

TEST(Estimate, ListsHoldTheirElements) {
  ExpectTheSamePeak(R"(
    def forward(self, x):
        parts = [x * 2, x * 3]
        a, b = (x * 4).chunk(2, 1)
        whole = torch.cat(parts, 0) + 1
        return whole.sum(), a * b
  )",
                    {Numbers()});
}

TEST(Estimate, WritesInPlaceTakeNothing) {
  ExpectTheSamePeak(R"(
    def forward(self, x):
        y = x * 2
        y.add_(1)
        y[0].mul_(3)
        return y * 2
  )",
                    {Numbers()});
}

TEST(Estimate, ScratchMemoryIsLearned) {
  ExpectTheSamePeak(R"(
    def forward(self, x, w):
        y = torch.conv2d(x, w, None, [1, 1], [1, 1])
        return torch.max_pool2d(y * 2, [2, 2]) + 1
  )",
                    {torch::randn({2, 8, 32, 32}), torch::randn({16, 8, 3, 3})});
}

TEST(Estimate, BranchesAndLoopsCountAsTheirHighestHill) {
  ExpectTheSamePeak(R"(
    def forward(self, x):
        y = x * 2
        for i in range(3):
            y = y * 2 + x
        if bool(y.sum() > 0):
            z = (y * 2 + 1) * 3
        else:
            z = y * 2
        return z + 1
  )",
                    {Numbers()});
}

TEST(Estimate, SizesComputedAsTensorsAreKnown) {
  ExpectTheSamePeak(R"(
    def forward(self, x):
        rows = torch.floor_divide(torch.tensor(x.size(0)), torch.tensor(2))
        y = (x * 2).reshape([int(rows), -1])
        return y * 3 + 1
  )",
                    {Numbers()});
}

TEST(Estimate, ASizeThatNobodyTellsIsGuessedAndCounted) {
  // torch profiles what it may want to fuse: not the inputs of repeat.
  Module module = Define(R"(
    def forward(self, x):
        return x.repeat([2, 2]).sum()
  )");
  const std::shared_ptr<Graph> graph = ProfiledGraph(module, {Numbers()});
  OpCosts costs;
  EXPECT_GT(Estimate(*graph, costs).guessed, 0) << *graph;
}

TEST(OpCosts, AnOpIsRunOnceForEachKindOfArguments) {
  Module module = Define(R"(
    def forward(self, x):
        return torch.mm(x, x.t()) + 1
  )");
  const std::shared_ptr<Graph> graph = ProfiledGraph(module, {Numbers()});
  torch::jit::Node* mm = nullptr;
  for (torch::jit::Node* node : graph->nodes()) {
    if (node->kind() == c10::aten::mm) mm = node;
  }
  ASSERT_NE(mm, nullptr);
  OpCosts costs;
  const auto matrix = [](std::int64_t rows, std::int64_t columns) {
    KnownValue value;
    value.tensor = TensorShape{at::kFloat, {rows, columns}, {columns, 1}};
    return value;
  };
  EXPECT_EQ(costs.Find(mm, {matrix(16, 8), matrix(8, 4)}, /*may_run=*/false), nullptr);
  const auto learned = costs.Find(mm, {matrix(16, 8), matrix(8, 4)}, true);
  ASSERT_NE(learned, nullptr);
  EXPECT_EQ(learned->new_bytes, std::vector<std::int64_t>{16 * 4 * 4});
  EXPECT_GE(learned->hill_bytes, 16 * 4 * 4);
  EXPECT_EQ(costs.Find(mm, {matrix(16, 8), matrix(8, 4)}, false), learned);
  EXPECT_EQ(costs.Find(mm, {matrix(16, 8), matrix(8, 5)}, false), nullptr);
  // What raises is not run again and not known.
  EXPECT_EQ(costs.Find(mm, {matrix(16, 8), matrix(7, 4)}, true), nullptr);
}

TEST(Estimate, ConjugatesAreReadFromWhatTheyAreViewsOf) {
  ExpectTheSamePeak(R"(
    def forward(self, x):
        w = x * 2
        y = torch.complex(w, w).conj()
        z = torch.resolve_conj(y)
        return torch.view_as_real(z).sum(), torch.imag(y) * 2
  )",
                    {Numbers()});
}

TEST(Estimate, QuantizedResultsHoldWhatTheyHold) {
  ExpectTheSamePeak(R"(
    def forward(self, x):
        y = x * 2
        q = torch.quantize_per_tensor(y, 0.1, 10, 13)
        return q, q[0], (y * 3).sum()
  )",
                    {Numbers()});
}

TEST(Estimate, WhatHasNoStandInIsCountedByItsType) {
  Module module = Define(R"(
    def forward(self, x):
        y = torch.relu(torch.quantize_per_tensor(x, 0.1, 10, 13))
        return torch.relu(y.dequantize() * 2)
  )");
  const std::shared_ptr<Graph> graph = ProfiledGraph(module, {Numbers()});
  const std::int64_t bytes = Numbers().numel();
  OpCosts costs;
  EXPECT_GE(Estimate(*graph, costs).peak_bytes, 2 * 4 * bytes) << *graph;
}

// The node of this kind in a program that is called with a matrix.
torch::jit::Node* NodeOf(Graph& graph, const char* kind) {
  for (torch::jit::Node* node : graph.nodes()) {
    if (node->kind() == c10::Symbol::fromQualString(kind)) return node;
  }
  return nullptr;
}

KnownValue Matrix(at::ScalarType dtype) {
  KnownValue value;
  value.tensor = TensorShape{dtype, {4, 6}, {6, 1}};
  return value;
}

KnownValue Scalar(const c10::IValue& number) {
  KnownValue value;
  value.scalar = number;
  return value;
}

// A stand-in of a quantized tensor would be read where it has no quantizer, and end the process.
TEST(OpCosts, StandInsAreMadeOfPlainNumbersOnly) {
  Module module = Define(R"(
    def forward(self, x):
        return x.clone()
  )");
  const std::shared_ptr<Graph> graph = ProfiledGraph(module, {Numbers()});
  torch::jit::Node* clone = NodeOf(*graph, "aten::clone");
  ASSERT_NE(clone, nullptr);
  for (int i = 0; i < static_cast<int>(at::ScalarType::NumOptions); ++i) {
    const auto dtype = static_cast<at::ScalarType>(i);
    if (dtype == at::ScalarType::Undefined) continue;
    OpCosts costs;
    const auto cost = costs.Find(clone, {Matrix(dtype), Scalar(c10::IValue())}, true);
    EXPECT_EQ(cost != nullptr, HasStandIn(dtype)) << c10::toString(dtype);
  }
  EXPECT_TRUE(HasStandIn(at::kFloat8_e5m2));
  EXPECT_FALSE(HasStandIn(at::kQUInt8));
}

TEST(OpCosts, AnOpThatIsAskedForARareTypeOrLayoutIsNotRun) {
  Module module = Define(R"(
    def forward(self, x):
        return torch.zeros_like(x, dtype=6, layout=0, device=torch.device("cpu"))
  )");
  const std::shared_ptr<Graph> graph = ProfiledGraph(module, {Numbers()});
  torch::jit::Node* zeros = NodeOf(*graph, "aten::zeros_like");
  ASSERT_NE(zeros, nullptr);
  const auto runs = [&](at::ScalarType dtype, at::Layout layout, const char* device) {
    const KnownValue none = Scalar(c10::IValue());
    OpCosts costs;
    return costs.Find(
               zeros,
               {Matrix(at::kFloat), Scalar(static_cast<std::int64_t>(dtype)),
                Scalar(static_cast<std::int64_t>(layout)), Scalar(at::Device(device)), none, none},
               true) != nullptr;
  };
  EXPECT_TRUE(runs(at::kInt, at::kStrided, "cpu"));
  EXPECT_FALSE(runs(at::kBits8, at::kStrided, "cpu"));
  EXPECT_FALSE(runs(at::kQUInt4x2, at::kStrided, "cpu"));
  EXPECT_FALSE(runs(at::kInt, at::kSparse, "cpu"));
  EXPECT_FALSE(runs(at::kInt, at::kStrided, "meta"));
}

TEST(OpCosts, PackedTypesTakeLessThanAByteForEachElement) {
  const at::Tensor x = at::zeros({3, 5});
  for (const at::ScalarType dtype : {at::kQUInt8, at::kQUInt4x2, at::kQUInt2x4, at::kQInt32}) {
    const at::Tensor packed = at::quantize_per_tensor(x, 1, 0, dtype);
    EXPECT_EQ(ShapeOf(packed)->StorageBytes(), packed.storage().nbytes()) << c10::toString(dtype);
  }
}

TEST(OpCosts, StandInsAreMemoryOfNoAllocator) {
  TensorShape shape{at::kFloat, {3, 0, 5}, {0, 5, 1}};
  EXPECT_EQ(shape.StorageBytes(), 0);
  shape = {at::kFloat, {3, 4}, {8, 2}};
  EXPECT_EQ(shape.StorageBytes(), (2 * 8 + 3 * 2 + 1) * 4);
}

}  // namespace
}  // namespace torch_ext::jit
