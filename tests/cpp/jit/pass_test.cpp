#include "jit/pass.h"

#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/torch.h>

#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

#include "jit/execute.h"
#include "jit/optimize.h"
#include "memory/meter.h"
#include "support/modules.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Module;

// Three large tensors are made before the first is used up; one at a time would do.
constexpr const char* kThreeAtOnce = R"(
    def forward(self, x):
        a = x * 2
        b = x * 3
        c = x * 4
        return a.sum() + b.sum() + c.sum()
  )";

at::Tensor Numbers() {
  return torch::arange(1, 4097, torch::kFloat).reshape({16, 256});
}

struct Calls {
  at::Tensor result;
  std::int64_t peak_bytes = 0;  // of the last
};

Calls CallThreeTimes(Module& module, const at::Tensor& input) {
  const torch::NoGradGuard no_grad;
  Calls calls;
  module.forward({input});
  module.forward({input});
  memory::Meter meter;
  calls.result = module.forward({input}).toTensor();
  meter.Stop();
  calls.peak_bytes = meter.peak_bytes();
  return calls;
}

Calls CallThreeTimes(const char* source, const at::Tensor& input) {
  Module module = Define(source);
  return CallThreeTimes(module, input);
}

// What the pass did since the last call.
PassStats NewStats() {
  static PassStats last;
  const PassStats now = GetPassStats();
  PassStats since = now;
  since.graphs_seen -= last.graphs_seen;
  since.reordered -= last.reordered;
  since.proven -= last.proven;
  since.saved_bytes -= last.saved_bytes;
  last = now;
  return since;
}

TEST(Pass, LowersThePeakOfTheThirdCallAsFarAsOptimizeDoes) {
  const Calls before = CallThreeTimes(kThreeAtOnce, Numbers());
  const Module module = Define(kThreeAtOnce);
  const Optimized optimized = Optimize(module, {{Numbers()}});
  ASSERT_TRUE(optimized.changed);

  NewStats();
  const ScopedPass pass;
  const Calls after = CallThreeTimes(kThreeAtOnce, Numbers());
  EXPECT_TRUE(after.result.equal(before.result));
  EXPECT_EQ(after.peak_bytes, optimized.report.examples[0].measured_peak_bytes);
  EXPECT_LT(after.peak_bytes, before.peak_bytes);
  const PassStats stats = NewStats();
  EXPECT_EQ(stats.graphs_seen, 1);
  EXPECT_EQ(stats.reordered, 1);
  EXPECT_EQ(stats.proven, 1);
  EXPECT_EQ(stats.saved_bytes, before.peak_bytes - after.peak_bytes);
}

TEST(Pass, NewModulesAreLeftAloneOnceItIsDisabled) {
  const Calls before = CallThreeTimes(kThreeAtOnce, Numbers());
  EnablePass();
  EXPECT_TRUE(IsPassEnabled());
  DisablePass();
  EXPECT_FALSE(IsPassEnabled());
  NewStats();
  EXPECT_EQ(CallThreeTimes(kThreeAtOnce, Numbers()).peak_bytes, before.peak_bytes);
  EXPECT_EQ(NewStats().graphs_seen, 0);
}

TEST(Pass, AModuleThatHasRunKeepsItsPlan) {
  Module module = Define(kThreeAtOnce);
  const Calls before = CallThreeTimes(module, Numbers());
  const ScopedPass pass;
  EXPECT_EQ(CallThreeTimes(module, Numbers()).peak_bytes, before.peak_bytes);
}

TEST(Pass, ObservingCountsAndMovesNothing) {
  const Calls before = CallThreeTimes(kThreeAtOnce, Numbers());
  NewStats();
  const ScopedPass pass({.observe = true});
  EXPECT_EQ(CallThreeTimes(kThreeAtOnce, Numbers()).peak_bytes, before.peak_bytes);
  const PassStats stats = NewStats();
  EXPECT_EQ(stats.reordered, 1);
  EXPECT_GT(stats.saved_bytes, 0);
}

TEST(Pass, ScopesNest) {
  const Calls before = CallThreeTimes(kThreeAtOnce, Numbers());
  EXPECT_FALSE(IsPassEnabled());
  {
    const ScopedPass outer;
    {
      const ScopedPass inner({.observe = true});
      EXPECT_TRUE(IsPassEnabled());
    }
    EXPECT_TRUE(IsPassEnabled());
    EXPECT_LT(CallThreeTimes(kThreeAtOnce, Numbers()).peak_bytes, before.peak_bytes);
  }
  EXPECT_FALSE(IsPassEnabled());
}

TEST(Pass, TheEnvironmentTurnsItOff) {
  setenv("TORCH_EXT_DISABLE", "1", 1);
  EnablePass();
  EXPECT_FALSE(IsPassEnabled());
  const Module module = Define(kThreeAtOnce);
  const Optimized optimized = Optimize(module, {{Numbers()}});
  unsetenv("TORCH_EXT_DISABLE");
  EXPECT_FALSE(optimized.changed);
  EXPECT_EQ(optimized.report.reason, "TORCH_EXT_DISABLE is set in the environment");
}

