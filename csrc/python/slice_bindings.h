// What torch_ext/fx/slices.py needs of the lever slice.
#pragma once

#include <pybind11/pybind11.h>

namespace torch_ext::python {

void AddSliceBindings(pybind11::module_& m);

}  // namespace torch_ext::python
