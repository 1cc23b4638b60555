// How a C++ function becomes a function of the Python module. It takes `Arguments&` and returns
// nothing or an integer.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <type_traits>

#include "common/arguments.h"

namespace cogen {

template <auto kFunction>
PyObject* result_of(Arguments& given) {
  if constexpr (std::is_void_v<decltype(kFunction(given))>) {
    kFunction(given);
    Py_RETURN_NONE;
  } else {
    return PyLong_FromLongLong(kFunction(given));
  }
}

// The function in the form that Python calls; exceptions become Python errors.
template <auto kFunction>
PyObject* called(PyObject*, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
  try {
    Arguments given(values, positional, names);
    return result_of<kFunction>(given);
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <auto kFunction>
PyMethodDef method(const char* name, const char* text) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&called<kFunction>)),
          METH_FASTCALL | METH_KEYWORDS, text};
}

// The functions of each file of bindings; the arrays live as long as the module.
PyMethodDef* hmc_methods();
PyMethodDef* misfit_methods();
PyMethodDef* mlp_methods();
PyMethodDef* noise_methods();
PyMethodDef* progressive_methods();
PyMethodDef* convolution_methods();

}  // namespace cogen
