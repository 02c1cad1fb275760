#include "jit/optimize.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <limits>
#include <sstream>
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

// What forward takes, without self: "(Tensor x, int n=3)".
std::string Parameters(const c10::FunctionSchema& schema) {
  std::ostringstream text;
  for (std::size_t i = 1; i < schema.arguments().size(); ++i) {
    text << (i == 1 ? "" : ", ") << schema.arguments()[i];
  }
  return "(" + text.str() + ")";
}

// The examples as forward gets them: checked, and with the defaults of what they leave out.
std::vector<Stack> Arguments(const Module& module, const std::vector<Stack>& examples) {
  TORCH_CHECK(!examples.empty(), "at least one example input is needed");
  const c10::FunctionSchema& schema = ForwardMethod(module).function().getSchema();
  std::vector<Stack> arguments = examples;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    Stack& stack = arguments[i];
    const std::string misfit =
        "example " + std::to_string(i) + " does not fit forward" + Parameters(schema) + ": ";
    TORCH_CHECK(stack.size() < schema.arguments().size(), misfit, "it has ", stack.size(),
                " arguments");
    stack.insert(stack.begin(), module._ivalue());
    try {
      schema.checkAndNormalizeInputs(stack);
    } catch (const c10::Error& error) {
      const std::string why = error.what_without_backtrace();
      TORCH_CHECK(false, misfit, why.substr(0, std::min(why.find('\n'), why.find(" Decl"))));
    }
    stack.erase(stack.begin());
  }
  return arguments;
}

// Module and examples on their way through probe, hazards and plan.
class Subject {
 public:
  Subject(const Module& module, const std::vector<Stack>& examples, const OptimizeOptions& options)
      : module_(module), examples_(examples), options_(options), reordered_(module) {
    graph_ = ForwardGraph(reordered_.module());
    report_.threads = at::get_num_threads();
    report_.examples.resize(examples.size());
    report_.reason = WhyRefused();
    nodes_ = OpNodes(graph_->block());
    if (report_.reason.empty()) report_.op_labels = LabelsOf(nodes_, reordered_.module());
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

  // Probes the examples and plans. Returns false with a reason if nothing can be said: then what is
  // known is what MeasureUnplanned finds out.
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
      return true;
    }
    report_.plan = sched::MakePlan(report_.graph, options_.plan);
    KeepCertainBound();
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

  // Runs the original as it is, on copies of all that it may write to, for nobody looked.
  void MeasureUnplanned() {
    ScratchModule original(module_);
    original.CopyConstants();
    for (std::size_t i = 0; i < examples_.size(); ++i) {
      ExamplePeaks& peaks = report_.examples[i];
      peaks.measured_original_peak_bytes = peaks.original_peak_bytes = peaks.peak_bytes =
          Execute(original.module(), examples_[i], /*copy_state=*/true, quiet_).peak_bytes;
      if (peaks.peak_bytes > worst().peak_bytes) report_.worst_example = i;
    }
    report_.plan.original_peak_bytes = report_.plan.peak_bytes = worst().peak_bytes;
    report_.plan.method = "original";
  }

