#include "jit/optimize.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <cstdlib>
#include <string>

#include "support/modules.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Module;

// Calls that the op takes scratch memory in, from now on.
int g_calls_with_scratch = 0;

at::Tensor Moody(const at::Tensor& x) {
  at::Tensor scratch;
  if (g_calls_with_scratch-- > 0) scratch = torch::ones({1 << 20});
  return x;
}

TORCH_LIBRARY(torch_ext_optimize_test, m) {
  m.def("moody(Tensor(a) x) -> Tensor(a)", &Moody);
}

constexpr int kAlways = 1'000'000;

at::Tensor Rows() {
  return torch::ones({256, 16});
}

// Order can lower the peak; beside the branches is an op that takes scratch memory, or not.
Module Branches() {
  return DefineFromIr(R"(
    graph(%self, %x : Tensor):
      %one : int = prim::Constant[value=1]()
      %few : int = prim::Constant[value=64]()
      %more : int = prim::Constant[value=65]()
      %false : bool = prim::Constant[value=0]()
      %none : NoneType = prim::Constant()
      %rows : int[] = prim::ListConstruct(%one)
      %times_a : int[] = prim::ListConstruct(%one, %few)
      %times_b : int[] = prim::ListConstruct(%one, %more)
      %a : Tensor = aten::repeat(%x, %times_a)
      %b : Tensor = aten::repeat(%x, %times_b)
      %c : Tensor = torch_ext_optimize_test::moody(%x)
      %sum_a : Tensor = aten::sum(%a, %rows, %false, %none)
      %sum_b : Tensor = aten::sum(%b, %rows, %false, %none)
      %sum_c : Tensor = aten::sum(%c, %rows, %false, %none)
      %ab : Tensor = aten::add(%sum_a, %sum_b, %one)
      %abc : Tensor = aten::add(%ab, %sum_c, %one)
      return (%abc))");
}

std::string ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST(Optimize, ARunOfTheBoundOrMoreIsNoFault) {
  g_calls_with_scratch = kAlways;
  const Optimized optimized = Optimize(Branches(), {{Rows()}});
  EXPECT_TRUE(optimized.changed) << optimized.report.reason;
  EXPECT_TRUE(optimized.report.plan.is_optimal());
  EXPECT_EQ(optimized.report.plan.lower_bound_bytes,
            *optimized.report.examples[0].measured_peak_bytes);
}

TEST(Optimize, ARunBelowTheBoundProvesNothingAndTheOriginalIsKept) {
  g_calls_with_scratch = 2;  // while the program is probed
  const Module module = Branches();
  const Optimized optimized = Optimize(module, {{Rows()}});
  const Report& report = optimized.report;
  EXPECT_FALSE(optimized.changed);
  EXPECT_EQ(optimized.module._ivalue(), module._ivalue());
  EXPECT_EQ(report.plan.lower_bound_bytes, 0);
  EXPECT_FALSE(report.plan.is_optimal());
  EXPECT_EQ(report.plan.proof, sched::Proof::kNone);
  EXPECT_FALSE(report.plan.bottleneck.has_value());
  EXPECT_EQ(report.plan.order, report.graph.OriginalOrder());
  EXPECT_EQ(report.plan.peak_bytes, report.plan.original_peak_bytes);
  EXPECT_EQ(report.examples[0].measured_peak_bytes,
            report.examples[0].measured_original_peak_bytes);
  const std::string measured = std::to_string(*report.examples[0].measured_original_peak_bytes);
  EXPECT_TRUE(report.reason.starts_with("the program ran with less (")) << report.reason;
  EXPECT_TRUE(report.reason.ends_with("nothing is proven")) << report.reason;
}

TEST(Optimize, AnalyzeFindsTheSameFault) {
  g_calls_with_scratch = 2;
  const Report report = Analyze(Branches(), {{Rows()}});
  EXPECT_EQ(report.plan.lower_bound_bytes, 0);
  EXPECT_EQ(report.plan.order, report.graph.OriginalOrder());
  EXPECT_TRUE(report.reason.ends_with("nothing is proven")) << report.reason;
}

TEST(Optimize, WithoutARunNothingIsRefuted) {
  g_calls_with_scratch = 2;
  OptimizeOptions options;
  options.verify = false;
  const Report report = Optimize(Branches(), {{Rows()}}, options).report;
  EXPECT_GT(report.plan.lower_bound_bytes, 0);
  EXPECT_FALSE(report.examples[0].measured_peak_bytes.has_value());
}

TEST(Optimize, ReleasedMemoryThatIsOlderThanTheCallLowersTheBound) {
  Module module = Define("");
  module.register_attribute("last", c10::TensorType::get(), torch::ones({1 << 16}));
  module.define(R"(
    def forward(self, x):
        self.last = x.sum(1)
        return torch.exp(x.repeat(1, 8)).sum(1)
  )");
  const Report report = Optimize(module, {{Rows()}}).report;
  EXPECT_LE(report.plan.lower_bound_bytes, *report.examples[0].measured_peak_bytes);
  EXPECT_LT(*report.examples[0].measured_peak_bytes, report.plan.peak_bytes);
  EXPECT_FALSE(report.plan.is_optimal());
  EXPECT_FALSE(report.reason.ends_with("nothing is proven")) << report.reason;
}

