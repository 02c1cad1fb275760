#include "python/memory_bindings.h"

#include <c10/core/GradMode.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <map>
#include <string>
#include <utility>

#include "memory/arena.h"
#include "memory/meter.h"
#include "memory/ranges.h"
#include "memory/recorder.h"
#include "memory/signature.h"

namespace py = pybind11;

namespace torch_ext::python {
namespace {

// As SignatureOf (memory/signature.h), with dicts, and with what only Python has by its class.
class Signature {
 public:
  void Append(py::handle value) {
    if (depth_ == kMostDepth) throw py::value_error("arguments are nested too deeply");
    if (IsPlainTensor(value)) {
      memory::AppendSignature(text_, THPVariable_Unpack(value.ptr()));
    } else if (PyTuple_Check(value.ptr()) || PyList_Check(value.ptr())) {
      text_ += '(';
      AppendAll(py::reinterpret_borrow<py::sequence>(value));
      text_ += ')';
    } else if (PyDict_Check(value.ptr())) {
      AppendDict(py::reinterpret_borrow<py::dict>(value));
    } else if (value.is_none()) {
      text_ += "None";
    } else if (PyBool_Check(value.ptr())) {
      text_ += value.cast<bool>() ? "True" : "False";
    } else if (PyLong_CheckExact(value.ptr())) {
      int overflow = 0;
      const long long number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
      text_ += overflow == 0 ? std::to_string(number) : "Int";
    } else if (PyFloat_CheckExact(value.ptr())) {
      text_ += "Double";
    } else if (PyUnicode_CheckExact(value.ptr())) {
      text_ += "String";
    } else {
      AppendOther(value);
    }
  }
  void AppendAll(const py::sequence& values) {
    ++depth_;
    bool is_first = true;
    for (const py::handle value : values) {
      if (!is_first) text_ += ' ';
      is_first = false;
      Append(value);
    }
    --depth_;
  }
  // In the order of the names: calls that name the same arguments are alike.
  void AppendDict(const py::dict& values) {
    ++depth_;
    std::map<std::string, py::handle> named;
    for (const auto& [key, value] : values) named.emplace(py::str(key), value);
    text_ += '{';
    for (const auto& [key, value] : named) {
      for (const char letter : key) text_ += letter == '\n' ? ' ' : letter;
      text_ += ':';
      Append(value);
      text_ += ' ';
    }
    text_ += '}';
    --depth_;
  }
  std::string Take() { return std::move(text_); }

 private:
  static constexpr int kMostDepth = 32;

  // torch's own, of a layout that has sizes: others may raise when they are asked.
  static bool IsPlainTensor(py::handle value) {
    if (!THPVariable_CheckExact(value.ptr())) return false;
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    return !tensor.is_nested() && !tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
  }
  // Arrays of numpy, tensors of classes of their own: what has a shape and a dtype is told by them.
  void AppendOther(py::handle value) {
    text_ += py::type::of(value).attr("__qualname__").cast<std::string>();
    for (const char* name : {"dtype", "shape"}) {
      const py::object told = py::getattr(value, name, py::none());
      if (!told.is_none()) text_ += ':' + py::str(told).cast<std::string>();
    }
  }

  std::string text_;
  int depth_ = 0;
};

std::string SignatureOfCall(const py::tuple& args, const py::dict& named) {
  Signature signature;
  signature.AppendAll(args);
  if (!named.empty()) signature.AppendDict(named);
  std::string text = signature.Take();
  if (c10::GradMode::is_enabled()) text += " with gradients";  // what is saved for them lives on
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
      .def("erase", &memory::ArenaPool::Erase, py::arg("signature"))
      .def("has", &memory::ArenaPool::Has, py::arg("signature"))
      .def_property_readonly("signatures", &memory::ArenaPool::signatures)
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

  m.def("signature", &SignatureOfCall, py::arg("args"), py::arg("named"));
  m.def("arena_statistics", [] {
    py::dict fields = Fields(memory::StatisticsOfArenas());
    const memory::RangeStatistics ranges = memory::StatisticsOfRanges();
    fields["arenas"] = ranges.ranges;
    fields["reserved_bytes"] = ranges.reserved_bytes;
    return fields;
  });
}

}  // namespace torch_ext::python