  // Every order of the graph needs the bound at least; a run that needs less, by a byte, is of
  // other sizes than were planned, and of those nothing is known. There is no tolerance: the probe
  // sees what the executor takes to the byte (no model of benchmarks/results and no program of
  // tests/fuzz ran below its bound). Returns whether one did.
  bool IsBoundRefuted() {
    sched::Plan& plan = report_.plan;
    const ExamplePeaks& peaks = worst();
    constexpr std::int64_t kUnknown = std::numeric_limits<std::int64_t>::max();
    const std::int64_t measured = std::min(peaks.measured_original_peak_bytes.value_or(kUnknown),
                                           peaks.measured_peak_bytes.value_or(kUnknown));
    if (measured >= plan.lower_bound_bytes) return false;
    const bool has_failed = report_.verification == Verification::kFailed;
    report_.reason = (has_failed ? report_.reason + "; " : "") + "the program ran with less (" +
                     std::to_string(measured) + " bytes) than the bound of the captured graph (" +
                     std::to_string(plan.lower_bound_bytes) +
                     " bytes): it ran other sizes than were planned, so nothing is proven";
    plan.lower_bound_bytes = 0;
    plan.proof.clear();
    plan.bottleneck.reset();
    for (sched::Region& region : plan.regions) region.proof.clear();
    return true;
  }

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
      return "the module has forward hooks, which a reordered copy would lose; it was measured "
             "without them";
    }
    if (at::autocast::is_autocast_enabled(at::kCPU)) {
      return "autocast is enabled, and its casts are no part of the module: leave torch.autocast "
             "for this call";
    }
    try {
      PrepareGraph(graph_);
    } catch (const c10::Error& error) {
      return std::string("the graph cannot be prepared: ") + error.what_without_backtrace();
    } catch (const std::exception& error) {
      return std::string("the graph cannot be prepared: ") + error.what();
    }
    return {};
  }

  // A bound of the planned sizes says nothing of the program where those are not certain.
  void KeepCertainBound() {
    sched::Plan& plan = report_.plan;
    is_best_as_planned_ = plan.is_optimal();
    Probe probe = probes_[report_.worst_example];
    std::int64_t bound_bytes = plan.lower_bound_bytes;
    if (KeepCertain(CertainNodes(graph_), probe)) {
      const sched::Graph graph = ExtractGraph(nodes_, probe, hazards_);
      const sched::Plan bounding = sched::MakePlan(graph, options_.plan);
      plan.seconds += bounding.seconds;
      bound_bytes = std::min(bound_bytes, bounding.lower_bound_bytes);
      plan.bottleneck = bounding.bottleneck;
      if (plan.bottleneck) {
        std::erase_if(plan.bottleneck->buffers,
                      [&](sched::BufferId b) { return graph.buffer(b).size_bytes == 0; });
      }
    }
    if (probe.released_bytes > 0) plan.bottleneck.reset();
    bound_bytes = std::max<std::int64_t>(0, bound_bytes - probe.released_bytes);
    if (bound_bytes == plan.lower_bound_bytes) return;
    plan.lower_bound_bytes = bound_bytes;
    plan.proof.clear();
    for (sched::Region& region : plan.regions) region.proof.clear();
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
    if (is_best_as_planned_) {
      return "no order is lower by the sizes that were planned, but what loops, lists and tasks "
             "hold, and how much older memory is released when, is not certain; proven is " +
             Mebibytes(plan.lower_bound_bytes);
    }
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
  bool is_best_as_planned_ = false;
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
  const std::vector<Stack> arguments = Arguments(module, examples);
  Subject subject(module, arguments, options);
  Report& report = subject.report();
  const bool planned = subject.Plan();
  bool changed = planned && subject.has_gain();
  if (changed) {
    subject.Apply();
    if (options.verify) {
      report.reason = Verify(subject, module, arguments);
      changed = report.reason.empty();
    }
  } else if (planned && options.verify) {
    MeasureOriginal(subject, module, arguments);
    report.identical = true;
    report.verification = Verification::kPassed;
  }
  if (!planned) subject.MeasureUnplanned();
  if (subject.IsBoundRefuted()) changed = false;
  if (planned && !changed) subject.KeepOriginal();
  if (!changed) {
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
  const std::vector<Stack> arguments = Arguments(module, examples);
  Subject subject(module, arguments, options);
  if (subject.Plan()) {
    MeasureOriginal(subject, module, arguments);
    if (subject.IsBoundRefuted()) subject.KeepOriginal();
    subject.DescribePeak();
  } else {
    subject.MeasureUnplanned();
  }
  return std::move(subject.report());
}

std::optional<std::int64_t> PeakWithGradients(const Module& module, const Stack& example) {
  const Stack arguments = Arguments(module, {example}).front();
  bool any = false;
  for (const at::Tensor& parameter : module.parameters()) any |= parameter.requires_grad();
  if (!any) return std::nullopt;
  const QuietRun quiet;
  const at::AutoGradMode with_gradients(true);
  ScratchModule clone(module);
  try {
    return Execute(clone.module(), arguments, /*copy_state=*/true, quiet).peak_bytes;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

Comparison Compare(const Module& a, const Module& b, const std::vector<Stack>& examples) {
  const QuietRun quiet;
  ScratchModule clone_a(a), clone_b(b);
  const std::vector<Stack> inputs_a = Arguments(a, examples), inputs_b = Arguments(b, examples);
  Comparison comparison;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    const Execution run_a = Execute(clone_a.module(), inputs_a[i], /*copy_state=*/true, quiet);
    const Execution run_b = Execute(clone_b.module(), inputs_b[i], /*copy_state=*/true, quiet);
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
