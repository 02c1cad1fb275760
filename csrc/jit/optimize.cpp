#include "jit/optimize.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <sstream>
#include <unordered_map>
#include <unordered_set>

#include "jit/apply.h"
#include "jit/execute.h"
#include "jit/fallback.h"
#include "jit/fixed_numbers.h"
#include "jit/interference.h"
#include "jit/nodes.h"
#include "jit/pass.h"
#include "jit/prepare.h"
#include "jit/probe.h"
#include "jit/repeats.h"
#include "jit/slices.h"
#include "jit/timing.h"
#include "jit/to_program.h"
#include "program/amount.h"
#include "program/levers/repeat_bound.h"
#include "program/levers/repeat_search.h"
#include "program/levers/slice_search.h"
#include "program/lower.h"
#include "sched/budget.h"
#include "sched/simulate.h"

namespace torch_ext::jit {
namespace {

using program::Reason;
using program::ReasonKind;
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

bool HaveSizes(const std::vector<Stack>& examples, const InputSizes& sizes) {
  return std::ranges::all_of(examples, [&](const Stack& example) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      // The first input of a graph is the module.
      if (sizes[i] && example[i - 1].toTensor().sizes() != *sizes[i]) return false;
    }
    return true;
  });
}

// As PrepareGraph; of a graph that is for other sizes the original is what is left.
Fallback PrepareFor(const std::vector<Stack>& examples, std::shared_ptr<Graph>& graph) {
  Fallback fallback = PrepareGraph(graph);
  if (HaveSizes(examples, fallback.sizes)) return fallback;
  PutBack(*graph, fallback);
  return PrepareGraph(graph);
}

// Module and examples on their way through probe, hazards and plan.
class Subject {
 public:
  Subject(const Module& module, const std::vector<Stack>& examples, const OptimizeOptions& options)
      : module_(module), examples_(examples), options_(options), reordered_(module) {
    graph_ = ForwardGraph(reordered_.module());
    report_.threads = at::get_num_threads();
    report_.examples.resize(examples.size());
    LeaveAlone(WhyRefused());
    nodes_ = OpNodes(graph_->block());
    marks_ = TakeMarks(nodes_);
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
  const std::vector<std::int64_t>& marks() const { return marks_; }
  bool copy_state() const { return interference_.writes_outside; }
  bool has_gain() const {
    return report_.plan.peak_bytes < report_.plan.original_peak_bytes || lowers_arena_;
  }
  bool lowers_arena() const { return lowers_arena_; }

  // Probes the examples and plans. Returns false with a reason if nothing can be said: then what is
  // known is what MeasureUnplanned finds out.
  bool Plan() {
    if (!report_.reasons.empty()) return false;
    // A first look without probes: what must not even be run on shared state.
    interference_ = FindInterference(graph_, nodes_, {});
    LeaveAlone(interference_.refusal);
    if (!report_.reasons.empty()) return false;
    if (fixes_numbers_) FixNumbers();
    for (const Stack& example : examples_) probes_.push_back(RunProbe(graph_, InputsOf(example)));
    interference_ = FindInterference(graph_, nodes_, probes_);
    if (options_.levers.overwrite && !IsElsewhere()) {
      overwritable_ =
          FindOverwritable(graph_, nodes_, probes_, interference_, options_.overwrite_rules);
      if (overwritable_.refusal.empty()) copyable_ = FindCopyable(nodes_, probes_);
    }
    for (std::size_t i = 0; i < probes_.size(); ++i) {
      program::Program& program =
          programs_.emplace_back(ToProgram(nodes_, probes_[i], interference_));
      if (!overwritable_.forms.empty()) program.overwritable = overwritable_.overwrites[i];
      if (!copyable_.forms.empty()) program.copyable = copyable_.copies[i];
      Label(program, nodes_, reordered_.module());
      if (name_) name_(program);
      const sched::Graph graph = program::Lower(program);
      ExamplePeaks& peaks = report_.examples[i];
      peaks.original_peak_bytes = peaks.peak_bytes = sched::PeakBytes(graph, graph.OriginalOrder());
      if (peaks.original_peak_bytes > worst().original_peak_bytes) report_.worst_example = i;
    }
    report_.original = report_.sliced = programs_[report_.worst_example];
    if (IsElsewhere()) {
      LeaveAlone(kElsewhere);
      KeepOriginal();
      return true;
    }
    PlanWorst();
    for (std::size_t i = 0; i < programs_.size(); ++i) {
      ExamplePeaks& peaks = report_.examples[i];
      peaks.peak_bytes = PlannedPeak(programs_[i]);
      if (peaks.peak_bytes > peaks.original_peak_bytes) {
        report_.reasons = {{.kind = ReasonKind::kRaisesOther,
                            .detail = "what is best for example " +
                                      std::to_string(report_.worst_example) +
                                      " raises the peak of example " + std::to_string(i)}};
        KeepOriginal();
        return true;
      }
    }
    if (!has_gain()) ExplainNoGain();
    return true;
  }

  void Apply() {
    if (!report_.edits.empty() && !fallback_) fallback_.graph = graph_->copy();
    ApplyEdits(graph_->block(), nodes_, OldOrder(), report_.edits, overwritable_, copyable_,
               options_.overwrite_rules);
    if (!fallback_) return;
    AddFallback(graph_, fallback_, options_.overwrite_rules);
    MoveToMethods(reordered_.module(), *graph_);
  }

  // Changes names before anything is planned.
  void NameBy(std::function<void(program::Program&)> name) { name_ = std::move(name); }

  // From here on the graph is one for the sizes of the examples, if they all have the same.
  void FixNumbersFirst() { fixes_numbers_ = true; }
  const FixedNumbers& numbers() const { return numbers_; }

  // Tries slices of the program in the order that was planned, which has no edits.
  Slicer MakeSlicer() {
    const std::size_t worst = report_.worst_example;
    return Slicer(graph_, OldOrder(), probes_[worst], interference_, InputsOf(examples_[worst]),
                  names_);
  }

  // Why no op may be edited; empty if some may.
  std::string WhyNotEdited() const {
    return IsElsewhere() ? kElsewhere : jit::WhyNotEdited(nodes_, interference_);
  }

  // The program that was planned, timed and with what repeats ask; and the same so far as a bound
  // may count on it.
  struct Repeating {
    program::Program program, certain;
    std::int64_t released_bytes = 0;
  };
  Repeating MakeRepeating() {
    const std::size_t worst = report_.worst_example;
    const Probe& probe = probes_[worst];
    Repeating made{.program = report_.original, .released_bytes = probe.released_bytes};
    AddRepeating(made.program, graph_, nodes_, probe);
    const std::map<std::string, std::int64_t>& given = options_.op_nanoseconds;
    std::vector<std::int64_t> measured;
    if (given.empty()) measured = TimeNodes(graph_, InputsOf(examples_[worst]));
    for (std::size_t v = 0; v < made.program.ops.size(); ++v) {
      program::Op& op = made.program.ops[v];
      TORCH_CHECK_VALUE(given.empty() || given.contains(op.name), "op_seconds has no op '", op.name,
                        "': take them from a report of the same program");
      op.nanoseconds = given.empty() ? measured[v] : given.at(op.name);
    }
    made.certain = Certain(made.program, nodes_, CertainNodes(graph_), probe, interference_);
    return made;
  }

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
    report_.plan.method = sched::Method::kOriginal;
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
    if (report_.verification != Verification::kFailed) report_.reasons.clear();
    report_.reasons.push_back({.kind = ReasonKind::kBelowBound,
                               .bytes = measured,
                               .other_bytes = plan.lower_bound_bytes});
    plan.lower_bound_bytes = 0;
    plan.DropProof();
    plan.bottleneck.reset();
    return true;
  }

