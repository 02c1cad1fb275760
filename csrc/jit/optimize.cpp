#include "jit/optimize.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <unordered_set>

#include "jit/execute.h"
#include "jit/extract.h"
#include "jit/hazards.h"
#include "jit/memory_meter.h"
#include "jit/nodes.h"
#include "jit/pass.h"
#include "jit/prepare.h"
#include "jit/probe.h"
#include "sched/simulate.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;

std::int64_t StorageBytes(const std::vector<c10::IValue>& values) {
  std::unordered_set<const void*> seen;
  std::int64_t bytes = 0;
  for (const c10::IValue& value : values) {
    ForEachTensor(value, /*enter_modules=*/true, [&](const at::Tensor& tensor) {
      if (HasMemory(tensor) && seen.insert(tensor.storage().unsafeGetStorageImpl()).second) {
        bytes += static_cast<std::int64_t>(tensor.storage().nbytes());
      }
    });
  }
  return bytes;
}

// Module and examples on their way through probe, hazards and plan.
class Subject {
 public:
  Subject(const Module& module, const std::vector<Stack>& examples, const OptimizeOptions& options)
      : module_(module), examples_(examples), options_(options), reordered_(module) {
    TORCH_CHECK(!examples.empty(), "at least one example input is needed");
    graph_ = ForwardGraph(reordered_.module());
    report_.threads = at::get_num_threads();
    report_.examples.resize(examples.size());
    report_.reason = WhyRefused();
    if (!report_.reason.empty()) return;
    nodes_ = OpNodes(graph_->block());
    report_.op_labels = LabelsOf(nodes_, reordered_.module());
    std::vector<c10::IValue> owned{module._ivalue()};
    for (const Node* node : graph_->block()->nodes()) {
      if (node->kind() == c10::prim::Constant && node->hasAttribute(c10::attr::value) &&
          node->kindOf(c10::attr::value) == torch::jit::AttributeKind::t) {
        owned.emplace_back(node->t(c10::attr::value));
      }
    }
    report_.parameter_bytes = StorageBytes(owned);
    for (std::size_t i = 0; i < examples.size(); ++i) {
      report_.examples[i].input_bytes = StorageBytes(examples[i]);
    }
  }

  Report& report() { return report_; }
  ScratchModule& reordered() { return reordered_; }
  const QuietRun& quiet() const { return quiet_; }
  bool copy_state() const { return hazards_.writes_outside; }
  bool has_gain() const { return report_.plan.peak_bytes < report_.plan.original_peak_bytes; }

  // Probes the examples and plans. Returns false with a reason if nothing can be said.
  bool Plan() {
    if (!report_.reason.empty()) return false;
    // A first look without probes: what must not even be run on shared state.
    hazards_ = FindHazards(graph_, nodes_, {});
    report_.reason = hazards_.refusal;
    if (!report_.reason.empty()) return false;
    for (const Stack& example : examples_) probes_.push_back(ProbeExample(example));
    hazards_ = FindHazards(graph_, nodes_, probes_);
    for (const Probe& probe : probes_) graphs_.push_back(ExtractGraph(nodes_, probe, hazards_));
    for (std::size_t i = 0; i < graphs_.size(); ++i) {
      ExamplePeaks& peaks = report_.examples[i];
      peaks.original_peak_bytes = peaks.peak_bytes =
          sched::PeakBytes(graphs_[i], graphs_[i].OriginalOrder());
      if (peaks.original_peak_bytes > worst().original_peak_bytes) report_.worst_example = i;
    }
    report_.graph = graphs_[report_.worst_example];
    for (const Allocation& allocation : probes_[report_.worst_example].allocations) {
      report_.buffer_labels.push_back({allocation.shape, allocation.dtype});
    }
    if (std::ranges::any_of(probes_, &Probe::other_devices)) {
      report_.reason = "some tensors are not in the CPU's memory, which is all that is measured";
      KeepOriginal();
      return false;
    }
    report_.plan = sched::MakePlan(report_.graph, options_.plan);
    for (std::size_t i = 0; i < graphs_.size(); ++i) {
      report_.examples[i].peak_bytes = sched::PeakBytes(graphs_[i], report_.plan.order);
      if (report_.examples[i].peak_bytes > report_.examples[i].original_peak_bytes) {
        report_.reason = "the order that is best for example " +
                         std::to_string(report_.worst_example) + " raises the peak of example " +
                         std::to_string(i);
        KeepOriginal();
        return true;
      }
    }
    if (!has_gain()) report_.reason = WhyNothingWasGained();
    return true;
  }

  void Apply() { ApplyOrder(graph_->block(), nodes_, report_.plan.order); }

  // The report tells of the original order from here on.
  void KeepOriginal() {
    sched::Plan& plan = report_.plan;
    plan.order = report_.graph.OriginalOrder();
    plan.original_peak_bytes = plan.peak_bytes = sched::PeakBytes(report_.graph, plan.order);
    plan.method = "original";
    plan.moved_ops = 0;
    if (!plan.is_optimal()) plan.proof.clear();
    for (sched::Region& region : plan.regions) region.method = "original";
    for (ExamplePeaks& peaks : report_.examples) peaks.peak_bytes = peaks.original_peak_bytes;
    if (options_.plan.memory_budget_bytes) {
      plan.budget_met = plan.peak_bytes <= *options_.plan.memory_budget_bytes;
    }
  }

