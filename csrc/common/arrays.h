// An array as it comes from Python: its memory, device, type, shape and strides, and its name.
// Kernels get its address only from `at` and its variants, which compare all of this with what the
// kernel expects; whatever does not fit is a TypeError or ValueError that names the array.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "common/dlpack.h"

namespace cogen {

// The numbers of kDLCPU and kDLCUDA in the DLPack standard.
constexpr int32_t kOnCpu = 1, kOnCuda = 2;
constexpr DLDevice kCpu{kOnCpu, 0};

// How DLPack describes the types of elements, by its kDLInt, kDLUInt, kDLFloat and kDLBool.
template <class T>
constexpr DLDataType kElement = {};
template <>
constexpr DLDataType kElement<float>{2, 32, 1};
template <>
constexpr DLDataType kElement<double>{2, 64, 1};
template <>
constexpr DLDataType kElement<std::int32_t>{0, 32, 1};
template <>
constexpr DLDataType kElement<std::int64_t>{0, 64, 1};
template <>
constexpr DLDataType kElement<std::uint8_t>{1, 8, 1};
template <>
constexpr DLDataType kElement<bool>{6, 8, 1};

typedef std::initializer_list<std::int64_t> Extents;

class Array {
 public:
  // `value` is a tensor, or None if the argument is `optional`. `number` is its place in a list of
  // arrays, or -1. `value` must live as long as the array does.
  Array(const char* name, int number, PyObject* value, bool optional);
  // There are no copies, because the view may point into what one array alone owns.
  Array(const Array&) = delete;
  Array(Array&&) = default;

  bool given() const { return given_; }
  int rank() const { return view_.ndim; }
  std::int64_t size(int axis) const { return view_.shape[axis]; }
  // The product of the sizes from `axis` on.
  std::int64_t size_from(int axis) const;
  DLDevice device() const { return view_.device; }
  template <class T>
  bool holds() const {
    return same(view_.dtype, kElement<std::remove_const_t<T>>);
  }

  // Raises ValueError unless the array has `rank` dimensions; `expected` is the shape in words.
  void require_rank(int rank, const char* expected) const;
  // The address of the elements of a contiguous array of that type and shape on that device; null
  // if no array was given.
  template <class T>
  T* at(Extents shape, const DLDevice& device) const {
    return static_cast<T*>(address(kElement<std::remove_const_t<T>>, shape, device));
  }
  // The same for the shape of another array.
  template <class T>
  T* at_like(const Array& other, const DLDevice& device) const {
    return static_cast<T*>(address(kElement<std::remove_const_t<T>>, other.view_.shape,
                                   static_cast<std::size_t>(other.rank()), device));
  }
  // The same for the shape of another array without its last dimension, which must exist.
  template <class T>
  T* at_pixels(const Array& other, const DLDevice& device) const {
    return static_cast<T*>(address(kElement<std::remove_const_t<T>>, other.view_.shape,
                                   static_cast<std::size_t>(other.rank()) - 1, device));
  }
  // The same for whatever shape the array has.
  template <class T>
  T* at_all(const DLDevice& device) const {
    return at_like<T>(*this, device);
  }

  // The name as messages have it: "energy", or "weights[2]" for an element of a list.
  std::string name() const;
  // Raises a ValueError such as "energy: expected ..., got float32 (4, 8)".
  [[noreturn]] void refuse(const std::string& expected) const;
  // Raises a TypeError with the same text.
  [[noreturn]] void refuse_type(const std::string& expected) const;

 private:
  static bool same(const DLDataType& a, const DLDataType& b) {
    return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
  }
  void* address(const DLDataType& type, Extents shape, const DLDevice& device) const {
    return address(type, shape.begin(), shape.size(), device);
  }
  void* address(const DLDataType& type, const std::int64_t* shape, std::size_t rank,
                const DLDevice& device) const;
  bool has_shape(const std::int64_t* shape, std::size_t rank) const;
  bool is_contiguous() const;
  [[noreturn]] void refuse_for(const DLDataType& type, const std::int64_t* shape, std::size_t rank,
                               const DLDevice& device) const;

  const char* name_;
  int number_;
  bool given_;
  DLTensor view_{};
  pybind11::object owner_;  // holds the memory of the view if the tensor itself does not
};

// Calls body(float()) or body(double()) by the type of an array; TypeError if it is neither.
template <class Body>
auto by_float_type(const Array& array, const Body& body) {
  if (array.holds<float>()) return body(float());
  if (array.holds<double>()) return body(double());
  array.refuse_type("float32 or float64");
}

}  // namespace cogen
