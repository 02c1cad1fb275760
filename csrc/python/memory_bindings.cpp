#include "python/memory_bindings.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>

#include "memory/arena.h"
#include "memory/meter.h"
#include "memory/ranges.h"
#include "memory/recorder.h"
#include "memory/signature.h"

namespace py = pybind11;

namespace torch_ext::python {
namespace {

// As SignatureOf, through tuples, lists and dicts; other values by what they are, for a number or a
// flag may lead another way.
void AppendObject(std::string& text, py::handle value) {
  if (THPVariable_Check(value.ptr())) {
    memory::AppendSignature(text, THPVariable_Unpack(value.ptr()));
    return;
  }
  if (!text.empty()) text += ' ';
  if (py::isinstance<py::tuple>(value) || py::isinstance<py::list>(value)) {
    text += '(';
    for (const py::handle part : value) AppendObject(text, part);
    text += ')';
  } else if (py::isinstance<py::dict>(value)) {
    text += '{';
    for (const auto& [key, part] : value.cast<py::dict>()) {
      AppendObject(text, key);
      text += ':';
      AppendObject(text, part);
    }
    text += '}';
  } else if (value.is_none() || py::isinstance<py::bool_>(value) ||
             py::isinstance<py::int_>(value) || py::isinstance<py::float_>(value) ||
             py::isinstance<py::str>(value)) {
    text += py::repr(value).cast<std::string>();  // one line
  } else {
    text += py::type::of(value).attr("__qualname__").cast<std::string>();
  }
}

std::string Signature(const py::tuple& args, const py::dict& named) {
  std::string text;
  for (const py::handle value : args) AppendObject(text, value);
  if (!named.empty()) AppendObject(text, named);
  return text;
}

py::dict Fields(const memory::ArenaStatistics& statistics) {
  py::dict calls;
  for (const auto& [deviation, name] : memory::kDeviationNames) {
    calls[name] = statistics.calls.at(static_cast<std::size_t>(deviation));
  }
  py::dict fields;
  fields["calls"] = calls;
  fields["served_blocks"] = statistics.served_blocks;
  fields["served_bytes"] = statistics.served_bytes;
  return fields;
}

}  // namespace

void AddMemoryBindings(py::module_& m) {
  py::class_<memory::Meter>(m, "MemoryMeter")
      .def(py::init<>())
      .def("stop", &memory::Meter::Stop)
      .def_property_readonly("peak_bytes", &memory::Meter::peak_bytes)
      .def_property_readonly("live_bytes", &memory::Meter::live_bytes);

  py::class_<memory::Recorder>(m, "Recorder")
      .def(py::init<>())
      .def("stop", &memory::Recorder::Stop)
      .def_property_readonly(
          "blocks",
          [](const memory::Recorder& recorder) {
            py::list blocks;
            for (const memory::RecordedBlock& block : recorder.blocks()) {
              blocks.append(py::make_tuple(block.bytes, block.birth, block.death));
            }
            return blocks;
          })
      .def("is_like", [](const memory::Recorder& recorder, const memory::Recorder& other) {
        return recorder.blocks() == other.blocks();
      });

  py::class_<memory::ArenaPool>(m, "ArenaPool")
      .def(py::init<>())
      .def_static("from_text", &memory::ArenaPool::FromText, py::arg("text"))
      .def("to_text", &memory::ArenaPool::ToText)
      .def(
          "plan",
          [](memory::ArenaPool& pool, const std::string& signature,
             const memory::Recorder& recorder, double time_budget) {
            memory::ArenaPlan plan;
            {
              const py::gil_scoped_release release;
              sched::Budget budget(time_budget);
              plan = memory::PlanArena(recorder.blocks(), budget);
            }
            const auto sizes = py::make_tuple(plan.height_bytes, plan.bound_bytes);
            pool.Insert(signature, std::move(plan));
            return sizes;
          },
          py::arg("signature"), py::arg("recorder"), py::arg("time_budget"))
      .def("has", &memory::ArenaPool::Has, py::arg("signature"))
      .def_property_readonly("signatures", &memory::ArenaPool::signatures)
      .def_property_readonly("height_bytes", &memory::ArenaPool::height_bytes)
      .def_property_readonly(
          "statistics", [](const memory::ArenaPool& pool) { return Fields(pool.statistics()); });

  py::class_<memory::ArenaGuard>(m, "ArenaGuard")
      .def(py::init<const memory::ArenaPool&, const std::string&>(), py::arg("pool"),
           py::arg("signature"))
      .def("stop", &memory::ArenaGuard::Stop)
      .def_property_readonly("is_nested", &memory::ArenaGuard::is_nested)
      .def_property_readonly("outcome", [](const memory::ArenaGuard& guard) {
        return memory::kDeviationNames.at(static_cast<std::size_t>(guard.deviation())).second;
      });

  m.def("signature", &Signature, py::arg("args"), py::arg("named"));
  m.def("arena_statistics", [] {
    py::dict fields = Fields(memory::StatisticsOfArenas());
    const memory::RangeStatistics ranges = memory::StatisticsOfRanges();
    fields["arenas"] = ranges.ranges;
    fields["reserved_bytes"] = ranges.reserved_bytes;
    fields["live_blocks"] = ranges.live_blocks;
    return fields;
  });
}

}  // namespace torch_ext::python
