#include "python/slice_bindings.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "program/levers/slice.h"
#include "program/levers/slice_search.h"
#include "program/operators/slicing.h"
#include "program/sliceable.h"
#include "python/program_types.h"

namespace torch_ext::python {
namespace {

namespace py = pybind11;

using program::Interval;
using program::Need;
using program::PaddedPart;
using program::SlicedStretch;
using program::SliceFacts;
using program::Slicing;
using program::Stretch;
using program::Stretches;

py::tuple TupleOf(const PaddedPart& part) {
  return py::make_tuple(part.argument.begin, part.argument.end, part.padding, part.offset);
}

std::vector<std::pair<std::int64_t, std::int64_t>> PairsOf(const std::vector<Interval>& parts) {
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  for (const Interval& part : parts) pairs.emplace_back(part.begin, part.end);
  return pairs;
}

void AddTable(py::module_& m) {
  py::class_<Need>(m, "Need")
      .def_readonly("dimension", &Need::dimension)
      .def(
          "of",
          [](const Need& need, std::int64_t begin, std::int64_t end,
             std::int64_t size) -> std::optional<std::pair<std::int64_t, std::int64_t>> {
            const auto interval = need.Of({begin, end}, size);
            if (!interval) return std::nullopt;
            return std::pair(interval->begin, interval->end);
          },
          py::arg("begin"), py::arg("end"), py::arg("size"))
      .def(
          "padded",
          [](const Need& need, std::int64_t begin, std::int64_t end, std::int64_t size) {
            return TupleOf(program::Padded(need, {begin, end}, size));
          },
          py::arg("begin"), py::arg("end"), py::arg("size"));
  py::class_<Slicing>(m, "Slicing")
      .def_readonly("needs", &Slicing::needs)
      .def_readonly("sizes", &Slicing::sizes)
      .def_readonly("sizes_place", &Slicing::sizes_place)
      .def_readonly("size", &Slicing::size)
      .def_readonly("padding", &Slicing::padding)
      .def_readonly("padding_place", &Slicing::padding_place)
      .def_readonly("changes_argument", &Slicing::changes_argument)
      .def_readonly("may_be_view", &Slicing::may_be_view)
      // Interval of the argument, padding, and where the part is in what is made of both.
      .def(
          "argument_of",
          [](const Slicing& slicing, const Need& need, std::int64_t begin, std::int64_t end,
             std::int64_t size) -> std::optional<py::tuple> {
            const auto part = slicing.ArgumentOf(need, {begin, end}, size);
            return part ? std::optional(TupleOf(*part)) : std::nullopt;
          },
          py::arg("need"), py::arg("begin"), py::arg("end"), py::arg("size"));
  m.def("sliceable_operators", &program::SliceableOperators);
  m.def(
      "slicing_of",
      [](std::string oper, std::map<std::string, std::vector<std::int64_t>> shapes,
         std::map<std::string, program::CallConstant> constants, std::vector<std::int64_t> result,
         int dimension) {
        return program::SlicingOf(
            {std::move(oper), std::move(shapes), std::move(constants), std::move(result)},
            dimension);
      },
      py::arg("oper"), py::arg("shapes"), py::arg("constants"), py::arg("result"),
      py::arg("dimension"));
}

void AddStretches(py::module_& m) {
  py::class_<Stretch>(m, "Stretch")
      .def_readonly("ops", &Stretch::ops)
      .def_readonly("dimension", &Stretch::dimension)
      .def_readonly("part_size", &Stretch::part_size);
  py::class_<SlicedStretch::PartOp>(m, "PartOp")
      .def_readonly("op", &SlicedStretch::PartOp::op)
      .def_readonly("dimension", &SlicedStretch::PartOp::dimension)
      .def_readonly("overwrites", &SlicedStretch::PartOp::overwrites)
      .def_readonly("is_placed", &SlicedStretch::PartOp::is_placed)
      .def_readonly("keeps_rows", &SlicedStretch::PartOp::keeps_rows)
      .def_property_readonly("parts",
                             [](const SlicedStretch::PartOp& op) { return PairsOf(op.parts); })
      .def_property_readonly(
          "computed", [](const SlicedStretch::PartOp& op) { return PairsOf(op.Computed()); });
  py::class_<SlicedStretch>(m, "SlicedStretch")
      .def_readonly("ahead", &SlicedStretch::ahead)
      .def_readonly("behind", &SlicedStretch::behind)
      .def_readonly("ops", &SlicedStretch::ops)
      .def_readonly("results", &SlicedStretch::results);
  py::class_<SliceFacts>(m, "SliceFacts")
      .def(py::init<const program::Program&>(), py::arg("program"))
      .def(
          "learn",
          [](SliceFacts& facts, const SlicedStretch::PartOp& op, bool keeps_bits,
             std::int64_t workspace_bytes) {
            facts.Learn(op.Longest(), {keeps_bits, workspace_bytes});
          },
          py::arg("op"), py::kw_only(), py::arg("keeps_bits"), py::arg("workspace_bytes"));
  m.def("sliced", &program::Sliced, py::arg("program"), py::arg("stretch"), py::arg("facts"));
}

void AddSearch(py::module_& m) {
  py::class_<Stretches::Choice>(m, "Choice")
      .def_readonly("peak_bytes", &Stretches::Choice::peak_bytes)
      .def_readonly("stretches", &Stretches::Choice::stretches);
  py::class_<program::SliceTrial>(m, "SliceTrial")
      .def(py::init([](std::int64_t peak_bytes, std::int64_t measured_peak_bytes,
                       std::int64_t slices, double seconds, double seconds_without,
                       bool meets_budget) {
             return program::SliceTrial{peak_bytes, measured_peak_bytes, slices,
                                        seconds,    seconds_without,     meets_budget};
           }),
           py::kw_only(), py::arg("peak_bytes"), py::arg("measured_peak_bytes"), py::arg("slices"),
           py::arg("seconds"), py::arg("seconds_without"), py::arg("meets_budget"));
  m.def("slice_targets", &program::TargetsBelow, py::arg("peak_bytes"), py::arg("budget_bytes"));
  m.def("choose_stretches", &program::ChooseStretches, py::arg("program"), py::arg("order"),
        py::arg("facts"), py::arg("targets"), py::arg("learn"));
  m.def("random_stretches", &program::RandomStretches, py::arg("program"), py::arg("order"),
        py::arg("facts"), py::arg("seed"), py::arg("learn"));
  m.def("best_choice", &program::BestChoice, py::arg("choices"), py::arg("budget_bytes"),
        py::arg("attempt"));
  m.def(
      "why_no_slices",
      [](const std::vector<program::SliceTrial>& trials, bool has_budget,
         const std::string& obstacles) {
        return ReasonFields(program::WhyNoSlices(trials, has_budget, obstacles));
      },
      py::arg("trials"), py::arg("has_budget"), py::arg("obstacles"));
  m.def("slice_obstacles", &program::ObstaclesText, py::arg("program"), py::arg("facts"),
        py::arg("choices"));
  m.def(
      "floor_bytes", [](const program::Program& p) { return program::FloorOf(p).bytes; },
      py::arg("program"));
}

}  // namespace

void AddSliceBindings(py::module_& m) {
  AddTable(m);
  AddStretches(m);
  AddSearch(m);
}

}  // namespace torch_ext::python
