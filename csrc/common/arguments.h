// The arguments of a call from Python, all by keyword, taken by name. They may come in any order;
// in the order in which they are taken each is found at once. Whatever is wrong is a TypeError or
// ValueError that names the argument.
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
  // As METH_FASTCALL | METH_KEYWORDS hands them over.
  Arguments(PyObject* const* values, Py_ssize_t positional, PyObject* names);

  // Where arrays are expected: on the CPU, unless it was said otherwise.
  const DLDevice& device() const { return device_; }
  // On the CUDA device that has that array; ValueError where it is on none.
  void expect_on_cuda(const Array& array);

  Array array(const char* name) { return {name, -1, take(name), false}; }
  Array optional(const char* name) { return {name, -1, take(name), true}; }
  std::vector<Array> arrays(const char* name, std::size_t count);
  // The elements of an array of that shape; null where there is none.
  template <class T>
  T* read(const char* name, Extents shape) {
    return array(name).at<T>(shape, device_);
  }
  template <class T>
  T* read_optional(const char* name, Extents shape) {
    return optional(name).at<T>(shape, device_);
  }

  // Between the limits, which it may be.
  std::int64_t integer(const char* name, std::int64_t low, std::int64_t high);
  std::vector<std::int64_t> integers(const char* name, std::int64_t low, std::int64_t high);
  std::uint64_t word(const char* name);
  double number(const char* name);
  // None for none.
  std::optional<std::vector<double>> optional_numbers(const char* name);
  bool flag(const char* name);
  std::string text(const char* name);
  // At least 1.
  int threads();

  // TypeError where an argument is left that nobody took.
  void finish() const;

 private:
  PyObject* take(const char* name);
  Py_ssize_t place_of(const char* name) const;

  PyObject* const* values_;
  PyObject* names_;  // a tuple, or null for no arguments
  Py_ssize_t count_, next_ = 0;
  std::uint64_t taken_ = 0;  // a bit for each
  DLDevice device_ = kCpu;
  std::vector<pybind11::tuple> kept_;  // lists as they came, whatever becomes of them meanwhile
};

}  // namespace cogen
