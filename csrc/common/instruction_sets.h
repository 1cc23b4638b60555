// The instruction sets that the CPU kernels were built for, those that this CPU can run, and the
// one in use.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "common/kernels.h"

namespace cogen {

// The kernels of the instruction set in use.
template <class T>
const CpuOps<T>& ops();
template <>
const CpuOps<float>& ops<float>();
template <>
const CpuOps<double>& ops<double>();

// The names of instruction sets, the slowest first.
pybind11::tuple built_isas();
pybind11::tuple usable_isas();
const char* current_isa();
// Uses another instruction set from now on; ValueError if it was not built or cannot run here.
void set_isa(const std::string& name);

}  // namespace cogen
