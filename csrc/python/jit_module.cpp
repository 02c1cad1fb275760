// torch_ext._jit: the TorchScript adaptor for Python. torch must be imported first.
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include <sstream>

#include "jit/op_costs.h"
#include "jit/operator_effects.h"
#include "jit/optimize.h"
#include "jit/pass.h"
#include "jit/shuffle.h"
#include "jit/values.h"
#include "python/memory_bindings.h"
#include "python/program_types.h"
#include "python/sched_types.h"
#include "sched/instance.h"

namespace py = pybind11;
namespace jit = torch_ext::jit;
namespace sched = torch_ext::sched;

namespace {

// "(Tensor x, int n=1)": what forward takes.
std::string Parameters(const c10::FunctionSchema& schema) {
  std::ostringstream text;
  for (std::size_t i = 1; i < schema.arguments().size(); ++i) {  // without self
    text << (i == 1 ? "(" : ", ") << schema.arguments()[i];
  }
  return schema.arguments().size() == 1 ? "()" : text.str() + ")";
}

// What torch says first; after it come the value, the declaration and the stack.
std::string FirstSentence(std::string text) {
  for (const char* next : {"\n", " Declaration:"}) text = text.substr(0, text.find(next));
  return text;
}

// Arguments of forward from Python values, checked and defaulted by its schema. Throws a
// std::invalid_argument that names the example.
std::vector<jit::Stack> ToStacks(const torch::jit::Module& module,
                                 const std::vector<py::tuple>& examples) {
  TORCH_CHECK_VALUE(module.find_method("forward").has_value(),
                    "the module has no method 'forward'; nothing to optimise");
  const auto& schema = module.get_method("forward").function().getSchema();
  std::vector<jit::Stack> stacks;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    try {
      // Torch counts self, too.
      TORCH_CHECK_VALUE(examples[i].size() < schema.arguments().size(), "there are ",
                        examples[i].size(), " arguments");
      jit::Stack stack = torch::jit::createStackForSchema(
          schema, torch::jit::tuple_slice(examples[i]), py::kwargs(), module._ivalue());
      stack.erase(stack.begin());  // self
      stacks.push_back(std::move(stack));
    } catch (const std::exception& error) {
      throw std::invalid_argument("example " + std::to_string(i) +
                                  " does not fit forward, which takes " + Parameters(schema) +
                                  ": " + FirstSentence(error.what()));
    }
  }
  return stacks;
}

// All but what follows from program and plan: torch_ext/reporting/report.py makes that for every
// door.
py::dict MeasuredFields(const jit::Report& report) {
  const jit::ExamplePeaks& worst = report.examples[report.worst_example];
  py::dict fields;
  fields["measured_original_peak_bytes"] = worst.measured_original_peak_bytes;
  fields["measured_peak_bytes"] = worst.measured_peak_bytes;
  fields["identical"] = report.identical;
  fields["threads"] = report.threads;
  fields["parameter_bytes"] = report.parameter_bytes;
  fields["input_bytes"] = worst.input_bytes;
  fields["examples"] =
      torch_ext::python::ListOf(report.examples, [](const jit::ExamplePeaks& example) {
        py::dict e;
        e["original_peak_bytes"] = example.original_peak_bytes;
        e["peak_bytes"] = example.peak_bytes;
        e["input_bytes"] = example.input_bytes;
        e["measured_original_peak_bytes"] = example.measured_original_peak_bytes;
        e["measured_peak_bytes"] = example.measured_peak_bytes;
        return e;
      });
  return fields;
}

py::tuple ReportFields(const jit::Report& report) {
  return py::make_tuple(torch_ext::python::LeverPlanFields(
                            report.original, report.sliced, report.program, report.graph,
                            report.plan, report.edits, report.levers, report.floor_bytes,
                            report.slices, report.slice_trials, report.repeats, report.times),
                        torch_ext::python::ReasonFields(report.reasons), MeasuredFields(report));
}

jit::OptimizeOptions ToOptions(double time_budget, std::optional<std::int64_t> memory_budget,
                               const std::string& scope, const std::vector<std::string>& levers,
                               bool verify, const std::vector<std::string>& without = {}) {
  return {torch_ext::python::MakeOptions(time_budget, memory_budget, scope),
          torch_ext::program::LeversNamed(levers),
          torch_ext::python::RulesWithout<jit::OverwriteRules>(without, jit::kOverwriteRuleNames),
          verify};
}

}  // namespace

