// How plans cross into Python: as a dict with the keys of the JSON. Shared by both modules.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "sched/graph.h"
#include "sched/plan.h"
#include "sched/simulate.h"

namespace torch_ext::python {

inline sched::PlanOptions MakeOptions(double time_budget, std::optional<std::int64_t> memory_budget,
                                      const std::string& scope) {
  if (!(time_budget >= 0 && time_budget <= 1e6)) {
    throw std::invalid_argument("time_budget must be between 0 and 1e6 seconds");
  }
  if (memory_budget && *memory_budget < 0) {
    throw std::invalid_argument("memory_budget must not be negative");
  }
  if (scope != "all" && scope != "bottleneck") {
    throw std::invalid_argument("scope must be 'all' or 'bottleneck', not '" + scope + "'");
  }
  sched::PlanOptions options;
  options.scope = scope == "all" ? sched::Scope::kAll : sched::Scope::kBottleneck;
  options.time_budget_seconds = time_budget;
  options.memory_budget_bytes = memory_budget;
  return options;
}

// All rules but those named; `names` are pairs of a name and a member of Rules.
template <typename Rules, typename Names>
Rules RulesWithout(const std::vector<std::string>& without, const Names& names) {
  Rules rules;
  for (const std::string& name : without) {
    const auto found =
        std::ranges::find(names, name, [](const auto& rule) { return std::string(rule.first); });
    if (found == names.end()) {
      std::string known;
      for (const auto& rule : names) known += std::string(" ") + rule.first;
      throw std::invalid_argument("there is no rule '" + name + "'; there are" + known);
    }
    rules.*(found->second) = false;
  }
  return rules;
}

inline pybind11::list TimelineFields(const sched::Graph& graph, const sched::Order& order) {
  const sched::Profile profile = sched::Simulate(graph, order);
  pybind11::list timeline;
  for (std::size_t i = 0; i < order.size(); ++i) {
    pybind11::dict entry;
    entry["op"] = graph.op(order[i]).name;
    entry["valley_bytes"] = profile.valley_bytes[i];
    entry["hill_bytes"] = profile.hill_bytes[i];
    timeline.append(entry);
  }
  return timeline;
}

inline pybind11::dict PlanFields(const sched::Graph& graph, const sched::Plan& plan) {
  namespace py = pybind11;
  py::dict fields;
  fields["ops"] = graph.num_ops();
  fields["buffers"] = graph.num_buffers();
  fields["original_peak_bytes"] = plan.original_peak_bytes;
  fields["peak_bytes"] = plan.peak_bytes;
  fields["lower_bound_bytes"] = plan.lower_bound_bytes;
  fields["status"] = plan.is_optimal() ? "optimal" : "feasible";
  fields["proof"] = sched::NameOf(plan.proof);
  fields["method"] = sched::NameOf(plan.method);
  fields["bottleneck"] = py::none();
  if (plan.bottleneck) {
    py::dict bottleneck;
    std::vector<std::string> buffers;
    for (sched::BufferId b : plan.bottleneck->buffers) buffers.push_back(graph.buffer(b).name);
    bottleneck["op"] = graph.op(plan.bottleneck->op).name;
    bottleneck["source"] = "";
    bottleneck["bytes"] = plan.bottleneck->bytes;
    bottleneck["buffers"] = buffers;
    fields["bottleneck"] = bottleneck;
  }
  fields["moved_ops"] = plan.moved_ops;
  fields["seconds"] = plan.seconds;
  fields["clock_stopped"] = plan.clock_stopped;
  fields["budget_met"] = plan.budget_met;
  std::vector<std::string> order;
  for (sched::OpId v : plan.order) order.push_back(graph.op(v).name);
  fields["order"] = order;
  py::list regions;
  for (const sched::Region& region : plan.regions) {
    py::dict r;
    r["kind"] = sched::NameOf(region.kind);
    r["ops"] = region.num_ops;
    r["method"] = sched::NameOf(region.method);
    r["proof"] = sched::NameOf(region.proof);
    r["peak_bytes"] = region.peak_bytes;
    regions.append(r);
  }
  fields["regions"] = regions;
  return fields;
}

}  // namespace torch_ext::python