  // The report tells of the original program from here on.
  void KeepOriginal() {
    sched::Plan& plan = report_.plan;
    if (!report_.edits.empty()) plan.bottleneck.reset();  // of an op of the edited program
    report_.edits = {};
    report_.program = report_.original;
    report_.graph = program::Lower(report_.program);
    plan.order = report_.graph.OriginalOrder();
    plan.original_peak_bytes = plan.peak_bytes = sched::PeakBytes(report_.graph, plan.order);
    plan.method = sched::Method::kOriginal;
    plan.moved_ops = 0;
    if (!plan.is_optimal()) plan.proof = sched::Proof::kNone;
    for (sched::Region& region : plan.regions) region.method = sched::Method::kOriginal;
    for (ExamplePeaks& peaks : report_.examples) peaks.peak_bytes = peaks.original_peak_bytes;
    if (options_.plan.memory_budget_bytes) {
      plan.budget_met = plan.peak_bytes <= *options_.plan.memory_budget_bytes;
    }
  }

 private:
  static constexpr const char* kElsewhere =
      "some tensors are not in the CPU's memory, which is all that is measured";
  bool IsElsewhere() const { return std::ranges::any_of(probes_, &Probe::other_devices); }

  void FixNumbers() {
    numbers_ = FindFixedNumbers(graph_, InputsOf(examples_[0])());
    if (!HaveSizes(examples_, numbers_.sizes)) numbers_ = {};
    std::unordered_map<const Node*, std::string> name_of;  // there are fewer nodes in a moment
    for (std::size_t i = 0; i < nodes_.size(); ++i) name_of[nodes_[i]] = OpName(nodes_[i], i);
    jit::FixNumbers(graph_, numbers_);
    nodes_ = OpNodes(graph_->block());
    for (const Node* node : nodes_) names_.push_back(name_of.at(node));
    interference_ = FindInterference(graph_, nodes_, {});
  }

