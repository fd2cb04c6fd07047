#pragma once

#include <pybind11/pybind11.h>

namespace mmer::cuda {

// Adds the launch plans of the CUDA kernels to mmer._native.
void bind_plans(pybind11::module_& module);

}  // namespace mmer::cuda
