// Optimize(module, examples): the whole way from a TorchScript module to the same module with its
// operations in a better order, verified by running. When anything cannot be vouched for, the
// original module comes back and the report says why.
//
// The bound is of the graph as it was planned, for every order of its ops. A run that needs less,
// by a byte, was of other sizes: then nothing is proven (the bound is 0), and the original comes
// back. Of a module that is left alone the peaks are measured, and the graph is empty.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "jit/overwrite_rules.h"
#include "jit/values.h"
#include "program/levers/levers.h"
#include "program/levers/slice_search.h"
#include "program/program.h"
#include "program/reason.h"
#include "sched/graph.h"
#include "sched/plan.h"

namespace torch_ext::jit {

struct OptimizeOptions {
  sched::PlanOptions plan;
  program::Levers levers;
  OverwriteRules overwrite_rules;

  bool verify = true;
  std::map<std::string, std::int64_t> op_nanoseconds;  // by names; empty: to be measured
};

// Bytes of activations; parameters and inputs are not in them.
struct ExamplePeaks {
  std::int64_t original_peak_bytes = 0;
  std::int64_t peak_bytes = 0;
  std::int64_t input_bytes = 0;
  std::optional<std::int64_t> measured_original_peak_bytes;
  std::optional<std::int64_t> measured_peak_bytes;
};

enum class Verification { kNotRun, kPassed, kFailed };

struct Report {
  program::Program original;  // of the example with the highest peak, before any edit
  program::Program sliced;    // the same with stretches and repeats as ops, if there are any
  program::Program program;   // the same with the edits done, if there are any
  sched::Graph graph;         // that program as the core sees it, with the same ids
  sched::Plan plan;           // of that graph; its order is that of the returned module
  program::Edits edits;       // of `sliced`
  std::vector<program::SliceUse> slices;
  std::vector<program::SliceTrial> slice_trials;  // that gave the same bits
  std::vector<program::RepeatUse> repeats;
  std::optional<program::RepeatTimes> times;  // where repeats were planned
  // Proven over slices and repeats, too, where these were asked for; the plan's bound is over the
  // others. Nothing where none is known.
  std::optional<std::int64_t> floor_bytes;
  std::vector<program::LeverUse> levers;
  std::vector<ExamplePeaks> examples;
  std::size_t worst_example = 0;  // the one `program` is of
  std::int64_t parameter_bytes = 0;
  int threads = 0;
  Verification verification = Verification::kNotRun;
  std::optional<bool> identical;
  std::vector<program::Reason> reasons;  // why nothing was gained; none if something was
  std::string reason;                    // the same in English
};

struct Optimized {
  torch::jit::Module module;  // shares parameters and buffers with the one given
  bool changed = false;       // false: `module` is the one given
  Report report;
};

// `examples`: one stack of forward's arguments (without self) for each example. Neither the module,
// its state, the examples nor the global random state are changed. Runs without grad.
// Throws c10::Error for a module without forward and for an example that does not fit it (arguments
// with defaults may be left out), and whatever the module throws when it runs. So do all below.
Optimized Optimize(const torch::jit::Module& module, const std::vector<Stack>& examples,
                   const OptimizeOptions& options = {});

// The same report without making a module; measures the original only.
Report Analyze(const torch::jit::Module& module, const std::vector<Stack>& examples,
               const OptimizeOptions& options = {});

// The measured peak of a call with gradients enabled, which keeps what a backward pass would need;
// nothing if no parameter requires gradients, or if the module cannot run so.
std::optional<std::int64_t> PeakWithGradients(const torch::jit::Module& module,
                                              const Stack& example);

// Runs both modules on copies of the examples; see Report for what is compared.
struct Comparison {
  std::string difference;                                // empty: identical in every run
  std::vector<std::int64_t> peak_bytes_a, peak_bytes_b;  // measured, per example
};
Comparison Compare(const torch::jit::Module& a, const torch::jit::Module& b,
                   const std::vector<Stack>& examples);

// The same of a module that overwrites or has slices, and of the original inside of it: are kernels
// of this machine as those of the machine that made it? Throws c10::Error if there is no original.
Comparison CompareWithOriginal(const torch::jit::Module& module,
                               const std::vector<Stack>& examples);

}  // namespace torch_ext::jit
