// How programs and reasons cross into Python. Shared by both modules.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "program/hazards.h"
#include "program/levers/hoist.h"
#include "program/levers/levers.h"
#include "program/levers/repeat_search.h"
#include "program/levers/slice_search.h"
#include "program/lower.h"
#include "program/program.h"
#include "program/reason.h"
#include "python/sched_types.h"

namespace torch_ext::python {

inline program::HazardRules HazardsWithout(const std::vector<std::string>& without) {
  return RulesWithout<program::HazardRules>(without, program::kHazardRuleNames);
}

// What torch_ext/program/program.py calls a Program.
inline pybind11::dict ProgramFields(const program::Program& program) {
  namespace py = pybind11;
  const auto buffer_names = [&](const std::vector<program::BufferId>& ids) {
    std::vector<std::string> names;
    for (const program::BufferId b : ids) names.push_back(program.buffers[b].name);
    return names;
  };
  const sched::Graph graph = program::Lower(program);
  py::list ops, buffers;
  for (program::OpId v = 0; v < graph.num_ops(); ++v) {
    const program::Op& op = program.ops[v];
    std::vector<std::string> after;
    for (const program::OpId u : graph.op(v).after) after.push_back(program.ops[u].name);
    py::dict o;
    o["name"] = op.name;
    o["kind"] = op.oper;
    o["source"] = op.label.source;
    o["module_path"] = op.label.module_path;
    o["workspace_bytes"] = op.workspace_bytes;
    o["reads"] = buffer_names(op.reads);
    o["writes"] = buffer_names(op.writes);
    o["after"] = after;
    o["inputs"] = op.inputs;
    o["outputs"] = op.outputs;
    o["constants"] = op.constants;
    ops.append(o);
  }
  for (const program::Buffer& buffer : program.buffers) {
    py::dict b;
    b["name"] = buffer.name;
    b["bytes"] = buffer.bytes;
    b["shape"] = buffer.shape;
    b["dtype"] = buffer.dtype;
    b["is_input"] = buffer.is_input;
    b["kept"] = buffer.kept;
    buffers.append(b);
  }
  py::dict fields;
  fields["ops"] = ops;
  fields["buffers"] = buffers;
  return fields;
}

// What `describe` makes of each.
template <typename Item, typename Describe>
pybind11::list ListOf(const std::vector<Item>& items, const Describe& describe) {
  pybind11::list all;
  for (const Item& item : items) all.append(describe(item));
  return all;
}

// What torch_ext/program/plan.py calls a Reason.
inline pybind11::dict ReasonFields(const program::Reason& reason) {
  pybind11::dict fields;
  fields["kind"] = program::NameOf(reason.kind);
  fields["text"] = program::English(reason);
  return fields;
}

inline pybind11::list ReasonFields(const std::vector<program::Reason>& reasons) {
  return ListOf(reasons, [](const program::Reason& reason) { return ReasonFields(reason); });
}

// What torch_ext/program/plan.py calls a LeverUse, and the edits themselves by name: what
// torch_ext/program/program.py calls an Overwrite.
inline pybind11::list LeverFields(const std::vector<program::LeverUse>& uses) {
  return ListOf(uses, [](const program::LeverUse& use) {
    pybind11::dict fields;
    fields["name"] = use.name;
    fields["peak_bytes_before"] = use.peak_bytes_before;
    fields["peak_bytes_after"] = use.peak_bytes_after;
    fields["edits"] = use.edits;
    fields["extra_seconds"] = use.extra_seconds;
    fields["reason"] = program::English(use.reasons);
    return fields;
  });
}

inline pybind11::list OverwriteFields(const program::Program& original,
                                      const std::vector<std::size_t>& overwrites) {
  return ListOf(overwrites, [&](const std::size_t i) {
    const program::Overwrite& overwrite = original.overwritable[i];
    pybind11::dict fields;
    fields["op"] = original.ops[overwrite.op].name;
    fields["result"] = original.buffers[overwrite.result].name;
    fields["argument"] = original.buffers[overwrite.argument].name;
    return fields;
  });
}

// What torch_ext/program/program.py calls Hoists.
inline pybind11::list HoistFields(const program::Program& original,
                                  const std::vector<std::size_t>& hoists) {
  return ListOf(hoists, [&](const std::size_t i) {
    const program::Copy& copy = original.copyable[i];
    pybind11::dict fields;
    fields["copy"] = program::NameOfCopy(original, i);
    fields["op"] = original.ops[copy.op].name;
    fields["argument"] = copy.value;
    fields["bytes"] = copy.bytes;
    return fields;
  });
}

// What torch_ext/program/program.py calls Slices.
inline pybind11::list SliceFields(const std::vector<program::SliceUse>& slices) {
  return ListOf(slices, [](const program::SliceUse& use) {
    pybind11::dict fields;
    fields["name"] = use.name;
    fields["ops"] = use.ops;
    fields["result"] = use.result;
    fields["shape"] = use.shape;
    fields["dimension"] = use.dimension;
    fields["parts"] = use.parts;
    return fields;
  });
}

// What torch_ext/program/plan.py calls SliceTrials.
inline pybind11::list TrialFields(const std::vector<program::SliceTrial>& trials) {
  return ListOf(trials, [](const program::SliceTrial& trial) {
    pybind11::dict fields;
    fields["peak_bytes"] = trial.peak_bytes;
    fields["measured_peak_bytes"] = trial.measured_peak_bytes;
    fields["slices"] = trial.slices;
    fields["seconds"] = trial.seconds;
    fields["seconds_without"] = trial.seconds_without;
    return fields;
  });
}

// What torch_ext/program/plan.py calls a RepeatPlan.
inline pybind11::dict RepeatFields(const program::Program& program,
                                   const program::RepeatPlan& plan) {
  namespace py = pybind11;
  py::dict fields;
  fields["runs"] = ListOf(plan.runs, [&](program::OpId v) { return py::str(program.ops[v].name); });
  fields["peak_bytes"] = plan.peak_bytes;
  fields["nanoseconds"] = plan.nanoseconds;
  fields["extra_nanoseconds"] = plan.extra_nanoseconds;
  fields["fits"] = plan.fits;
  fields["floor_bytes"] = plan.floor.bytes;
  fields["floor_detail"] = program::WhatNeedsIt(program, plan.floor);
  fields["extra_bound_nanoseconds"] = plan.extra_bound_nanoseconds;
  fields["clock_stopped"] = plan.clock_stopped;
  return fields;
}

// What torch_ext/program/program.py calls Repeats.
inline pybind11::list RepeatUseFields(const std::vector<program::RepeatUse>& repeats) {
  return ListOf(repeats, [](const program::RepeatUse& use) {
    pybind11::dict fields;
    fields["name"] = use.name;
    fields["op"] = use.op;
    fields["seconds"] = static_cast<double>(use.nanoseconds) / 1e9;
    fields["module_path"] = use.label.module_path;
    fields["source"] = use.label.source;
    return fields;
  });
}

// What torch_ext/program/plan.py calls Times; None if there are none.
inline pybind11::object TimesFields(const std::optional<program::RepeatTimes>& times) {
  if (!times) return pybind11::none();
  pybind11::dict fields;
  fields["call_seconds"] = static_cast<double>(times->nanoseconds) / 1e9;
  fields["extra_seconds"] = static_cast<double>(times->extra_nanoseconds) / 1e9;
  fields["extra_seconds_bound"] = pybind11::none();
  if (const auto bound = times->extra_bound_nanoseconds) {
    fields["extra_seconds_bound"] = static_cast<double>(*bound) / 1e9;
  }
  pybind11::dict seconds;
  for (const auto& [op, nanoseconds] : times->op_nanoseconds) {
    seconds[pybind11::str(op)] = static_cast<double>(nanoseconds) / 1e9;
  }
  fields["op_seconds"] = seconds;
  return fields;
}

// Program, edited program, edits, plan, uses of levers: what a report is made of. The edits are of
// `sliced`, which is the original where nothing runs in parts or again.
inline pybind11::dict LeverPlanFields(const program::Program& original,
                                      const program::Program& sliced,
                                      const program::Program& edited, const sched::Graph& graph,
                                      const sched::Plan& plan, const program::Edits& edits,
                                      const std::vector<program::LeverUse>& uses,
                                      std::optional<std::int64_t> floor_bytes,
                                      const std::vector<program::SliceUse>& slices = {},
                                      const std::vector<program::SliceTrial>& trials = {},
                                      const std::vector<program::RepeatUse>& repeats = {},
                                      const std::optional<program::RepeatTimes>& times = {}) {
  pybind11::dict fields;
  fields["graph"] = ProgramFields(original);
  fields["edited"] = ProgramFields(edited);
  fields["overwrites"] = OverwriteFields(sliced, edits.overwrites);
  fields["hoists"] = HoistFields(sliced, edits.hoists);
  fields["slices"] = SliceFields(slices);
  fields["slice_trials"] = TrialFields(trials);
  fields["repeats"] = RepeatUseFields(repeats);
  fields["times"] = TimesFields(times);
  fields["floor_bytes"] = floor_bytes;
  fields["plan"] = PlanFields(graph, plan);
  fields["levers"] = LeverFields(uses);
  return fields;
}

}  // namespace torch_ext::python
