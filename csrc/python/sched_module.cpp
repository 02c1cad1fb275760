// torch_ext._sched: the core for Python. Needs no torch to be installed or imported.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "python/sched_types.h"
#include "sched/decompose.h"
#include "sched/instance.h"

namespace py = pybind11;
namespace sched = torch_ext::sched;

PYBIND11_MODULE(_sched, m) {
  m.attr("built_for_torch") = TORCH_EXT_TORCH_VERSION;

  py::class_<sched::GraphBuilder>(m, "GraphBuilder")
      .def(py::init<>())
      .def("add_buffer", &sched::GraphBuilder::AddBuffer, py::arg("name"), py::arg("size_bytes"),
           py::kw_only(), py::arg("input") = false, py::arg("kept") = false)
      .def("add_op", &sched::GraphBuilder::AddOp, py::arg("name"), py::kw_only(),
           py::arg("reads") = std::vector<std::string>(),
           py::arg("writes") = std::vector<std::string>(), py::arg("workspace_bytes") = 0,
           py::arg("after") = std::vector<std::string>())
      .def("to_text", [](const sched::GraphBuilder& b) { return sched::PrintInstance(b.Build()); });

  m.def(
      "parse_text",
      [](const std::string& text, const std::string& file) {
        return sched::GraphBuilder(sched::ParseInstance(text, file));
      },
      py::arg("text"), py::arg("file"));
  m.def(
      "plan",
      [](const sched::GraphBuilder& builder, double time_budget,
         std::optional<std::int64_t> memory_budget, const std::string& scope,
         const std::vector<std::string>& without) {
        const sched::Graph& graph = builder.Build();
        sched::PlanOptions options =
            torch_ext::python::MakeOptions(time_budget, memory_budget, scope);
        options.rules = torch_ext::python::RulesWithout<sched::Rules>(without, sched::kRuleNames);
        sched::Plan plan;
        {
          const py::gil_scoped_release release;
          plan = sched::MakePlan(graph, options);
        }
        return torch_ext::python::PlanFields(graph, plan);
      },
      py::arg("builder"), py::arg("time_budget"), py::arg("memory_budget"), py::arg("scope"),
      py::arg("without"));
  m.def(
      "simulate",
      [](const sched::GraphBuilder& builder, const std::vector<std::string>& order) {
        return torch_ext::python::TimelineFields(builder.Build(), builder.FindOps(order));
      },
      py::arg("builder"), py::arg("order"));
  // The ops in the order of the tree, and its nodes, a parent before its children.
  m.def(
      "region_tree",
      [](const sched::GraphBuilder& builder) {
        const sched::Graph& graph = builder.Build();
        const sched::RegionTree tree = sched::FindRegions(graph);
        std::vector<std::string> ops;
        for (sched::OpId v : tree.ops) ops.push_back(graph.op(v).name);
        py::list nodes;
        for (const sched::RegionTree::Node& node : tree.nodes) {
          py::dict n;
          n["kind"] = sched::KindName(node.kind);
          n["begin"] = node.begin;
          n["end"] = node.end;
          n["parent"] = node.parent;
          nodes.append(n);
        }
        return py::make_tuple(ops, nodes);
      },
      py::arg("builder"));
}
