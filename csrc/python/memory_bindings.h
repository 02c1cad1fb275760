// Meters, recorders and arenas for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace torch_ext::python {

void AddMemoryBindings(pybind11::module_& m);

}  // namespace torch_ext::python
