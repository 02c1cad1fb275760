#include "jit/repeats.h"

#include <gtest/gtest.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/torch.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "jit/interference.h"
#include "jit/nodes.h"
#include "jit/prepare.h"
#include "jit/probe.h"
#include "jit/timing.h"
#include "jit/to_program.h"
#include "memory/meter.h"
#include "support/modules.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;

at::Tensor Rows() {
  return torch::ones({256, 16});
}

// A module whose nodes are known by what they call.
struct Subject {
  explicit Subject(const std::string& source) : module(Define(source)) {
    graph = ForwardGraph(module);
    PrepareGraph(graph);
    nodes = OpNodes(graph->block());
  }

  program::OpId Op(const std::string& kind) const {
    const auto found = std::ranges::find_if(
        nodes, [&](const Node* node) { return node->kind().toQualString() == kind; });
    if (found == nodes.end()) throw std::invalid_argument(kind);
    return static_cast<program::OpId>(found - nodes.begin());
  }

  // All nodes, and before the one of that kind the others again.
  program::Runs RunsWith(const std::vector<std::string>& again, const std::string& before) const {
    program::Runs runs;
    for (std::size_t v = 0; v < nodes.size(); ++v) {
      if (static_cast<program::OpId>(v) == Op(before)) {
        for (const std::string& kind : again) runs.push_back(Op(kind));
      }
      runs.push_back(static_cast<program::OpId>(v));
    }
    return runs;
  }

  program::Program Repeating() const {
    const Probe probe = RunProbe(graph, [&] { return Stack{module._ivalue(), Rows()}; });
    const Interference interference = FindInterference(graph, nodes, {probe});
    program::Program program = ToProgram(nodes, probe, interference);
    AddRepeating(program, graph, nodes, probe);
    return program;
  }

  at::Tensor Run() const {
    const torch::NoGradGuard no_grad;
    return module.get_method("forward")({Rows()}).toTensor();
  }

  Module module;
  std::shared_ptr<Graph> graph;
  std::vector<Node*> nodes;
};

// How often the settled executor runs it.
std::int64_t CountExecuted(const std::string& kind) {
  std::int64_t count = 0;
  ForEachNode(torch::jit::lastExecutedOptimizedGraph()->block(),
              [&](const Node* node) { count += node->kind().toQualString() == kind; });
  return count;
}

void ExpectRunsSurvive(const std::string& source, const std::vector<std::string>& again,
                       const std::string& before, const std::string& counted, int expected) {
  const Subject original(source), edited(source);
  ApplyRuns(edited.graph->block(), edited.nodes, edited.RunsWith(again, before));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(torch::equal(original.Run(), edited.Run()));
  edited.Run();
  EXPECT_EQ(CountExecuted(counted), expected) << *torch::jit::lastExecutedOptimizedGraph();
}

const char* const kChain = R"(
    def forward(self, x):
        y = torch.exp(x)
        z = torch.sigmoid(y).sum()
        return torch.sub(y, z)
)";

TEST(Repeats, TheExecutorTakesNoRunForAnother) {
  ExpectRunsSurvive(kChain, {"aten::exp"}, "aten::sub", "aten::exp", 2);
  ExpectRunsSurvive(kChain, {"aten::exp", "aten::exp"}, "aten::sub", "aten::exp",
                    2);  // one is dead
  ExpectRunsSurvive(kChain, {"aten::exp", "aten::sigmoid", "aten::exp"}, "aten::sub", "aten::exp",
                    2);  // so is what only the second sigmoid reads
}

TEST(Repeats, ThreeRunsAreThree) {
  const std::string source = R"(
    def forward(self, x):
        y = torch.exp(x)
        a = torch.sigmoid(y).sum()
        b = torch.sub(y, a).sum()
        return torch.mul(y, b)
)";
  const Subject original(source), edited(source);
  program::Runs runs;
  for (std::size_t v = 0; v < edited.nodes.size(); ++v) {
    const auto op = static_cast<program::OpId>(v);
    if (op == edited.Op("aten::sub") || op == edited.Op("aten::mul")) {
      runs.push_back(edited.Op("aten::exp"));
    }
    runs.push_back(op);
  }
  ApplyRuns(edited.graph->block(), edited.nodes, runs);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(torch::equal(original.Run(), edited.Run()));
  edited.Run();
  EXPECT_EQ(CountExecuted("aten::exp"), 3);
}