  void DescribePeak() {
    const sched::Graph& graph = report_.graph;
    const sched::Order& order = report_.plan.order;
    const std::int32_t at = sched::Simulate(graph, order).PeakPosition();
    if (at < 0) return;
    for (sched::BufferId b : sched::LiveBuffersAt(graph, order, at)) {
      const sched::Buffer& buffer = graph.buffer(b);
      const BufferLabel& label = report_.buffer_labels[b];
      const OpLabel& op = report_.op_labels[buffer.producer];
      report_.at_peak.push_back({buffer.name, buffer.size_bytes, label.shape, label.dtype,
                                 graph.op(buffer.producer).name, op.module_path, op.source});
    }
    std::ranges::stable_sort(report_.at_peak, std::greater<>(), &PeakBuffer::bytes);
  }

 private:
  // Prepares the graph; what cannot be prepared is left alone.
  std::string WhyRefused() {
    if (IsDisabledByEnvironment()) return "TORCH_EXT_DISABLE is set in the environment";
    if (!module_.type()->getForwardHooks().empty() ||
        !module_.type()->getForwardPreHooks().empty()) {
      return "the module has forward hooks, which a reordered copy would lose";
    }
    try {
      PrepareGraph(graph_);
    } catch (const c10::Error& error) {
      return std::string("torch's own passes fail on the graph: ") + error.what_without_backtrace();
    } catch (const std::exception& error) {
      return std::string("torch's own passes fail on the graph: ") + error.what();
    }
    return {};
  }

  ExamplePeaks& worst() { return report_.examples[report_.worst_example]; }

  Probe ProbeExample(const Stack& example) {
    return RunProbe(graph_, [&] {
      quiet_.RewindRandomState();
      ValueCopier copier;
      Stack inputs{copy_state() ? DeepCopy(reordered_.module())._ivalue()
                                : reordered_.module()._ivalue()};
      for (const c10::IValue& input : example) inputs.push_back(copier.Copy(input));
      return inputs;
    });
  }

  std::string WhyNothingWasGained() const {
    const sched::Plan& plan = report_.plan;
    if (report_.graph.num_ops() == 0 || plan.original_peak_bytes == 0) {
      return "no op takes memory, so there is nothing to order";
    }
    std::string held;
    if (!hazards_.edges.empty()) {
      const sched::Graph free = ExtractGraph(nodes_, probes_[report_.worst_example], Hazards{});
      const std::int64_t free_peak = sched::MakePlan(free, options_.plan).peak_bytes;
      if (free_peak < plan.peak_bytes) {
        held =
            "ops that write in place, draw random numbers or have side effects hold others in "
            "place; without that " +
            Mebibytes(free_peak) + " would do";
        if (!hazards_.barriers.empty())
          held += " (not passed by anything: " + hazards_.barriers[0] + ")";
      }
    }
    if (plan.is_optimal() && plan.bottleneck) {
      const sched::Bottleneck& b = *plan.bottleneck;
      std::string reason =
          "the original order is optimal: no order runs " + report_.graph.op(b.op).name;
      const std::string& source = report_.op_labels[b.op].source;
      if (!source.empty()) reason += " (" + source + ")";
      reason += " with less than " + Mebibytes(b.bytes) + ", for these must be alive together:";
      std::vector<sched::BufferId> buffers = b.buffers;
      std::ranges::stable_sort(buffers, std::greater<>(), [&](sched::BufferId id) {
        return report_.graph.buffer(id).size_bytes;
      });
      constexpr std::size_t kMost = 4;
      for (std::size_t i = 0; i < buffers.size() && i < kMost; ++i) {
        const sched::Buffer& buffer = report_.graph.buffer(buffers[i]);
        reason += (i == 0 ? " " : ", ") + buffer.name + " " + Mebibytes(buffer.size_bytes);
      }
      if (buffers.size() > kMost) reason += ", ...";
      const std::int64_t workspace = report_.graph.op(b.op).workspace_bytes;
      if (workspace > 0) reason += " and its scratch memory " + Mebibytes(workspace);
      return held.empty() ? reason : reason + "; " + held;
    }
    if (!held.empty()) return held;
    return "no better order was found within the budget; the lower bound is " +
           Mebibytes(plan.lower_bound_bytes);
  }

  const Module& module_;
  const std::vector<Stack>& examples_;
  const OptimizeOptions& options_;
  QuietRun quiet_;
  ScratchModule reordered_;
  std::shared_ptr<Graph> graph_;
  std::vector<Node*> nodes_;
  Hazards hazards_;
  std::vector<Probe> probes_;
  std::vector<sched::Graph> graphs_;
  Report report_;
};