  void LeaveAlone(const std::string& why) {
    if (!why.empty()) report_.reasons = {{.kind = ReasonKind::kLeftAlone, .detail = why}};
  }

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
      fallback_ = PrepareFor(examples_, graph_);
    } catch (const c10::Error& error) {
      return std::string("the graph cannot be prepared: ") + error.what_without_backtrace();
    } catch (const std::exception& error) {
      return std::string("the graph cannot be prepared: ") + error.what();
    }
    return {};
  }

  void PlanWorst() {
    program::LeverPlan planned =
        program::PlanLevers(report_.original, options_.levers, options_.plan);
    report_.program = std::move(planned.program);
    report_.graph = std::move(planned.graph);
    report_.plan = std::move(planned.plan);
    report_.levers = std::move(planned.uses);
    if (!overwritable_.refusal.empty()) {
      report_.levers.back().reasons = {
          {.kind = ReasonKind::kLeftAlone, .detail = overwritable_.refusal}};
    }
    old_ops_ = std::move(planned.old_ops);
    lowers_arena_ = planned.lowers_arena;
    report_.edits = std::move(planned.edits);
    KeepCertainBound();
  }

  // The order of the report's plan, of nodes.
  sched::Order OldOrder() const {
    sched::Order order;
    for (const sched::OpId v : report_.plan.order) order.push_back(old_ops_[v]);
    return order;
  }

  // Of the program of any example, edited as that of the worst one.
  std::int64_t PlannedPeak(const program::Program& original) const {
    const auto edited = program::WithEdits(original, report_.edits);
    if (!edited) return std::numeric_limits<std::int64_t>::max();
    return sched::PeakBytes(program::Lower(edited->program), edited->ToNewOps(OldOrder()));
  }

  // A bound of the planned sizes says nothing of the program where those are not certain.
  void KeepCertainBound() {
    sched::Plan& plan = report_.plan;
    is_best_as_planned_ = plan.is_optimal();
    Probe probe = probes_[report_.worst_example];
    std::int64_t bound_bytes = plan.lower_bound_bytes;
    const std::vector<char> is_certain = CertainNodes(graph_);
    if (KeepCertain(is_certain, probe)) {
      program::Program certain = ToProgram(nodes_, probe, interference_);
      certain.overwritable = report_.original.overwritable;
      certain.copyable = report_.original.copyable;
      std::erase_if(certain.copyable, [&](const program::Copy& copy) {
        return !is_certain[copy.op];  // it takes nothing, so it copies nothing
      });
      for (program::Copy& copy : certain.copyable) {
        const std::vector<program::BufferId>& read = certain.ops[copy.op].reads;
        std::erase_if(copy.reads,
                      [&](program::BufferId b) { return std::ranges::count(read, b) == 0; });
      }
      const program::LeverPlan bounding =
          program::PlanLevers(certain, options_.levers, options_.plan);
      plan.seconds += bounding.plan.seconds;
      bound_bytes = std::min(bound_bytes, bounding.plan.lower_bound_bytes);
      plan.bottleneck = bounding.plan.bottleneck;
      // Edited programs have ids of their own.
      if (!report_.edits.empty() || !bounding.edits.empty()) plan.bottleneck.reset();
      if (plan.bottleneck) {
        std::erase_if(plan.bottleneck->buffers,
                      [&](sched::BufferId b) { return bounding.graph.buffer(b).size_bytes == 0; });
      }
    }
    if (probe.released_bytes > 0) plan.bottleneck.reset();
    bound_bytes = std::max<std::int64_t>(0, bound_bytes - probe.released_bytes);
    if (bound_bytes == plan.lower_bound_bytes) return;
    plan.lower_bound_bytes = bound_bytes;
    plan.DropProof();
  }

  ExamplePeaks& worst() { return report_.examples[report_.worst_example]; }

  // What makes inputs of a run; the example outlives it.
  std::function<Stack()> InputsOf(const Stack& example) {
    return [this, &example] {
      quiet_.RewindRandomState();
      return CopiedInputs(reordered_.module(), example, copy_state());
    };
  }

  void ExplainNoGain() {
    report_.reasons =
        program::WhyNoGain(report_.program, report_.plan, options_.plan, options_.levers.overwrite);
    if (!is_best_as_planned_ || report_.plan.is_optimal()) return;
    for (program::Reason& reason : report_.reasons) {
      if (reason.kind == ReasonKind::kUnproven) reason.kind = ReasonKind::kUncertain;
    }
  }

  const Module& module_;
  const std::vector<Stack>& examples_;
  const OptimizeOptions& options_;
  QuietRun quiet_;
  ScratchModule reordered_;
  std::shared_ptr<Graph> graph_;
  Fallback fallback_;  // none for most modules
  std::vector<Node*> nodes_;
  std::function<void(program::Program&)> name_;
  std::vector<std::int64_t> marks_;  // of a sliced graph, by node
  bool fixes_numbers_ = false;
  std::vector<std::string> names_;  // of the nodes, as before numbers were fixed
  FixedNumbers numbers_;
  Interference interference_;
  std::vector<Probe> probes_;
  std::vector<program::Program> programs_;  // of each example
  Overwritable overwritable_;
  Copyable copyable_;
  std::vector<sched::OpId> old_ops_;  // of the ops of the plan
  bool is_best_as_planned_ = false;
  bool lowers_arena_ = false;
  Report report_;
};

