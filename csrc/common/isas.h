// Instruction sets: what was built, what the CPU can run, what is used.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "common/kernels.h"

namespace cogen {

// Of the instruction set that is used.
template <class T>
const CpuOps<T>& ops();
template <>
const CpuOps<float>& ops<float>();
template <>
const CpuOps<double>& ops<double>();

// Names, slowest first.
pybind11::tuple built_isas();
pybind11::tuple usable_isas();
const char* current_isa();
// ValueError where it was not built or cannot run here.
void set_isa(const std::string& name);

}  // namespace cogen
