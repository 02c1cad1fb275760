#include "jit/probe.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>

#include "jit/nodes.h"
#include "jit/prepare.h"
#include "jit/to_program.h"
#include "memory/meter.h"
#include "program/lower.h"
#include "sched/simulate.h"
#include "support/modules.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Module;

constexpr std::int64_t kKiB = 1024;

struct Probed {
  std::vector<torch::jit::Node*> nodes;
  std::shared_ptr<torch::jit::Graph> graph;
  Probe probe;
  sched::Graph lowered;
};

Probed ProbeModule(const Module& module, const Stack& inputs) {
  Probed probed;
  probed.graph = ForwardGraph(module);
  PrepareGraph(probed.graph);
  probed.nodes = OpNodes(probed.graph->block());
  probed.probe = RunProbe(probed.graph, [&] {
    Stack all{module._ivalue()};
    all.insert(all.end(), inputs.begin(), inputs.end());
    return all;
  });
  const Interference interference = FindInterference(probed.graph, probed.nodes, {probed.probe});
  probed.lowered = program::Lower(ToProgram(probed.nodes, probed.probe, interference));
  return probed;
}

// What the model says of the original order against the allocator in a real run.
void ExpectAgreement(const Module& module, const Stack& inputs) {
  const Probed probed = ProbeModule(module.clone(true), inputs);
  const std::int64_t predicted = sched::PeakBytes(probed.lowered, probed.lowered.OriginalOrder());
  const torch::NoGradGuard no_grad;
  const Module run = module.clone(true);
  for (int i = 0; i < 2; ++i) run.get_method("forward")(inputs);
  memory::Meter meter;
  const c10::IValue result = run.get_method("forward")(inputs);
  meter.Stop();
  EXPECT_EQ(predicted, meter.peak_bytes());
}

at::Tensor Block(std::int64_t kib) {
  return torch::ones({kib * kKiB / 4});
}

TEST(Probe, ProducersReadersAndResults) {
  const Probed probed = ProbeModule(Define(R"(
    def forward(self, x):
        a = torch.exp(x)
        b = torch.abs(a)
        return torch.neg(b)
  )"),
                                    {Block(64)});
  ASSERT_EQ(probed.nodes.size(), 3U);
  ASSERT_EQ(probed.probe.allocations.size(), 3U);
  EXPECT_EQ(probed.probe.allocations[0].bytes, 64 * kKiB);
  EXPECT_FALSE(probed.probe.allocations[0].kept);
  EXPECT_TRUE(probed.probe.allocations[2].kept);
  EXPECT_EQ(probed.probe.nodes[1].reads, std::vector<std::int32_t>{0});
  EXPECT_EQ(probed.probe.nodes[1].writes, std::vector<std::int32_t>{1});
  EXPECT_EQ(sched::PeakBytes(probed.lowered, {{0, 1, 2}}), 128 * kKiB);
}

TEST(Probe, AViewsReaderIsAReaderOfTheStorage) {
  const Probed probed = ProbeModule(Define(R"(
    def forward(self, x):
        a = x * 2
        v = a.view(-1, 4)
        b = x.sum()
        return v.sum() + b
  )"),
                                    {Block(64)});
  const auto& allocations = probed.probe.allocations;
  const auto reads_a = std::count_if(
      probed.probe.nodes.begin(), probed.probe.nodes.end(), [](const NodeProbe& node) {
        return std::find(node.reads.begin(), node.reads.end(), 0) != node.reads.end();
      });
  EXPECT_EQ(allocations[0].bytes, 64 * kKiB);
  EXPECT_EQ(reads_a, 2);  // the view and its sum
}

TEST(Probe, ScratchMemoryIsMeasured) {
  const Probed probed = ProbeModule(Define(R"(
    def forward(self, x):
        return torch.sort(x * 2)[0].sum()
  )"),
                                    {Block(256)});
  std::int64_t workspace = 0;
  for (const sched::Op& op : probed.lowered.ops()) {
    EXPECT_GE(op.workspace_bytes, 0) << op.name;
    workspace += op.workspace_bytes;
  }
  EXPECT_GT(workspace, 0);
}

TEST(Probe, AgreesWithTheAllocatorOnStraightCode) {
  ExpectAgreement(Define(R"(
    def forward(self, x):
        a = torch.exp(x)
        b = torch.sort(a)[0]
        c = torch.cat([a, b])
        return c.sum(), b.cumsum(0)
  )"),
                  {Block(128)});
}

TEST(Probe, AgreesWithTheAllocatorOnInPlaceOps) {
  ExpectAgreement(Define(R"(
    def forward(self, x):
        a = torch.exp(x).relu_()
        b = a.view(2, -1)
        b.add_(1)
        return (a * 2).sum()
  )"),
                  {Block(128)});
}

TEST(Probe, AgreesWithTheAllocatorOnListsThatGrow) {
  ExpectAgreement(Define(R"(
    def forward(self, x):
        parts = [x * 2]
        parts.append(x * 3)
        y = x * 4
        parts.append(y.sum().view(1))
        return torch.cat(parts)
  )"),
                  {Block(128)});
}

// The peak is at the cat, with any number of threads. Inside the loop the model is a little above
// the executor, which frees what a loop starts from as soon as its body has read it.
TEST(Probe, AgreesWithTheAllocatorOnBranchesAndLoops) {
  ExpectAgreement(Define(R"(
    def forward(self, x, n: int):
        y = x * 2
        z = x * 3
        for i in range(n):
            y = torch.exp(y) - 1
        if n > 2:
            w = torch.cat([y, z, z]).sum()
        else:
            w = y.sum()
        return w, z
  )"),
                  {Block(128), 4});
}

TEST(Probe, AgreesWithTheAllocatorOnConstantsTheExecutorFolds) {
  ExpectAgreement(Define(R"(
    def forward(self, x):
        table = torch.exp(torch.arange(100000, dtype=6))
        return x.sum() + table[1], x * 2
  )"),
                  {Block(8)});
}

TEST(Probe, NoticesRandomNumbers) {
  const Probed probed = ProbeModule(Define(R"(
    def forward(self, x):
        a = x * 2
        return torch.dropout(a, 0.5, True)
  )"),
                                    {Block(64)});
  EXPECT_FALSE(probed.probe.nodes[0].uses_random_state);
  EXPECT_TRUE(probed.probe.nodes[1].uses_random_state);
}

}  // namespace
}  // namespace torch_ext::jit