// Runs original and reordered side by side. Returns why the reordered one must not be used, if so.
std::vector<Reason> Verify(Subject& subject, const Module& original,
                           const std::vector<Stack>& examples) {
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
      if (!FindDifference(before, again).empty()) {
        difference = "the original does not give the same result twice (" + difference + ")";
      }
      return {{.kind = ReasonKind::kDiffers, .detail = difference}};
    }
    if (*peaks.measured_peak_bytes > *peaks.measured_original_peak_bytes) {
      report.verification = Verification::kFailed;
      return {{.kind = ReasonKind::kRises,
               .bytes = *peaks.measured_original_peak_bytes,
               .other_bytes = *peaks.measured_peak_bytes}};
    }
    lower_anywhere |= *peaks.measured_peak_bytes < *peaks.measured_original_peak_bytes;
  }
  report.identical = true;
  report.verification = Verification::kPassed;
  if (lower_anywhere || subject.lowers_arena()) return {};
  const ExamplePeaks& worst = report.examples[report.worst_example];
  return {{.kind = ReasonKind::kDoesNotFall, .bytes = *worst.measured_original_peak_bytes}};
}

void MeasureOriginal(Subject& subject, const Module& module, const std::vector<Stack>& examples) {
  ScratchModule original(module);
  for (std::size_t i = 0; i < examples.size(); ++i) {
    subject.report().examples[i].measured_original_peak_bytes =
        Execute(original.module(), examples[i], subject.copy_state(), subject.quiet()).peak_bytes;
  }
}

// By planned and measured peaks of all examples; nothing without a budget.
std::optional<bool> IsBudgetMet(const Report& report, const OptimizeOptions& options) {
  const auto budget = options.plan.memory_budget_bytes;
  if (!budget) return std::nullopt;
  return std::ranges::all_of(report.examples, [&](const ExamplePeaks& peaks) {
    return std::max(peaks.peak_bytes, peaks.measured_peak_bytes.value_or(0)) <= *budget;
  });
}

