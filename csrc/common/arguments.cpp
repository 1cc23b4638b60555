#include "common/arguments.h"

#include <limits>

namespace py = pybind11;

namespace cogen {
namespace {

constexpr Py_ssize_t kMostArguments = 64;

// Raises a TypeError such as "threads: expected an integer, got float".
[[noreturn]] void refuse_kind(const std::string& name, const char* expected, PyObject* value) {
  PyErr_Clear();
  throw py::type_error(name + ": expected " + expected + ", got " + Py_TYPE(value)->tp_name);
}

std::int64_t integer_of(const std::string& name, PyObject* value, std::int64_t low,
                        std::int64_t high) {
  const auto whole = py::reinterpret_steal<py::object>(
      PyBool_Check(value) ? nullptr : PyNumber_Index(value));
  if (!whole) refuse_kind(name, "an integer", value);
  int overflow = 0;
  const long long found = PyLong_AsLongLongAndOverflow(whole.ptr(), &overflow);
  if (overflow != 0 || found < low || found > high) {
    throw py::value_error(name + ": expected between " + std::to_string(low) + " and " +
                          std::to_string(high) + ", got " + std::string(py::str(whole)));
  }
  return found;
}

double number_of(const std::string& name, PyObject* value) {
  const double found = PyFloat_AsDouble(value);
  if (found == -1.0 && PyErr_Occurred()) refuse_kind(name, "a number", value);
  return found;
}

std::string numbered(const char* name, std::size_t number) {
  return std::string(name) + "[" + std::to_string(number) + "]";
}

// A copy of a list or tuple.
py::tuple entries(const char* name, PyObject* value) {
  if (!PyList_Check(value) && !PyTuple_Check(value)) refuse_kind(name, "a list", value);
  return py::reinterpret_borrow<py::object>(value);
}

}  // namespace

Arguments::Arguments(PyObject* const* values, Py_ssize_t positional, PyObject* names)
    : values_(values), names_(names), count_(names ? PyTuple_GET_SIZE(names) : 0) {
  if (positional != 0) throw py::type_error("expected every argument by its name");
  if (count_ > kMostArguments) throw py::type_error("expected fewer arguments");
}

void Arguments::expect_on_cuda(const Array& array) {
  device_ = array.device();
  if (device_.device_type == kOnCuda) return;
  throw py::value_error(array.name() + ": expected a tensor on a CUDA device, got one elsewhere");
}

Py_ssize_t Arguments::place_of(const char* name) const {
  for (Py_ssize_t i = 0; i < count_; ++i) {
    const Py_ssize_t at = next_ + i < count_ ? next_ + i : next_ + i - count_;
    if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names_, at), name) == 0) return at;
  }
  throw py::type_error(std::string(name) + ": expected this argument, got none");
}

PyObject* Arguments::take(const char* name) {
  const Py_ssize_t at = place_of(name);
  next_ = at + 1;
  taken_ |= std::uint64_t{1} << at;
  return values_[at];
}

std::vector<Array> Arguments::arrays(const char* name, std::size_t count) {
  const py::tuple given = entries(name, take(name));
  if (given.size() != count) {
    throw py::value_error(std::string(name) + ": expected " + std::to_string(count) +
                          " arrays, got " + std::to_string(given.size()));
  }
  kept_.push_back(given);
  std::vector<Array> found;
  found.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    found.emplace_back(name, static_cast<int>(i), given[i].ptr(), false);
  }
  return found;
}

std::int64_t Arguments::integer(const char* name, std::int64_t low, std::int64_t high) {
  return integer_of(name, take(name), low, high);
}

std::vector<std::int64_t> Arguments::integers(const char* name, std::int64_t low,
                                              std::int64_t high) {
  const py::tuple given = entries(name, take(name));
  std::vector<std::int64_t> found;
  for (std::size_t i = 0; i < given.size(); ++i) {
    found.push_back(integer_of(numbered(name, i), given[i].ptr(), low, high));
  }
  return found;
}

std::uint64_t Arguments::word(const char* name) {
  PyObject* const value = take(name);
  const auto whole = py::reinterpret_steal<py::object>(
      PyBool_Check(value) ? nullptr : PyNumber_Index(value));
  if (!whole) refuse_kind(name, "an integer", value);
  const unsigned long long found = PyLong_AsUnsignedLongLong(whole.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    throw py::value_error(std::string(name) + ": expected an integer in [0, 2^64), got " +
                          std::string(py::str(whole)));
  }
  return found;
}

double Arguments::number(const char* name) { return number_of(name, take(name)); }

std::optional<std::vector<double>> Arguments::optional_numbers(const char* name) {
  PyObject* const value = take(name);
  if (value == Py_None) return std::nullopt;
  const py::tuple given = entries(name, value);
  std::vector<double> found;
  for (std::size_t i = 0; i < given.size(); ++i) {
    found.push_back(number_of(numbered(name, i), given[i].ptr()));
  }
  return found;
}

bool Arguments::flag(const char* name) {
  PyObject* const value = take(name);
  if (!PyBool_Check(value)) refuse_kind(name, "True or False", value);
  return value == Py_True;
}

std::string Arguments::text(const char* name) {
  PyObject* const value = take(name);
  const char* const found = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : nullptr;
  if (!found) refuse_kind(name, "a text", value);
  return found;
}

int Arguments::threads() {
  return static_cast<int>(integer("threads", 1, std::numeric_limits<int>::max()));
}

void Arguments::finish() const {
  for (Py_ssize_t at = 0; at < count_; ++at) {
    if (taken_ >> at & 1) continue;
    const py::handle name(PyTuple_GET_ITEM(names_, at));
    throw py::type_error(std::string(py::str(name)) + ": expected no such argument");
  }
}

}  // namespace cogen
