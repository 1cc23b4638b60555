// The arguments of a call from Python, which are all given by keyword and are taken by name. They
// may come in any order; if they come in the order in which they are taken, no search is needed.
// Whatever is wrong is a TypeError or ValueError that names the argument.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/arrays.h"

namespace cogen {

class Arguments {
 public:
  // The parameters are those that a function with METH_FASTCALL | METH_KEYWORDS gets.
  Arguments(PyObject* const* values, Py_ssize_t positional, PyObject* names);

  // The device on which arrays are expected: the CPU, until `expect_on_cuda` is called.
  const DLDevice& device() const { return device_; }
  // From now on arrays are expected on the CUDA device of `array`; ValueError if it is on none.
  void expect_on_cuda(const Array& array);

  Array array(const char* name) { return {name, -1, take(name), false}; }
  Array optional(const char* name) { return {name, -1, take(name), true}; }
  std::vector<Array> arrays(const char* name, std::size_t count);
  // The elements of an array, which must have that shape. `read_optional` gives null for None.
  template <class T>
  T* read(const char* name, Extents shape) {
    return array(name).at<T>(shape, device_);
  }
  template <class T>
  T* read_optional(const char* name, Extents shape) {
    return optional(name).at<T>(shape, device_);
  }

  // Integers must lie between the limits, which are included.
  std::int64_t integer(const char* name, std::int64_t low, std::int64_t high);
  std::vector<std::int64_t> integers(const char* name, std::int64_t low, std::int64_t high);
  std::uint64_t word(const char* name);
  double number(const char* name);
  // Nothing if the argument is None.
  std::optional<std::vector<double>> optional_numbers(const char* name);
  bool flag(const char* name);
  std::string text(const char* name);
  // At least 1.
  int threads();

  // Raises TypeError if the caller gave an argument that was not taken.
  void finish() const;

 private:
  PyObject* take(const char* name);
  Py_ssize_t place_of(const char* name) const;

  PyObject* const* values_;
  PyObject* names_;  // a tuple, or null for no arguments
  Py_ssize_t count_, next_ = 0;
  std::uint64_t taken_ = 0;  // has a bit for each argument
  DLDevice device_ = kCpu;
  std::vector<pybind11::tuple> kept_;  // copies of lists: Python may change them during the call
};

}  // namespace cogen