Optimized OptimizeWith(const Module& module, const std::vector<Stack>& arguments,
                       const OptimizeOptions& options) {
  Subject subject(module, arguments, options);
  Report& report = subject.report();
  const bool planned = subject.Plan();
  bool changed = planned && subject.has_gain();
  if (changed) {
    subject.Apply();
    if (options.verify) {
      report.reasons = Verify(subject, module, arguments);
      changed = report.reasons.empty();
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
  report.reason = program::English(report.reasons);
  report.plan.budget_met = IsBudgetMet(report, options);
  report.floor_bytes = report.plan.lower_bound_bytes;
  return {changed ? subject.reordered().Keep() : module, changed, std::move(report)};
}

bool HasOverwritten(const program::LeverUse& use) {
  return use.name == "overwrite" && use.edits > 0;
}

// By order and overwriting.
Optimized OptimizeEdits(const Module& module, const std::vector<Stack>& arguments,
                        const OptimizeOptions& options) {
  Optimized optimized = OptimizeWith(module, arguments, options);
  const auto failed = std::ranges::find_if(optimized.report.levers, HasOverwritten);
  if (optimized.changed || failed == optimized.report.levers.end()) return optimized;
  // An order alone may still be good.
  program::LeverUse given_up = *failed;
  given_up.edits = 0;
  given_up.reasons = optimized.report.reasons;
  OptimizeOptions without = options;
  without.levers.overwrite = false;
  Optimized ordered = OptimizeWith(module, arguments, without);
  given_up.peak_bytes_before = given_up.peak_bytes_after = ordered.report.plan.peak_bytes;
  ordered.report.levers.push_back(std::move(given_up));
  return ordered;
}

// Does the executor take what was planned? Where it does not, what is promised is not had.
bool IsAsPlanned(const Report& report) {
  constexpr double kTolerance = 1.01;
  constexpr std::int64_t kScalarBytes = 1024;
  return std::ranges::all_of(report.examples, [](const ExamplePeaks& peaks) {
    const double planned = kTolerance * static_cast<double>(peaks.peak_bytes) + kScalarBytes;
    return static_cast<double>(peaks.measured_peak_bytes.value_or(0)) <= planned;
  });
}

// A module whose graph was edited, and the rest of it planned again.
struct EditedModule {
  // Nodes remember the functions that they were inlined from, and look there when they raise.
  std::unique_ptr<ScratchModule> edited;
  std::unique_ptr<Subject> subject;  // of that
  std::vector<Reason> reasons;       // why it must not be used, if so

  Optimized Keep() && {
    edited->Keep();
    return {subject->reordered().Keep(), true, std::move(subject->report())};
  }
};

// Of modules with edits that cost time, beside the plain one, which has none.
class Trials {
 protected:
  Trials(const Module& module, const std::vector<Stack>& arguments, const OptimizeOptions& options,
         Optimized plain)
      : module_(module), arguments_(arguments), options_(options), plain_(std::move(plain)) {
    options_.levers.slice = options_.levers.repeat = false;
  }

  std::int64_t plain_bytes() const { return plain_.report.plan.peak_bytes; }
  std::int64_t plain_measured_bytes() const {
    const ExamplePeaks& worst = plain_.report.examples[plain_.report.worst_example];
    return worst.measured_peak_bytes.value_or(worst.peak_bytes);
  }

  // The subject that is to be edited.
  std::unique_ptr<Subject> Planned(const OptimizeOptions& options, bool fixes_numbers) const {
    auto subject = std::make_unique<Subject>(module_, arguments_, options);
    if (fixes_numbers) subject->FixNumbersFirst();
    return subject->Plan() ? std::move(subject) : nullptr;
  }

  // `edit`: of the prepared graph; `name`: of what is planned, by marks of its nodes.
  EditedModule Make(
      const std::function<void(const std::shared_ptr<Graph>&)>& edit,
      const std::function<void(program::Program&, const std::vector<std::int64_t>&)>& name) const {
    EditedModule made{.edited = std::make_unique<ScratchModule>(module_)};
    std::shared_ptr<Graph> graph = ForwardGraph(made.edited->module());
    Fallback fallback = PrepareFor(arguments_, graph);
    if (!fallback) fallback.graph = graph->copy();
    if (!numbers_.empty()) fallback.sizes = numbers_.sizes;
    FixNumbers(graph, numbers_);
    edit(graph);
    AddFallback(graph, fallback, options_.overwrite_rules);
    made.subject = std::make_unique<Subject>(made.edited->module(), arguments_, options_);
    Subject& subject = *made.subject;
    subject.NameBy([&](program::Program& program) { name(program, subject.marks()); });
    const bool is_planned = subject.Plan();
    Report& report = subject.report();
    if (!is_planned || report.plan.peak_bytes >= plain_bytes()) {
      made.reasons = {{.kind = ReasonKind::kLeftAlone, .detail = "the peak is no lower"}};
      return made;
    }
    subject.Apply();
    report.reasons.clear();
    if (options_.verify) made.reasons = WhyNotAsPlanned(subject);
    report.plan.budget_met = IsBudgetMet(report, options_);
    return made;
  }

  // The report tells of the program as it was, and of what the levers did to it in turn.
  void TellOfOriginal(Report& report, program::LeverUse use) const {
    report.original = plain_.report.original;
    report.plan.original_peak_bytes = plain_.report.plan.original_peak_bytes;
    for (std::size_t i = 0; i < report.examples.size(); ++i) {
      report.examples[i].original_peak_bytes = plain_.report.examples[i].original_peak_bytes;
    }
    report.levers = plain_.report.levers;
    report.levers.push_back(std::move(use));
    report.plan.bottleneck.reset();  // of a program that nobody wrote
  }

  const Module& module_;
  const std::vector<Stack>& arguments_;
  OptimizeOptions options_;
  Optimized plain_;
  FixedNumbers numbers_;

 private:
  std::vector<Reason> WhyNotAsPlanned(Subject& subject) const {
    if (auto why = Verify(subject, module_, arguments_); !why.empty()) return why;
    Report& report = subject.report();
    if (subject.IsBoundRefuted()) return report.reasons;
    const ExamplePeaks& worst = report.examples[report.worst_example];
    const std::int64_t measured_bytes = worst.measured_peak_bytes.value_or(0);
    if (!IsAsPlanned(report) || measured_bytes >= plain_measured_bytes()) {
      return {{.kind = ReasonKind::kLeftAlone,
               .detail = "it was planned to take " + program::Amount(worst.peak_bytes) +
                         " and takes " + program::Amount(measured_bytes)}};
    }
    if (!IsSameElsewhere(subject)) {
      return {{.kind = ReasonKind::kDiffers, .detail = "results for other numbers"}};
    }
    return {};
  }

  // On other numbers than the example's, if the module takes them.
  bool IsSameElsewhere(Subject& subject) const {
    ScratchModule original(module_), edited(subject.reordered().module());
    for (const Stack& example : arguments_) {
      Stack others = CopiedInputs(module_, example, /*copy_state=*/false);
      others.erase(others.begin());
      FillAtRandom(others);
      std::optional<Execution> before;
      try {
        before = Execute(original.module(), others, subject.copy_state(), subject.quiet());
      } catch (const std::exception&) {
        continue;
      }
      try {
        const Execution after =
            Execute(edited.module(), others, subject.copy_state(), subject.quiet());
        if (!FindDifference(*before, after).empty()) return false;
      } catch (const std::exception&) {
        return false;
      }
    }
    return true;
  }
};

// Of ops that run again.
class RepeatTrials : Trials {
 public:
  RepeatTrials(const Module& module, const std::vector<Stack>& arguments,
               const OptimizeOptions& options, Optimized plain)
      : Trials(module, arguments, options, std::move(plain)) {}

  // The module within the budget at the least extra time that is found, or as near as it came; the
  // plain one, and why, if repeats do not help or are not needed.
  Optimized Run() && {
    plain_.report.floor_bytes.reset();
    const auto budget = options_.plan.memory_budget_bytes;
    if (!budget) return Without({{.kind = ReasonKind::kNoBudget}});
    if (plain_bytes() <= *budget) return Without({});
    try {
      return Tried(*budget);
    } catch (const std::exception& error) {
      const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
      const std::string why =
          torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
      plain_.report.times.reset();
      return Without({{.kind = ReasonKind::kLeftAlone,
                       .detail = "trying repeats failed: " + why.substr(0, why.find('\n'))}});
    }
  }

 private:
  Optimized Tried(std::int64_t budget_bytes) {
    OptimizeOptions unplanned = options_;  // its order is the plain module's
    unplanned.plan.time_budget_seconds = 0;
    const std::unique_ptr<Subject> subject = Planned(unplanned, /*fixes_numbers=*/false);
    if (subject == nullptr) return std::move(plain_);
    if (const std::string why = subject->WhyNotEdited(); !why.empty()) {
      return Without({{.kind = ReasonKind::kLeftAlone, .detail = why}});
    }
    const Subject::Repeating repeating = subject->MakeRepeating();
    const program::Program& program = repeating.program;
    const program::RepeatPlan chosen = Choose(repeating, budget_bytes);
    Report& plain = plain_.report;
    plain.floor_bytes = std::max<std::int64_t>(0, chosen.floor.bytes - repeating.released_bytes);
    plain.times = program::RepeatTimes{.nanoseconds = chosen.nanoseconds};
    for (const program::Op& op : program.ops) {
      plain.times->op_nanoseconds.emplace_back(op.name, op.nanoseconds);
    }
    if (chosen.peak_bytes >= plain_bytes()) {
      return Without({program::WhyMissed(program, chosen, chosen.peak_bytes)});
    }
    const program::Program runs = program::WithRepeats(program, chosen.runs);
    EditedModule made = Make(
        [&](const std::shared_ptr<Graph>& graph) {
          ApplyRuns(graph->block(), OpNodes(graph->block()), chosen.runs);
        },
        [&](program::Program& named, const std::vector<std::int64_t>& marks) {
          NameRuns(named, marks, runs);
        });
    if (!made.reasons.empty()) return Without(std::move(made.reasons));
    Report& report = made.subject->report();
    report.repeats = UsesOf(runs, program, chosen.runs);
    report.times = plain.times;
    report.times->extra_nanoseconds = chosen.extra_nanoseconds;
    if (report.plan.budget_met.value_or(false)) {
      report.times->extra_bound_nanoseconds = chosen.extra_bound_nanoseconds;
    }
    report.floor_bytes = plain.floor_bytes;
    program::LeverUse use{"repeat", plain_bytes(), report.plan.peak_bytes,
                          static_cast<std::int64_t>(report.repeats.size())};
    use.extra_seconds = static_cast<double>(chosen.extra_nanoseconds) / 1e9;
    if (!report.plan.budget_met.value_or(false)) {
      use.reasons = {program::WhyMissed(program, chosen, report.plan.peak_bytes)};
    }
    TellOfOriginal(report, std::move(use));
    return std::move(made).Keep();
  }

  // What runs again, but for views, which come with what they are of.
  static std::vector<program::RepeatUse> UsesOf(const program::Program& with_runs,
                                                const program::Program& program,
                                                const program::Runs& runs) {
    std::vector<program::RepeatUse> uses;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const program::Op& op = program.ops[runs[i]];
      const std::string& name = with_runs.ops[i].name;
      const bool is_view = op.writes.empty() && op.mutates.empty();
      if (name != op.name && !is_view) uses.push_back({name, op.name, op.nanoseconds, op.label});
    }
    return uses;
  }

  // From the order of the plain module on; what is proven counts on certain nodes alone.
  program::RepeatPlan Choose(const Subject::Repeating& repeating, std::int64_t budget_bytes) const {
    std::unordered_map<std::string, program::OpId> op_named;
    for (const program::Op& op : repeating.program.ops) {
      op_named.emplace(op.name, static_cast<program::OpId>(op_named.size()));
    }
    program::Runs order;
    for (const sched::OpId v : plain_.report.plan.order) {
      const auto op = op_named.find(plain_.report.program.ops[v].name);
      if (op != op_named.end()) order.push_back(op->second);  // else a copy that was hoisted
    }
    const bool overwrite = options_.levers.overwrite;
    program::RepeatPlan chosen =
        program::PlanRepeats(repeating.program, overwrite, order, budget_bytes, options_.plan);
    const program::RepeatBound bound(repeating.certain, overwrite);
    sched::Budget budget(options_.plan.time_budget_seconds, options_.plan.search_memory_bytes);
    chosen.floor = bound.FindFloor(order, budget);
    const std::int64_t most_bytes = budget_bytes + repeating.released_bytes;
    chosen.extra_bound_nanoseconds.reset();
    if (chosen.floor.bytes <= most_bytes) {
      const auto extra = bound.FindExtra(order, most_bytes, budget);
      if (extra) chosen.extra_bound_nanoseconds = extra->nanoseconds;
    }
    return chosen;
  }

  Optimized Without(std::vector<Reason> why) {
    program::LeverUse use{"repeat", plain_bytes(), plain_bytes(), 0};
    use.reasons = std::move(why);
    plain_.report.levers.push_back(std::move(use));
    return std::move(plain_);
  }
};

// A module with some stretches sliced.
struct SlicedModule {
  std::vector<program::Stretch> stretches;
  EditedModule made;
  program::SliceTrial trial;
};

class SliceTrials : Trials {
 public:
  SliceTrials(const Module& module, const std::vector<Stack>& arguments,
              const OptimizeOptions& options, Optimized plain)
      : Trials(module, arguments, options, std::move(plain)) {}

  // The cheapest below the budget, or the fastest; the plain module if it is better not to slice.
  Optimized Run() && {
    OptimizeOptions ordering = options_;
    ordering.levers.overwrite = false;
    const std::unique_ptr<Subject> subject = Planned(ordering, /*fixes_numbers=*/true);
    if (subject == nullptr) return std::move(plain_);
    numbers_ = subject->numbers();
    Slicer slicer = subject->MakeSlicer();
    // Values are called otherwise where numbers are fixed.
    if (!numbers_.empty()) slicer.NameBuffersLike(plain_.report.original);
    plain_.report.floor_bytes =
        std::min(slicer.Floor().bytes, plain_.report.plan.lower_bound_bytes);
    const auto budget = options_.plan.memory_budget_bytes;
    const bool is_wanted = !budget || plain_bytes() > *budget;
    std::optional<SlicedModule> best;
    if (is_wanted) best = Best(slicer);
    if (best) {
      Describe(slicer, *best);
      best->made.subject->report().slice_trials = std::move(trials_);
      return std::move(best->made).Keep();
    }
    program::LeverUse use{"slice", plain_bytes(), plain_bytes(), 0};
    if (is_wanted) {
      use.reasons = {program::WhyNoSlices(trials_, budget.has_value(), slicer.Obstacles())};
    }
    plain_.report.levers.push_back(std::move(use));
    plain_.report.slice_trials = std::move(trials_);
    return std::move(plain_);
  }

 private:
  std::optional<SlicedModule> Best(Slicer& slicer) {
    const auto budget = options_.plan.memory_budget_bytes;
    const std::vector<program::Stretches::Choice> choices =
        slicer.Choose(program::TargetsBelow(plain_bytes(), budget));
    std::vector<SlicedModule> tried;
    const auto place = program::BestChoice(
        choices, budget,
        [&](const std::vector<program::Stretch>& stretches) -> std::optional<program::SliceTrial> {
          std::optional<SlicedModule> sliced = Try(slicer, stretches);
          if (!sliced) return std::nullopt;
          tried.push_back(std::move(*sliced));
          return tried.back().trial;
        });
    if (!place) return std::nullopt;
    return std::move(
        *std::ranges::find(tried, choices[*place].stretches, &SlicedModule::stretches));
  }

  // Nothing if it needs no less, or is not verified.
  std::optional<SlicedModule> Try(const Slicer& slicer,
                                  const std::vector<program::Stretch>& stretches) {
    SlicedModule tried{.stretches = stretches};
    tried.made = Make([&](const std::shared_ptr<Graph>& graph) { slicer.Apply(graph, stretches); },
                      [&](program::Program& program, const std::vector<std::int64_t>& marks) {
                        slicer.NameAlike(program, marks, stretches);
                      });
    if (!tried.made.reasons.empty()) return std::nullopt;
    Subject& subject = *tried.made.subject;
    const Report& report = subject.report();
    tried.trial.peak_bytes = report.plan.peak_bytes;
    tried.trial.slices = static_cast<std::int64_t>(stretches.size());
    tried.trial.meets_budget = report.plan.budget_met.value_or(false);
    if (options_.verify) {
      const PairedSeconds seconds =
          TimeInTurns(plain_.module, subject.reordered().module(), arguments_[report.worst_example],
                      subject.copy_state(), subject.quiet());
      tried.trial.measured_peak_bytes =
          report.examples[report.worst_example].measured_peak_bytes.value_or(0);
      tried.trial.seconds = seconds.b;
      tried.trial.seconds_without = seconds.a;
      trials_.push_back(tried.trial);
    }
    return tried;
  }

  void Describe(const Slicer& slicer, SlicedModule& best) const {
    Report& report = best.made.subject->report();
    const program::Program& original = slicer.program();
    for (const program::Stretch& stretch : best.stretches) {
      program::SliceUse& use = report.slices.emplace_back();
      use.name = NameOfStretch(report.slices.size() - 1);
      for (const program::OpId v : slicer.OpsInParts(stretch)) {
        use.ops.push_back(original.ops[v].name);
      }
      use.result = original.ops[stretch.ops.back()].outputs[0];
      use.shape = original.tensors.at(use.result).shape;
      use.dimension = stretch.dimension;
      const std::int64_t size = use.shape[stretch.dimension];
      use.parts = (size + stretch.part_size - 1) / stretch.part_size;
    }
    program::LeverUse use{"slice", plain_bytes(), report.plan.peak_bytes,
                          static_cast<std::int64_t>(report.slices.size())};
    use.extra_seconds = best.trial.seconds - best.trial.seconds_without;
    sched::Plan& plan = report.plan;
    if (plan.budget_met.has_value() && !*plan.budget_met) {
      use.reasons = {program::WhyNoSlices(trials_, /*has_budget=*/true, slicer.Obstacles())};
    }
    TellOfOriginal(report, std::move(use));
    report.floor_bytes = plain_.report.floor_bytes;
    if (plan.lower_bound_bytes < *report.floor_bytes) {
      plan.lower_bound_bytes = *report.floor_bytes;
      plan.DropProof();
      if (plan.is_optimal()) plan.proof = sched::Proof::kResults;
    }
  }

  std::vector<program::SliceTrial> trials_;
};

// --- which of several modules is best, as in torch_ext/fx/choice.py ----------------------------

// Is the budget met, by repeats that cost next to nothing if by any?
bool IsCheap(const Report& report) {
  constexpr std::int64_t kMost = 50;  // one part of the time of a call in so many
  return report.plan.budget_met.value_or(false) &&
         (!report.times || report.times->extra_nanoseconds <= report.times->nanoseconds / kMost);
}

// Lower is better: seconds where the budget is met, and bytes where it is not.
std::pair<int, double> Cost(const Report& report) {
  if (!report.plan.budget_met.value_or(true)) {
    return {1, static_cast<double>(report.plan.peak_bytes)};
  }
  double seconds = 0;
  for (const program::LeverUse& use : report.levers) seconds += use.extra_seconds;
  return {0, seconds};
}

// What is known of a lever that was tried, and is not in the best module. The floor of slices holds
// with repeats, too: results are there at the end, and an op that cannot run in parts has all that
// it reads and makes at once in whichever run. That of repeats says nothing of parts.
void TellOfOther(Report& best, const Report& other) {
  for (program::LeverUse use : other.levers) {
    const bool is_slice = use.name == "slice";
    if (is_slice) best.slice_trials = other.slice_trials;
    if (is_slice) best.floor_bytes = other.floor_bytes;
    if (std::ranges::count(best.levers, use.name, &program::LeverUse::name) > 0) continue;
    if (use.reasons.empty()) {
      use.reasons = {{.kind = ReasonKind::kLeftAlone, .detail = "another lever does better"}};
    }
    use.peak_bytes_before = use.peak_bytes_after = best.plan.peak_bytes;
    use.edits = 0;
    use.extra_seconds = 0;
    best.levers.push_back(std::move(use));
  }
  if (!best.times && other.times) {
    best.times = other.times;
    best.times->extra_nanoseconds = 0;
  }
  // Slices may take less than any repeats.
  if (best.times && best.repeats.empty()) best.times->extra_bound_nanoseconds.reset();
}

}  // namespace