TEST(Repeats, AListOfTheSameIsAnotherOne) {
  const std::string source = R"(
    def forward(self, x):
        y = torch.cat([x, x])
        z = torch.sigmoid(y).sum()
        return torch.sub(y, z)
)";
  ExpectRunsSurvive(source, {"aten::cat"}, "aten::sub", "aten::cat", 2);
}

TEST(Repeats, RunsFreeMemoryInBetween) {
  const std::string source = R"(
    def forward(self, x):
        y = torch.exp(x)
        z = y.sum()
        h = torch.cat([x, x]).sum()
        return torch.sub(y, z + h)
)";
  const auto peak_of = [](const Subject& subject) {
    for (int i = 0; i < 2; ++i) subject.Run();
    memory::Meter meter;
    subject.Run();
    meter.Stop();
    return meter.peak_bytes();
  };
  const Subject original(source), edited(source);
  ApplyRuns(edited.graph->block(), edited.nodes, edited.RunsWith({"aten::exp"}, "aten::sub"));
  EXPECT_LE(peak_of(edited) + Rows().nbytes(), peak_of(original) + 1024);
}

TEST(Repeats, WhatIsWrittenToInPlaceIsKnown) {
  const Subject subject(R"(
    def forward(self, x):
        y = torch.exp(x)
        y.relu_()
        v = y.t()
        return torch.sigmoid(v)
)");
  const program::Program program = subject.Repeating();
  const program::Op& exp = program.ops[subject.Op("aten::exp")];
  const program::Op& relu = program.ops[subject.Op("aten::relu_")];
  EXPECT_EQ(relu.mutates, exp.writes);
  EXPECT_EQ(relu.aliases, exp.writes);
  EXPECT_EQ(program.ops[subject.Op("aten::t")].aliases, exp.writes);
  for (const program::Op& op : program.ops) EXPECT_TRUE(program::MayRepeat(op)) << op.name;
  ASSERT_FALSE(program.conflicts.empty());
  for (const program::Conflict& conflict : program.conflicts) EXPECT_TRUE(conflict.is_inside);
}

bool MayRepeat(const std::string& source, const std::string& kind) {
  const Subject subject(source);
  return program::MayRepeat(subject.Repeating().ops[subject.Op(kind)]);
}

TEST(Repeats, WhatMayBeAViewOrACopyIsNotWrittenToAgain) {
  const std::string source = R"(
    def forward(self, x):
        y = torch.exp(x)
        v = y.reshape(-1)
        v.relu_()
        return torch.sigmoid(y)
)";
  for (const char* kind : {"aten::exp", "aten::reshape", "aten::relu_", "aten::sigmoid"}) {
    EXPECT_FALSE(MayRepeat(source, kind)) << kind;
  }
}

TEST(Repeats, WhatIsDrawnOrCountedOrBranchesOrIsConstantRunsOnce) {
  EXPECT_FALSE(MayRepeat("def forward(self, x): return torch.exp(torch.dropout(x, 0.5, True))\n",
                         "aten::dropout"));
  EXPECT_FALSE(MayRepeat("def forward(self, x): return torch.exp(x.add_(1))\n", "aten::add_"));
  EXPECT_FALSE(MayRepeat("def forward(self, x): return x + torch.exp(torch.ones([4, 16]).sum())\n",
                         "aten::exp"));
  const std::string branch = R"(
    def forward(self, x):
        if bool(x.sum() > 0):
            y = torch.exp(x)
        else:
            y = torch.sigmoid(x)
        return torch.relu(y)
)";
  EXPECT_FALSE(MayRepeat(branch, "prim::If"));
  EXPECT_TRUE(MayRepeat(branch, "aten::relu"));
}

TEST(Repeats, EachNodeIsTimed) {
  const Subject subject(kChain);
  const std::vector<std::int64_t> times =
      TimeNodes(subject.graph, [&] { return Stack{subject.module._ivalue(), Rows()}; });
  ASSERT_EQ(times.size(), subject.nodes.size());
  EXPECT_GT(times[subject.Op("aten::exp")], 0);
}

}  // namespace
}  // namespace torch_ext::jit
