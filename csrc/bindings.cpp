// The Python module cogen_fast.ops._native. Its functions take torch tensors by keyword, and verify
// everything that a kernel relies on: see arguments.h and arrays.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "common/instruction_sets.h"
#include "common/python_methods.h"

namespace py = pybind11;

namespace cogen {
namespace {

py::dict build_info() {
  py::dict info;
  py::list archs;
#if defined(COGEN_WITH_CUDA)
  info["with_cuda"] = true;
  info["without_cuda"] = "";
  const std::string text = COGEN_CUDA_ARCHS;
  for (std::size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
    end = std::min(text.find(',', begin), text.size());
    archs.append(text.substr(begin, end - begin));
  }
#else
  info["with_cuda"] = false;
  info["without_cuda"] = COGEN_WITHOUT_CUDA;
#endif
  info["cuda_archs"] = py::tuple(archs);
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["compiler"] = COGEN_COMPILER;
  info["isa_built"] = built_isas();
  info["isa_usable"] = usable_isas();
  info["isa"] = current_isa();
  return info;
}

}  // namespace
}  // namespace cogen

PYBIND11_MODULE(_native, module) {
  for (PyMethodDef* methods : {cogen::hmc_methods(), cogen::misfit_methods(), cogen::mlp_methods(),
                               cogen::noise_methods(), cogen::progressive_methods(),
                               cogen::convolution_methods()}) {
    if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
  }
  module.def("build_info", &cogen::build_info);
  module.def("set_isa", &cogen::set_isa);
}
