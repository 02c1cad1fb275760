// torch_ext._sched: the core for Python. Needs no torch to be installed or imported.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "program/amount.h"
#include "program/instance.h"
#include "program/levers/repeat_search.h"
#include "program/operators/overwriting.h"
#include "program/shuffle.h"
#include "program/sliceable.h"
#include "python/program_types.h"
#include "python/sched_types.h"
#include "python/slice_bindings.h"
#include "sched/addresses.h"
#include "sched/arena_order.h"
#include "sched/decompose.h"

namespace py = pybind11;
namespace program = torch_ext::program;
namespace sched = torch_ext::sched;

namespace {

program::Runs OpsNamed(const program::Program& p, const std::vector<std::string>& names) {
  return sched::GraphBuilder(program::Lower(p)).FindOps(names);
}

}  // namespace

PYBIND11_MODULE(_sched, m) {
  m.attr("built_for_torch") = TORCH_EXT_TORCH_VERSION;

  py::class_<program::GraphBuilder>(m, "GraphBuilder")
      .def(py::init<>())
      .def("add_buffer", &program::GraphBuilder::AddBuffer, py::arg("name"), py::arg("size_bytes"),
           py::kw_only(), py::arg("input"), py::arg("kept"))
      .def(
          "add_op",
          [](program::GraphBuilder& b, const std::string& name,
             const std::vector<std::string>& reads, const std::vector<std::string>& writes,
             std::int64_t workspace_bytes, const std::vector<std::string>& after,
             std::int64_t nanoseconds, bool once, std::vector<std::string> mutates) {
            b.AddOp(name, reads, writes, workspace_bytes, after,
                    {.nanoseconds = nanoseconds, .once = once, .mutates = std::move(mutates)});
          },
          py::arg("name"), py::kw_only(), py::arg("reads"), py::arg("writes"),
          py::arg("workspace_bytes"), py::arg("after"), py::arg("nanoseconds"), py::arg("once"),
          py::arg("mutates"))
      .def("to_text", [](const program::GraphBuilder& b) { return program::PrintInstance(b); })
      .def("program", &program::GraphBuilder::Build);

  m.def("parse_text", &program::ParseInstance, py::arg("text"), py::arg("file"));
  m.def(
      "plan",
      [](const program::GraphBuilder& builder, double time_budget,
         std::optional<std::int64_t> memory_budget, const std::string& scope,
         const std::vector<std::string>& levers, const std::vector<std::string>& without) {
        const program::Program program = builder.Build();
        sched::PlanOptions options =
            torch_ext::python::MakeOptions(time_budget, memory_budget, scope);
        options.rules = torch_ext::python::RulesWithout<sched::Rules>(without, sched::kRuleNames);
        program::LeverPlan found;
        {
          const py::gil_scoped_release release;
          found = program::PlanLevers(program, program::LeversNamed(levers), options);
        }
        py::dict fields;
        fields["plan"] = torch_ext::python::PlanFields(found.graph, found.plan);
        fields["levers"] = torch_ext::python::LeverFields(found.uses);
        return fields;
      },
      py::arg("builder"), py::arg("time_budget"), py::arg("memory_budget"), py::arg("scope"),
      py::arg("levers"), py::arg("without"));
  m.def(
      "arena_bound_bytes",
      [](const program::GraphBuilder& builder, double time_budget) {
        const sched::Graph graph = program::Lower(builder.Build());
        const py::gil_scoped_release release;
        return sched::ArenaBoundBytes(graph, {.time_budget_seconds = time_budget});
      },
      py::arg("builder"), py::arg("time_budget"));
  m.def(
      "plan_addresses",
      [](const std::vector<std::tuple<std::int64_t, std::int32_t, std::int32_t>>& blocks,
         double time_budget, std::int64_t enough_bytes) {
        std::vector<sched::Lifetime> lifetimes;
        for (const auto& [bytes, begin, end] : blocks) lifetimes.push_back({bytes, begin, end});
        const py::gil_scoped_release release;
        sched::Budget budget(time_budget);
        const sched::AddressPlan plan = sched::PlanAddresses(lifetimes, budget, enough_bytes);
        return std::pair(sched::HeightBytes(lifetimes, plan.offsets), plan.bound_bytes);
      },
      py::arg("lifetimes"), py::arg("time_budget"), py::arg("enough_bytes"));
  m.def(
      "place_along",
      [](const program::GraphBuilder& builder, const std::vector<std::string>& order,
         double time_budget) {
        const program::Program program = builder.Build();
        const sched::Graph graph = program::Lower(program);
        const std::vector<sched::ArenaBlock> blocks =
            sched::BlocksAlong(graph, OpsNamed(program, order));
        sched::AddressPlan plan;
        {
          const py::gil_scoped_release release;
          sched::Budget budget(time_budget);
          plan = sched::PlanAddresses(sched::LifetimesOf(blocks), budget);
        }
        py::list placed;
        for (std::size_t i = 0; i < blocks.size(); ++i) {
          const sched::ArenaBlock& block = blocks[i];
          const bool is_workspace = block.workspace_of != sched::kNoOp;
          placed.append(py::make_tuple(
              is_workspace ? graph.op(block.workspace_of).name : graph.buffer(block.buffer).name,
              is_workspace, block.lifetime.begin, block.lifetime.end, plan.offsets[i],
              block.lifetime.bytes));
        }
        return placed;
      },
      py::arg("builder"), py::arg("order"), py::arg("time_budget"));
  m.def(
      "simulate",
      [](const program::GraphBuilder& builder, const std::vector<std::string>& order) {
        const program::Program program = builder.Build();
        const program::Runs runs = program::RunsNamed(program, order);
        if (runs.size() <= program.ops.size()) {
          return torch_ext::python::TimelineFields(program::Lower(program), runs);
        }
        program::RequireValid(program, runs);
        const sched::Graph graph = program::Lower(program::WithRepeats(program, runs));
        return torch_ext::python::TimelineFields(graph, graph.OriginalOrder());
      },
      py::arg("builder"), py::arg("order"));
  py::class_<program::Effects>(m, "Effects")
      .def(py::init([](std::string undeclared, bool is_stateful, bool changes_metadata,
                       bool draws_random_numbers, bool has_side_effect, bool is_collective,
                       bool writes_outside, bool is_apart_again, bool runs_once) {
             return program::Effects{std::move(undeclared), is_stateful,     changes_metadata,
                                     draws_random_numbers,  has_side_effect, is_collective,
                                     writes_outside,        is_apart_again,  runs_once};
           }),
           py::kw_only(), py::arg("undeclared") = "", py::arg("is_stateful") = false,
           py::arg("changes_metadata") = false, py::arg("draws_random_numbers") = false,
           py::arg("has_side_effect") = false, py::arg("is_collective") = false,
           py::arg("writes_outside") = false, py::arg("is_apart_again") = false,
           py::arg("runs_once") = false);
  // Filled by an adaptor; ids count from 0, in the sequence of the calls.
  py::class_<program::Program>(m, "Program")
      .def(py::init<>())
      .def(
          "add_buffer",
          [](program::Program& p, std::string name, std::int64_t size_bytes, bool kept,
             std::vector<std::int64_t> shape, std::string dtype) {
            p.buffers.push_back({.name = std::move(name),
                                 .bytes = size_bytes,
                                 .kept = kept,
                                 .shape = std::move(shape),
                                 .dtype = std::move(dtype)});
          },
          py::arg("name"), py::arg("size_bytes"), py::kw_only(), py::arg("kept"), py::arg("shape"),
          py::arg("dtype"))
      .def(
          "add_op",
          [](program::Program& p, std::string name, std::string kind,
             std::vector<std::string> inputs, std::vector<std::string> outputs,
             std::vector<program::OpId> makers, std::vector<program::BufferId> reads,
             std::vector<program::BufferId> writes, std::vector<program::BufferId> aliases,
             std::vector<program::BufferId> mutates, std::int64_t workspace_bytes,
             std::int64_t nanoseconds, program::Effects effects) {
            p.ops.push_back({.name = std::move(name),
                             .oper = std::move(kind),
                             .inputs = std::move(inputs),
                             .outputs = std::move(outputs),
                             .makers = std::move(makers),
                             .reads = std::move(reads),
                             .writes = std::move(writes),
                             .aliases = std::move(aliases),
                             .mutates = std::move(mutates),
                             .workspace_bytes = workspace_bytes,
                             .nanoseconds = nanoseconds,
                             .effects = std::move(effects)});
          },
          py::arg("name"), py::arg("kind"), py::kw_only(), py::arg("inputs"), py::arg("outputs"),
          py::arg("makers"), py::arg("reads"), py::arg("writes"), py::arg("aliases"),
          py::arg("mutates"), py::arg("workspace_bytes"), py::arg("nanoseconds"),
          py::arg("effects"))
      .def(
          "add_conflict",
          [](program::Program& p, program::OpId earlier, program::OpId later, bool by_statistics,
             bool is_inside, bool is_left_alone) {
            p.conflicts.push_back({earlier, later, by_statistics, is_inside, is_left_alone});
          },
          py::arg("earlier"), py::arg("later"), py::kw_only(), py::arg("by_statistics"),
          py::arg("is_inside"), py::arg("is_left_alone"))
      .def(
          "add_overwritable",
          [](program::Program& p, program::OpId op, program::BufferId result,
             program::BufferId argument) { p.overwritable.push_back({op, result, argument}); },
          py::arg("op"), py::arg("result"), py::arg("argument"))
      .def(
          "add_copyable",
          [](program::Program& p, program::OpId op, std::string value,
             std::vector<program::OpId> makers, std::vector<program::BufferId> reads,
             bool is_read_beside, std::int64_t size_bytes, std::string dtype) {
            p.copyable.push_back({op, std::move(value), std::move(makers), std::move(reads),
                                  is_read_beside, size_bytes, std::move(dtype)});
          },
          py::arg("op"), py::arg("value"), py::kw_only(), py::arg("makers"), py::arg("reads"),
          py::arg("is_read_beside"), py::arg("size_bytes"), py::arg("dtype"))
      .def(
          "add_tensor",
          [](program::Program& p, const std::string& value, std::vector<std::int64_t> shape,
             std::vector<std::int64_t> strides, std::string dtype, program::BufferId buffer,
             bool fills_buffer) {
            p.tensors[value] = {.shape = std::move(shape),
                                .dtype = std::move(dtype),
                                .buffer = buffer,
                                .fills_buffer = fills_buffer,
                                .strides = std::move(strides)};
          },
          py::arg("value"), py::kw_only(), py::arg("shape"), py::arg("strides"), py::arg("dtype"),
          py::arg("buffer"), py::arg("fills_buffer"))
      .def(
          "add_slicings",
          [](program::Program& p, program::OpId op,
             const std::vector<std::pair<std::string, std::vector<std::string>>>& tensors,
             std::map<std::string, program::CallConstant> constants) {
            std::vector<program::Argument> arguments;
            for (const auto& [name, values] : tensors) arguments.push_back({name, values});
            program::AddSlicings(p, op, arguments, std::move(constants));
          },
          py::arg("op"), py::arg("tensors"), py::arg("constants"))
      .def(
          "slicing",
          [](const program::Program& p, program::OpId op, int dimension) {
            return p.ops.at(op).slicings.at(dimension);
          },
          py::arg("op"), py::arg("dimension"))
      .def(
          "set_results",
          [](program::Program& p, std::vector<std::string> results) {
            p.results = std::move(results);
          },
          py::arg("values"))
      .def("set_threads", &program::SetThreads, py::arg("threads"))
      .def(
          "label",
          [](program::Program& p, program::OpId op, std::string source, std::string module_path) {
            p.ops.at(op).label = {std::move(source), std::move(module_path)};
          },
          py::arg("op"), py::arg("source"), py::arg("module_path"))
      .def("fields", &torch_ext::python::ProgramFields)
      .def(
          "after",
          [](const program::Program& p, const std::vector<std::string>& without) {
            const sched::Graph graph =
                program::Lower(p, torch_ext::python::HazardsWithout(without));
            std::vector<std::vector<program::OpId>> after;
            for (const sched::Op& op : graph.ops()) after.push_back(op.after);
            return after;
          },
          py::arg("without"))
      .def(
          "shuffled",
          [](const program::Program& p, std::uint64_t seed) {
            program::RandomEdits edits = program::Shuffled(p, seed);
            return py::make_tuple(std::move(edits.order), std::move(edits.edits.hoists),
                                  std::move(edits.edits.overwrites));
          },
          py::arg("seed"))
      .def(
          "plan",
          [](const program::Program& p, double time_budget,
             std::optional<std::int64_t> memory_budget, const std::string& scope,
             const std::vector<std::string>& levers, bool explain) {
            const sched::PlanOptions options =
                torch_ext::python::MakeOptions(time_budget, memory_budget, scope);
            const program::Levers wanted = program::LeversNamed(levers);
            program::LeverPlan found;
            std::vector<program::Reason> reasons;
            {
              const py::gil_scoped_release release;
              found = program::PlanLevers(p, wanted, options);
              if (explain)
                reasons = program::WhyNoGain(found.program, found.plan, options, wanted.overwrite);
            }
            return py::make_tuple(torch_ext::python::LeverPlanFields(
                                      p, p, found.program, found.graph, found.plan, found.edits,
                                      found.uses, found.plan.lower_bound_bytes),
                                  torch_ext::python::ReasonFields(reasons));
          },
          py::arg("time_budget"), py::arg("memory_budget"), py::arg("scope"), py::arg("levers"),
          py::arg("explain"))
      .def("op_nanoseconds",
           [](const program::Program& p) {
             py::dict nanoseconds;
             for (const program::Op& op : p.ops) nanoseconds[py::str(op.name)] = op.nanoseconds;
             return nanoseconds;
           })
      .def("repeatable",
           [](const program::Program& p) {
             std::vector<std::string> names;
             for (const program::Op& op : p.ops) {
               if (program::MayRepeat(op)) names.push_back(op.name);
             }
             return names;
           })
      .def(
          "with_repeats",
          [](const program::Program& p, const std::vector<std::string>& runs) {
            return program::WithRepeats(p, OpsNamed(p, runs));
          },
          py::arg("runs"))
      .def(
          "plan_repeats",
          [](const program::Program& p, const std::vector<std::string>& order,
             std::int64_t memory_budget, double time_budget, bool overwrite) {
            const sched::PlanOptions options =
                torch_ext::python::MakeOptions(time_budget, memory_budget, "all");
            const program::Runs runs = OpsNamed(p, order);
            program::RepeatPlan plan;
            {
              const py::gil_scoped_release release;
              plan = program::PlanRepeats(p, overwrite, runs, memory_budget, options);
            }
            return torch_ext::python::RepeatFields(p, plan);
          },
          py::arg("order"), py::kw_only(), py::arg("memory_budget"), py::arg("time_budget"),
          py::arg("overwrite"))
      .def(
          "plan_repeat_front",
          [](const program::Program& p, const std::vector<std::string>& order, int count,
             double time_budget, bool overwrite) {
            const sched::PlanOptions options =
                torch_ext::python::MakeOptions(time_budget, std::nullopt, "all");
            const program::Runs runs = OpsNamed(p, order);
            std::vector<program::RepeatPlan> plans;
            {
              const py::gil_scoped_release release;
              plans = program::PlanRepeatFront(p, overwrite, runs, count, options);
            }
            py::list fields;
            for (const program::RepeatPlan& plan : plans) {
              fields.append(torch_ext::python::RepeatFields(p, plan));
            }
            return fields;
          },
          py::arg("order"), py::kw_only(), py::arg("count"), py::arg("time_budget"),
          py::arg("overwrite"));
  m.def(
      "reason",
      [](const std::string& kind, std::string detail, std::int64_t size_bytes,
         std::int64_t other_bytes) {
        return torch_ext::python::ReasonFields(program::Reason{.kind = program::ReasonNamed(kind),
                                                               .detail = std::move(detail),
                                                               .bytes = size_bytes,
                                                               .other_bytes = other_bytes});
      },
      py::arg("kind"), py::kw_only(), py::arg("detail") = "", py::arg("size_bytes") = 0,
      py::arg("other_bytes") = 0);
  py::class_<program::OverwritingForm>(m, "OverwritingForm")
      .def(py::init<>())
      .def_readwrite("oper", &program::OverwritingForm::oper)
      .def_readwrite("overload", &program::OverwritingForm::overload)
      .def_readwrite("argument", &program::OverwritingForm::argument)
      .def_readwrite("form", &program::OverwritingForm::form)
      .def_readwrite("form_overload", &program::OverwritingForm::form_overload)
      .def_readwrite("target", &program::OverwritingForm::target)
      .def_readwrite("shaped", &program::OverwritingForm::shaped)
      .def_readwrite("typed", &program::OverwritingForm::typed)
      .def_readwrite("dtype", &program::OverwritingForm::dtype)
      .def_readwrite("no", &program::OverwritingForm::no)
      .def_readwrite("adds_no", &program::OverwritingForm::adds_no)
      .def_readwrite("rest_like", &program::OverwritingForm::rest_like)
      .def_readwrite("broadcasts", &program::OverwritingForm::broadcasts)
      .def_readwrite("keeps_layout", &program::OverwritingForm::keeps_layout);
  m.def("overwriting_forms", &program::OverwritingForms);
  torch_ext::python::AddSliceBindings(m);
  m.def("unit_for", &program::UnitFor, py::arg("size_bytes"));
  m.def("in_unit", &program::InUnit, py::arg("size_bytes"), py::arg("unit"));

  // The ops in the order of the tree, and its nodes, a parent before its children.
  m.def(
      "region_tree",
      [](const program::GraphBuilder& builder) {
        const sched::Graph graph = program::Lower(builder.Build());
        const sched::RegionTree tree = sched::FindRegions(graph);
        std::vector<std::string> ops;
        for (sched::OpId v : tree.ops) ops.push_back(graph.op(v).name);
        py::list nodes;
        for (const sched::RegionTree::Node& node : tree.nodes) {
          py::dict n;
          n["kind"] = sched::NameOf(node.kind);
          n["begin"] = node.begin;
          n["end"] = node.end;
          n["parent"] = node.parent;
          nodes.append(n);
        }
        return py::make_tuple(ops, nodes);
      },
      py::arg("builder"));
}