PYBIND11_MODULE(_jit, m) {
  m.attr("built_for_torch") = TORCH_EXT_TORCH_VERSION;

  torch_ext::python::AddMemoryBindings(m);

  m.def(
      "optimize",
      [](const torch::jit::Module& module, const std::vector<py::tuple>& examples,
         double time_budget, std::optional<std::int64_t> memory_budget, const std::string& scope,
         const std::vector<std::string>& levers, bool verify,
         std::map<std::string, std::int64_t> op_nanoseconds,
         const std::vector<std::string>& without) {
        const std::vector<jit::Stack> stacks = ToStacks(module, examples);
        jit::OptimizeOptions options =
            ToOptions(time_budget, memory_budget, scope, levers, verify, without);
        options.op_nanoseconds = std::move(op_nanoseconds);
        std::optional<jit::Optimized> optimized;
        {
          const py::gil_scoped_release release;
          optimized = jit::Optimize(module, stacks, options);
        }
        const jit::Report& report = optimized->report;
        const bool failed = report.verification == jit::Verification::kFailed;
        return py::make_tuple(optimized->module, optimized->changed, failed, ReportFields(report));
      },
      py::arg("module"), py::arg("examples"), py::arg("time_budget"), py::arg("memory_budget"),
      py::arg("scope"), py::arg("levers"), py::arg("verify"),
      py::arg("op_nanoseconds") = std::map<std::string, std::int64_t>(),
      py::arg("without") = std::vector<std::string>());

  m.def(
      "analyze",
      [](const torch::jit::Module& module, const std::vector<py::tuple>& examples,
         double time_budget, const std::string& scope, const std::vector<std::string>& levers) {
        const std::vector<jit::Stack> stacks = ToStacks(module, examples);
        const jit::OptimizeOptions options =
            ToOptions(time_budget, std::nullopt, scope, levers, true);
        std::optional<jit::Report> report;
        {
          const py::gil_scoped_release release;
          report = jit::Analyze(module, stacks, options);
        }
        return py::make_tuple(ReportFields(*report),
                              sched::PrintInstance(sched::ExtractBottleneck(report->graph)));
      },
      py::arg("module"), py::arg("examples"), py::arg("time_budget"), py::arg("scope"),
      py::arg("levers"));

  m.def(
      "compare_with_original",
      [](const torch::jit::Module& module, const std::vector<py::tuple>& examples) {
        const std::vector<jit::Stack> stacks = ToStacks(module, examples);
        const py::gil_scoped_release release;
        const jit::Comparison found = jit::CompareWithOriginal(module, stacks);
        return std::tuple(found.difference, found.peak_bytes_a, found.peak_bytes_b);
      },
      py::arg("module"), py::arg("examples"));

  m.def(
      "peak_with_gradients",
      [](const torch::jit::Module& module, const py::tuple& example) {
        const std::vector<jit::Stack> stacks = ToStacks(module, {example});
        const py::gil_scoped_release release;
        return jit::PeakWithGradients(module, stacks[0]);
      },
      py::arg("module"), py::arg("example"));

  m.def(
      "enable_pass",
      [](bool observe, double time_budget, double learning_budget) {
        jit::EnablePass({observe, time_budget, learning_budget});
      },
      py::arg("observe"), py::arg("time_budget"), py::arg("learning_budget"));
  m.def("disable_pass", &jit::DisablePass);
  m.def("is_pass_enabled", &jit::IsPassEnabled);
  py::class_<jit::ScopedPass>(m, "ScopedPass")
      .def(py::init([](bool observe, double time_budget, double learning_budget) {
             return std::make_unique<jit::ScopedPass>(
                 jit::PassOptions{observe, time_budget, learning_budget});
           }),
           py::arg("observe"), py::arg("time_budget"), py::arg("learning_budget"));
  m.def("pass_stats", [] {
    const jit::PassStats stats = jit::GetPassStats();
    py::dict fields;
    fields["graphs_seen"] = stats.graphs_seen;
    fields["reordered"] = stats.reordered;
    fields["proven"] = stats.proven;
    fields["left_alone"] = stats.left_alone;
    fields["saved_bytes"] = stats.saved_bytes;
    fields["guessed_sizes"] = stats.guessed_sizes;
    fields["ops_not_run"] = stats.ops_not_run;
    fields["seconds"] = stats.seconds;
    return fields;
  });
  // Called by whatever thread compiles a graph, and waits for the GIL; the pass holds no lock then.
  m.def("set_pass_logger", [](py::function log) {
    // The last copy may go in a thread that does not hold the GIL.
    const std::shared_ptr<py::function> kept(new py::function(std::move(log)),
                                             [](py::function* function) {
                                               const py::gil_scoped_acquire acquire;
                                               delete function;
                                             });
    jit::SetPassLogger([kept](bool is_detail, const std::string& message) {
      if (Py_IsInitialized() == 0) return;
      const py::gil_scoped_acquire acquire;
      (*kept)(is_detail, message);
    });
  });
  m.def(
      "copied",
      [](const std::vector<at::Tensor>& tensors) {
        jit::ValueCopier copier;
        std::vector<at::Tensor> copies;
        for (const at::Tensor& tensor : tensors) copies.push_back(copier.Copy(tensor).toTensor());
        return copies;
      },
      py::arg("tensors"));
  m.def("has_stand_in", &jit::HasStandIn, py::arg("dtype"));

  m.def(
      "operator_effects",
      [](const std::string& name, const std::string& overload, const jit::Constants& constants) {
        const jit::OperatorEffects effects = jit::EffectsOf(name, overload, constants);
        py::dict fields;
        fields["writes"] = effects.writes;
        fields["statistics"] = effects.statistics;
        fields["undeclared"] = effects.undeclared;
        fields["draws_random_numbers"] = effects.draws_random_numbers;
        fields["is_stateful"] = effects.is_stateful;
        fields["has_side_effect"] = effects.has_side_effect;
        fields["changes_metadata"] = effects.changes_metadata;
        fields["is_collective"] = effects.is_collective;
        fields["hides_aliases"] = effects.hides_aliases;
        return fields;
      },
      py::arg("name"), py::arg("overload"), py::arg("constants"));

  m.def(
      "shuffle",
      [](const torch::jit::Module& module, std::uint64_t seed,
         const std::vector<std::string>& without) {
        return jit::Shuffle(module, seed, torch_ext::python::HazardsWithout(without));
      },
      py::arg("module"), py::arg("seed"), py::arg("without"));

  m.def(
      "shuffle_overwriting",
      [](const torch::jit::Module& module, const py::tuple& example, std::uint64_t seed,
         const std::vector<std::string>& without) {
        const std::vector<jit::Stack> stacks = ToStacks(module, {example});
        const auto rules =
            torch_ext::python::RulesWithout<jit::OverwriteRules>(without, jit::kOverwriteRuleNames);
        const py::gil_scoped_release release;
        return jit::ShuffleOverwriting(module, stacks[0], seed, rules);
      },
      py::arg("module"), py::arg("example"), py::arg("seed"),
      py::arg("without") = std::vector<std::string>());

  m.def(
      "shuffle_slicing",
      [](const torch::jit::Module& module, const py::tuple& example, std::uint64_t seed) {
        const std::vector<jit::Stack> stacks = ToStacks(module, {example});
        const py::gil_scoped_release release;
        return jit::ShuffleSlicing(module, stacks[0], seed);
      },
      py::arg("module"), py::arg("example"), py::arg("seed"));

  m.def(
      "shuffle_repeating",
      [](const torch::jit::Module& module, const py::tuple& example, std::uint64_t seed) {
        const std::vector<jit::Stack> stacks = ToStacks(module, {example});
        const py::gil_scoped_release release;
        return jit::ShuffleRepeating(module, stacks[0], seed);
      },
      py::arg("module"), py::arg("example"), py::arg("seed"));

  m.def(
      "compare",
      [](const torch::jit::Module& a, const torch::jit::Module& b,
         const std::vector<py::tuple>& examples) {
        const std::vector<jit::Stack> stacks = ToStacks(a, examples);
        jit::Comparison comparison;
        {
          const py::gil_scoped_release release;
          comparison = jit::Compare(a, b, stacks);
        }
        return py::make_tuple(comparison.difference, comparison.peak_bytes_a,
                              comparison.peak_bytes_b);
      },
      py::arg("a"), py::arg("b"), py::arg("examples"));
}