// The peak is inside a branch, so the branch is ordered; the sum around it stays.
TEST(Pass, BlocksInsideNodesAreOrdered) {
  constexpr const char* kBranch = R"(
    def forward(self, x):
        y = x * 2
        if bool(y.sum() > 0):
            a = y * 2
            b = y * 3
            c = y * 4
            z = a.sum() + b.sum() + c.sum()
        else:
            z = y.sum()
        return z + 1
  )";
  const Calls before = CallThreeTimes(kBranch, Numbers());
  const ScopedPass pass;
  const Calls after = CallThreeTimes(kBranch, Numbers());
  EXPECT_TRUE(after.result.equal(before.result));
  EXPECT_LT(after.peak_bytes, before.peak_bytes);
}

TEST(Pass, LoopBodiesAreOrdered) {
  constexpr const char* kLoop = R"(
    def forward(self, x):
        total = x.sum()
        for i in range(int(x.size(0))):
            a = x * 2
            b = x * 3
            c = x * 4
            total = total + a.sum() + b.sum() * i + c.sum()
        return total
  )";
  const Calls before = CallThreeTimes(kLoop, Numbers());
  const ScopedPass pass;
  const Calls after = CallThreeTimes(kLoop, Numbers());
  EXPECT_TRUE(after.result.equal(before.result));
  EXPECT_LT(after.peak_bytes, before.peak_bytes);
}

// torch compiles them as graphs of their own. Gradients are those of the same calls without a pass.
TEST(Pass, DifferentiableGraphsAreOrdered) {
  constexpr const char* kSource = R"(
    def forward(self, x):
        a = torch.cat([x, x * 2, x * 3], 0).tanh()
        b = torch.cat([x, x * 4, x * 5], 1).tanh()
        return a.sum() + b.sum()
  )";
  const auto gradients = [&] {
    Module module = Define(kSource);
    const at::Tensor input = Numbers().set_requires_grad(true);
    std::vector<at::Tensor> all;
    for (int call = 0; call < 4; ++call) {
      all.push_back(torch::autograd::grad({module.forward({input}).toTensor()}, {input})[0]);
    }
    return all;
  };
  const std::vector<at::Tensor> expected = gradients();
  NewStats();
  const ScopedPass pass;
  const std::vector<at::Tensor> after = gradients();
  for (std::size_t i = 0; i < after.size(); ++i) EXPECT_TRUE(after[i].equal(expected[i])) << i;
  EXPECT_GT(NewStats().graphs_seen, 0);
}

TEST(Pass, LearningDrawsNoRandomNumbers) {
  constexpr const char* kRandom = R"(
    def forward(self, x):
        a = torch.dropout(x, 0.5, True)
        return a + torch.rand_like(x), torch.mm(x, x.t())
  )";
  const auto run = [&] {
    torch::manual_seed(7);
    Module module = Define(kRandom);
    const torch::NoGradGuard no_grad;
    std::vector<at::Tensor> results;
    for (int call = 0; call < 4; ++call) {
      results.push_back(module.forward({Numbers()}).toTupleRef().elements()[0].toTensor());
    }
    return results;
  };
  const std::vector<at::Tensor> expected = run();
  const ScopedPass pass;
  const std::vector<at::Tensor> results = run();
  for (std::size_t i = 0; i < results.size(); ++i) EXPECT_TRUE(results[i].equal(expected[i]));
}

TEST(Pass, DecisionsAreTold) {
  std::vector<std::string> told;
  SetPassLogger([&](bool is_detail, const std::string& message) {
    if (!is_detail) told.push_back(message);
  });
  {
    const ScopedPass pass;
    CallThreeTimes(kThreeAtOnce, Numbers());
    CallThreeTimes("def forward(self, x):\n  return x + 1\n", Numbers());
  }
  SetPassLogger({});
  ASSERT_EQ(told.size(), 2);
  EXPECT_NE(told[0].find("->"), std::string::npos) << told[0];
  EXPECT_NE(told[1].find("left alone: the original order is optimal"), std::string::npos)
      << told[1];
}

TEST(Pass, MayBeTurnedOnAndOffWhileOthersRun) {
  const at::Tensor expected = CallThreeTimes(kThreeAtOnce, Numbers()).result;
  EnablePass();  // registers, before the others compile
  std::atomic<bool> stop = false;
  std::atomic<int> different = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 30; ++i) {
        if (!CallThreeTimes(kThreeAtOnce, Numbers()).result.equal(expected)) ++different;
      }
    });
  }
  std::thread toggler([&] {
    while (!stop) {
      EnablePass();
      DisablePass();
      GetPassStats();
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  toggler.join();
  DisablePass();
  EXPECT_EQ(different, 0);
}

}  // namespace
}  // namespace torch_ext::jit
