#include "common/arrays.h"

#include <limits>

namespace py = pybind11;

namespace cogen {
namespace {

std::string text_of(const std::int64_t* sizes, std::size_t count) {
  std::string text = "(";
  for (std::size_t i = 0; i < count; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  return text + (count == 1 ? ",)" : ")");
}

std::string text_of(const DLDataType& type) {
  static const char* const kinds[] = {"int",    "uint",    "float", "opaque",
                                      "bfloat", "complex", "bool"};
  if (type.code == kElement<bool>.code) return "bool";
  const bool known = type.code < sizeof(kinds) / sizeof(*kinds) && type.lanes == 1;
  return (known ? kinds[type.code] : "another type of ") + std::to_string(type.bits);
}

std::string text_of(const DLDevice& device) {
  if (device.device_type == kOnCpu) return "cpu";
  if (device.device_type == kOnCuda) return "cuda:" + std::to_string(device.device_id);
  return "a device of type " + std::to_string(device.device_type);
}

bool same(const DLDevice& a, const DLDevice& b) {
  return a.device_type == b.device_type && (a.device_type == kOnCpu || a.device_id == b.device_id);
}

// The DLPack exchange functions that a Python type offers, or null. They are looked up again only
// if the type is not that of the call before.
const DLPackExchangeAPI* exchange_of(PyTypeObject* type) {
  static PyTypeObject* last = nullptr;  // a reference, so that no other type gets its address
  static const DLPackExchangeAPI* found = nullptr;
  if (type == last) return found;
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  const py::object capsule = py::getattr(handle, "__dlpack_c_exchange_api__", py::none());
  const DLPackExchangeAPI* api = nullptr;
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    api = static_cast<const DLPackExchangeAPI*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api->header.version.major != 1 || !api->dltensor_from_py_object_no_sync) api = nullptr;
  }
  Py_INCREF(type);
  Py_XDECREF(last);
  last = type;
  return found = api;
}

// The capsule by which torch describes a tensor, for versions of torch that offer nothing faster.
py::object capsule_of(py::handle value) {
  static PyObject* const describe =
      py::object(py::module_::import("torch.utils.dlpack").attr("to_dlpack")).release().ptr();
  return py::reinterpret_steal<py::object>(PyObject_CallOneArg(describe, value.ptr()));
}

// Replaces the Python error that is set by one that says what the object is.
[[noreturn]] void refuse_object(const std::string& name, py::handle value) {
  PyErr_Clear();
  if (!py::hasattr(value, "layout") || !py::hasattr(value, "is_meta")) {
    throw py::type_error(name + ": expected a torch.Tensor, got " + Py_TYPE(value.ptr())->tp_name);
  }
  throw py::value_error(name + ": expected a tensor of numbers in memory, got one of " +
                        std::string(py::str(value.attr("dtype"))) + ", " +
                        std::string(py::str(value.attr("layout"))) + ", on " +
                        std::string(py::str(value.attr("device"))));
}

}  // namespace

Array::Array(const char* name, int number, PyObject* value, bool optional)
    : name_(name), number_(number), given_(!(optional && value == Py_None)) {
  if (!given_) return;
  if (const DLPackExchangeAPI* api = exchange_of(Py_TYPE(value))) {
    if (api->dltensor_from_py_object_no_sync(value, &view_) != 0) {
      refuse_object(this->name(), value);
    }
    return;
  }
  owner_ = capsule_of(value);
  if (!owner_) refuse_object(this->name(), value);
  const auto* managed =
      static_cast<const DLManagedTensor*>(PyCapsule_GetPointer(owner_.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  view_ = managed->dl_tensor;
}

std::int64_t Array::size_from(int axis) const {
  std::int64_t product = 1;
  for (int i = axis; i < rank(); ++i) {
    if (size(i) > 0 && product > std::numeric_limits<std::int64_t>::max() / size(i)) {
      refuse("fewer elements than 2^63");
    }
    product *= size(i);
  }
  return product;
}

void Array::require_rank(int rank, const char* expected) const {
  if (given_ && this->rank() != rank) refuse(std::string("shape ") + expected);
}

void* Array::address(const DLDataType& type, const std::int64_t* shape, std::size_t rank,
                     const DLDevice& device) const {
  if (!given_) return nullptr;
  const auto first = reinterpret_cast<std::uintptr_t>(view_.data) + view_.byte_offset;
  if (!Array::same(view_.dtype, type) || !has_shape(shape, rank) ||
      !cogen::same(view_.device, device) || !is_contiguous() || first % (type.bits / 8) != 0) {
    refuse_for(type, shape, rank, device);
  }
  if (!view_.data && size_from(0) != 0) refuse("memory");
  return reinterpret_cast<void*>(first);
}

bool Array::has_shape(const std::int64_t* shape, std::size_t rank) const {
  if (static_cast<std::size_t>(view_.ndim) != rank) return false;
  for (std::size_t i = 0; i < rank; ++i) {
    if (view_.shape[i] != shape[i]) return false;
  }
  return true;
}

bool Array::is_contiguous() const {
  if (!view_.strides) return true;
  for (int i = 0; i < rank(); ++i) {
    if (size(i) == 0) return true;
  }
  std::int64_t stride = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (size(i) == 1) continue;
    if (view_.strides[i] != stride) return false;
    stride *= size(i);  // cannot overflow: so many elements are in memory
  }
  return true;
}

std::string Array::name() const {
  return number_ < 0 ? name_ : std::string(name_) + "[" + std::to_string(number_) + "]";
}

void Array::refuse(const std::string& expected) const {
  throw py::value_error(name() + ": expected " + expected + ", got " + text_of(view_.dtype) + " " +
                        text_of(view_.shape, static_cast<std::size_t>(rank())));
}

void Array::refuse_type(const std::string& expected) const {
  throw py::type_error(name() + ": expected " + expected + ", got " + text_of(view_.dtype) + " " +
                       text_of(view_.shape, static_cast<std::size_t>(rank())));
}

void Array::refuse_for(const DLDataType& type, const std::int64_t* shape, std::size_t rank,
                       const DLDevice& device) const {
  const std::string expected = text_of(type) + " " + text_of(shape, rank);
  if (!Array::same(view_.dtype, type)) refuse_type(expected);
  if (!has_shape(shape, rank)) refuse(expected);
  const std::string must = name() + ": expected ";
  if (!cogen::same(view_.device, device)) {
    throw py::value_error(must + "a tensor on " + text_of(device) + ", got one on " +
                          text_of(view_.device));
  }
  if (!is_contiguous()) {
    throw py::value_error(must + "a contiguous tensor, got strides " +
                          text_of(view_.strides, static_cast<std::size_t>(this->rank())));
  }
  throw py::value_error(must + "elements at multiples of their size, got an odd address");
}

}  // namespace cogen