// What a module that nobody planned for needs is measured.
void ExpectMeasuredOnly(const Module& module, const Stack& example, const std::string& why) {
  for (const Report& report : {Optimize(module, {example}).report, Analyze(module, {example})}) {
    EXPECT_NE(report.reason.find(why), std::string::npos) << report.reason;
    const ExamplePeaks& peaks = report.examples.at(0);
    ASSERT_TRUE(peaks.measured_original_peak_bytes.has_value());
    EXPECT_GT(*peaks.measured_original_peak_bytes, 0);
    EXPECT_EQ(report.plan.original_peak_bytes, *peaks.measured_original_peak_bytes);
    EXPECT_EQ(report.plan.peak_bytes, *peaks.measured_original_peak_bytes);
    EXPECT_EQ(report.plan.lower_bound_bytes, 0);
    EXPECT_FALSE(report.plan.is_optimal());
    EXPECT_EQ(peaks.input_bytes, example[0].toTensor().nbytes());
  }
}

TEST(Optimize, DisabledByTheEnvironmentItMeasures) {
  const Module module = Branches();
  setenv("TORCH_EXT_DISABLE", "1", /*overwrite=*/1);
  EXPECT_NO_THROW(ExpectMeasuredOnly(module, {Rows()}, "TORCH_EXT_DISABLE"));
  unsetenv("TORCH_EXT_DISABLE");
}

TEST(Optimize, InsideAutocastItMeasures) {
  const Module module = Branches();
  at::autocast::set_autocast_enabled(at::kCPU, true);
  EXPECT_NO_THROW(ExpectMeasuredOnly(module, {Rows()}, "leave torch.autocast"));
  at::autocast::set_autocast_enabled(at::kCPU, false);
}

TEST(Optimize, WhatWritesToItsConstantsIsMeasuredOnOthers) {
  const Module module = DefineFromIr(R"(
    graph(%self, %x : Tensor):
      %one : int = prim::Constant[value=1]()
      %constant : Tensor = prim::Constant()
      %written : Tensor = aten::add_(%constant, %x, %one)
      %y : Tensor = aten::add(%written, %x, %one)
      return (%y))");
  const at::Tensor constant = torch::zeros({256, 16});
  for (torch::jit::Node* node : module.get_method("forward").graph()->nodes()) {
    const bool is_tensor = node->output()->type()->kind() == c10::TypeKind::TensorType;
    if (node->kind() == c10::prim::Constant && is_tensor) node->t_(c10::attr::value, constant);
  }
  ExpectMeasuredOnly(module, {Rows()}, "constant");
  EXPECT_TRUE(constant.equal(torch::zeros({256, 16})));
}

TEST(Optimize, ExamplesAreCheckedAgainstForward) {
  const Module module = Define(R"(
    def forward(self, x, n: int, scale: float = 2.0):
        return torch.exp(x.repeat(1, 64)).sum(1) * n * scale
  )");
  const Stack good{Rows(), 3};
  const std::string takes = "example 1 does not fit forward(Tensor x, int n, float scale=2.): ";
  for (const auto& [bad, why] : {
           std::pair{Stack{Rows()}, "forward() is missing value for argument 'n'."},
           std::pair{Stack{Rows(), 3, 1.0, 5}, "it has 4 arguments"},
           std::pair{Stack{}, "forward() is missing value for argument 'x'."},
           std::pair{Stack{3, 3},
                     "forward() Expected a value of type 'Tensor (inferred)' for "
                     "argument 'x' but instead found type 'int'."},
       }) {
    const std::vector<Stack> examples{good, bad};
    for (const std::string& error : {
             ErrorOf([&] { Optimize(module, examples); }),
             ErrorOf([&] { Analyze(module, examples); }),
             ErrorOf([&] { Compare(module, module, examples); }),
         }) {
      EXPECT_EQ(error, takes + why);
    }
    EXPECT_NE(ErrorOf([&] { PeakWithGradients(module, bad); }), "no error");
  }
  EXPECT_EQ(ErrorOf([&] { Compare(module, module, {}); }), "at least one example input is needed");
}

TEST(Optimize, DefaultsMayBeLeftOut) {
  const Module module = Define(R"(
    def forward(self, x, scale: float = 2.0):
        return torch.exp(x.repeat(1, 64)).sum(1) * scale
  )");
  const Report report = Optimize(module, {{Rows()}, {Rows(), 3.0}}).report;
  EXPECT_TRUE(report.identical);
  EXPECT_EQ(Compare(module, module, {{Rows()}}).difference, "");
}

}  // namespace
}  // namespace torch_ext::jit
