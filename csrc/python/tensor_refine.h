// Few poses in torch tensors, refined on the calling thread without torch's dispatcher.
#pragma once

#include <pybind11/pybind11.h>

namespace erd::python {

// Adds its functions to the module; tensor_refine.cpp describes them.
void add_tensor_refine(pybind11::module_& m);

}  // namespace erd::python