Optimized Optimize(const Module& module, const std::vector<Stack>& examples,
                   const OptimizeOptions& options) {
  const std::vector<Stack> arguments = Arguments(module, examples);
  Optimized plain = OptimizeEdits(module, arguments, options);
  if (plain.report.graph.num_ops() == 0) return plain;
  if (!options.levers.repeat) {
    if (!options.levers.slice) return plain;
    return SliceTrials(module, arguments, options, std::move(plain)).Run();
  }
  Optimized repeated = RepeatTrials(module, arguments, options, plain).Run();
  if (!options.levers.slice) return repeated;
  if (IsCheap(repeated.report)) {
    repeated.report.floor_bytes.reset();  // of slices nothing is known
    return repeated;
  }
  Optimized sliced = SliceTrials(module, arguments, options, std::move(plain)).Run();
  const bool slices_win =
      !options.plan.memory_budget_bytes || Cost(sliced.report) < Cost(repeated.report);
  Optimized& best = slices_win ? sliced : repeated;
  TellOfOther(best.report, slices_win ? repeated.report : sliced.report);
  return std::move(best);
}

namespace {

void AddUntriedSlices(Report& report) {
  const std::int64_t bytes = report.plan.peak_bytes;
  report.levers.push_back({"slice", bytes, bytes, 0});
  report.levers.back().reasons = {{.kind = program::ReasonKind::kNotTried}};
}

}  // namespace

Report Analyze(const Module& module, const std::vector<Stack>& examples,
               const OptimizeOptions& options) {
  const std::vector<Stack> arguments = Arguments(module, examples);
  Subject subject(module, arguments, options);
  if (subject.Plan()) {
    MeasureOriginal(subject, module, arguments);
    if (subject.IsBoundRefuted()) subject.KeepOriginal();
    if (options.levers.slice) AddUntriedSlices(subject.report());
  } else {
    subject.MeasureUnplanned();
  }
  subject.report().reason = program::English(subject.report().reasons);
  subject.report().floor_bytes = subject.report().plan.lower_bound_bytes;
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

Comparison CompareWithOriginal(const Module& module, const std::vector<Stack>& examples) {
  ScratchModule original(module);
  const std::shared_ptr<Graph> graph = ForwardGraph(original.module());
  torch::jit::Inline(*graph);
  TORCH_CHECK_VALUE(RunFallbackAlone(*graph),
                    "the module does not hold the original: torch_ext has put ops of it into "
                    "another order at most, which gives the same bits everywhere");
  return Compare(original.module(), module, examples);
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