// Runs original and reordered side by side. Returns why the reordered one must not be used, if so.
std::string Verify(Subject& subject, const Module& original, const std::vector<Stack>& examples) {
  Report& report = subject.report();
  ScratchModule before_module(original), after_module(subject.reordered().module());
  bool lower_anywhere = false;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    ExamplePeaks& peaks = report.examples[i];
    const Execution before =
        Execute(before_module.module(), examples[i], subject.copy_state(), subject.quiet());
    peaks.measured_original_peak_bytes = before.peak_bytes;
    std::string difference;
    try {
      const Execution after =
          Execute(after_module.module(), examples[i], subject.copy_state(), subject.quiet());
      difference = FindDifference(before, after);
      peaks.measured_peak_bytes = after.peak_bytes;
    } catch (const std::exception& error) {
      difference = std::string("the reordered module raises: ") + error.what();
    }
    if (!difference.empty()) {
      report.verification = Verification::kFailed;
      report.identical = false;
      const Execution again =
          Execute(before_module.module(), examples[i], subject.copy_state(), subject.quiet());
      return FindDifference(before, again).empty()
                 ? "verification failed: " + difference
                 : "verification failed: the original does not give the same result twice (" +
                       difference + ")";
    }
    if (*peaks.measured_peak_bytes > *peaks.measured_original_peak_bytes) {
      report.verification = Verification::kFailed;
      return "verification failed: the measured peak rose from " +
             Mebibytes(*peaks.measured_original_peak_bytes) + " to " +
             Mebibytes(*peaks.measured_peak_bytes);
    }
    lower_anywhere |= *peaks.measured_peak_bytes < *peaks.measured_original_peak_bytes;
  }
  report.identical = true;
  report.verification = Verification::kPassed;
  if (!lower_anywhere) {
    return "a gain was predicted but the executor shows none, so the original order is kept";
  }
  return {};
}

void MeasureOriginal(Subject& subject, const Module& module, const std::vector<Stack>& examples) {
  ScratchModule original(module);
  for (std::size_t i = 0; i < examples.size(); ++i) {
    subject.report().examples[i].measured_original_peak_bytes =
        Execute(original.module(), examples[i], subject.copy_state(), subject.quiet()).peak_bytes;
  }
}

}  // namespace

Optimized Optimize(const Module& module, const std::vector<Stack>& examples,
                   const OptimizeOptions& options) {
  Subject subject(module, examples, options);
  Report& report = subject.report();
  const bool planned = subject.Plan();
  bool changed = planned && subject.has_gain();
  if (changed) {
    subject.Apply();
    if (options.verify) {
      report.reason = Verify(subject, module, examples);
      changed = report.reason.empty();
    }
  } else if (planned && options.verify) {
    MeasureOriginal(subject, module, examples);
    for (ExamplePeaks& peaks : report.examples) {
      peaks.measured_peak_bytes = peaks.measured_original_peak_bytes;
    }
    report.identical = true;
    report.verification = Verification::kPassed;
  }
  if (planned && !changed) {
    subject.KeepOriginal();
    for (ExamplePeaks& peaks : report.examples) {
      peaks.measured_peak_bytes = peaks.measured_original_peak_bytes;
    }
  }
  if (planned) subject.DescribePeak();
  if (options.plan.memory_budget_bytes) {
    bool met = true;
    for (const ExamplePeaks& peaks : report.examples) {
      met &= std::max(peaks.peak_bytes, peaks.measured_peak_bytes.value_or(0)) <=
             *options.plan.memory_budget_bytes;
    }
    report.plan.budget_met = met;
  }
  return {changed ? subject.reordered().Keep() : module, changed, std::move(report)};
}

Report Analyze(const Module& module, const std::vector<Stack>& examples,
               const OptimizeOptions& options) {
  Subject subject(module, examples, options);
  if (subject.Plan()) {
    MeasureOriginal(subject, module, examples);
    subject.DescribePeak();
  }
  return std::move(subject.report());
}

std::optional<std::int64_t> PeakWithGradients(const Module& module, const Stack& example) {
  bool any = false;
  for (const at::Tensor& parameter : module.parameters()) any |= parameter.requires_grad();
  if (!any) return std::nullopt;
  const QuietRun quiet;
  const at::AutoGradMode with_gradients(true);
  ScratchModule clone(module);
  try {
    return Execute(clone.module(), example, /*copy_state=*/true, quiet).peak_bytes;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

Comparison Compare(const Module& a, const Module& b, const std::vector<Stack>& examples) {
  const QuietRun quiet;
  ScratchModule clone_a(a), clone_b(b);
  Comparison comparison;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    const Execution run_a = Execute(clone_a.module(), examples[i], /*copy_state=*/true, quiet);
    const Execution run_b = Execute(clone_b.module(), examples[i], /*copy_state=*/true, quiet);
    comparison.peak_bytes_a.push_back(run_a.peak_bytes);
    comparison.peak_bytes_b.push_back(run_b.peak_bytes);
    const std::string difference = FindDifference(run_a, run_b);
    if (!difference.empty() && comparison.difference.empty()) {
      comparison.difference = "example " + std::to_string(i) + ": " + difference;
    }
  }
  return comparison;
}

}  // namespace torch_ext::jit
