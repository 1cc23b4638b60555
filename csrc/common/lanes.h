// Several numbers side by side, with the arithmetic of one: of neighbouring chains, or of
// neighbouring units of a layer.
#pragma once

#include <stdint.h>

#include "common/philox.h"
#include "common/step_math.h"

namespace cogen {
namespace COGEN_ISA {

#if defined(__CUDA_ARCH__) || (defined(__clang__) && !defined(__CUDACC__))
#define COGEN_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)  // for the host's part of a file, whose compilers agree on no word
#define COGEN_UNROLL
#elif defined(__GNUC__)
#define COGEN_UNROLL _Pragma("GCC unroll 64")
#else
#define COGEN_UNROLL
#endif

// On a device a loop must be unrolled for its array to stay in registers; and what is read before
// each turn of a loop is not read once and kept, where that is more than there are registers.
#if defined(__CUDA_ARCH__)
#define COGEN_DEVICE_UNROLL COGEN_UNROLL
#define COGEN_READ_AGAIN() asm volatile("" ::: "memory")
#else
#define COGEN_DEVICE_UNROLL
#define COGEN_READ_AGAIN()
#endif

constexpr int kVectorBytes = 32;

// kVectors vectors of 32 bytes (a power of two), which the compiler keeps in registers: halves, not
// an array, for GCC gives arrays memory.
template <class T, int kVectors>
struct Pack {
  typedef Pack<T, kVectors / 2> Half;
  static constexpr int kCount = 2 * Half::kCount;
  Half low, high;

  static COGEN_HD Pack of(T value) { return {Half::of(value), Half::of(value)}; }
  static COGEN_HD Pack load(const T* from) {
    return {Half::load(from), Half::load(from + Half::kCount)};
  }
  COGEN_HD void store(T* to) const {
    low.store(to);
    high.store(to + Half::kCount);
  }
};

// A single number.
template <class T>
struct Pack<T, 0> {
  static constexpr int kCount = 1;
  T all;

  static COGEN_HD Pack of(T value) { return {value}; }
  static COGEN_HD Pack load(const T* from) { return {*from}; }
  COGEN_HD void store(T* to) const { *to = all; }
};

template <class T>
COGEN_HD Pack<T, 0> operator+(const Pack<T, 0>& a, const Pack<T, 0>& b) {
  return {a.all + b.all};
}
template <class T>
COGEN_HD Pack<T, 0> operator-(const Pack<T, 0>& a, const Pack<T, 0>& b) {
  return {a.all - b.all};
}
template <class T>
COGEN_HD Pack<T, 0> operator*(const Pack<T, 0>& a, const Pack<T, 0>& b) {
  return {a.all * b.all};
}
template <class T>
COGEN_HD Pack<T, 0> operator*(const Pack<T, 0>& a, T b) {
  return {a.all * b};
}
template <class T>
COGEN_HD Pack<T, 0> where_positive(const Pack<T, 0>& sign, const Pack<T, 0>& a,
                                   const Pack<T, 0>& b) {
  return {sign.all > T(0) ? a.all : b.all};
}

#if defined(__GNUC__) && !defined(__CUDACC__)

template <class T>
struct Pack<T, 1> {
  static constexpr int kCount = kVectorBytes / sizeof(T);
  // Packs are read from and written to arrays of T.
  typedef T Vector __attribute__((vector_size(kVectorBytes), may_alias));
  Vector all;

  static COGEN_HD Pack of(T value) { return {Vector{} + value}; }
  static COGEN_HD Pack load(const T* from) {
    Pack pack;
    memcpy(&pack, from, sizeof pack);
    return pack;
  }
  COGEN_HD void store(T* to) const { memcpy(to, this, sizeof *this); }
};

template <class T>
COGEN_HD Pack<T, 1> operator+(const Pack<T, 1>& a, const Pack<T, 1>& b) {
  return {a.all + b.all};
}
template <class T>
COGEN_HD Pack<T, 1> operator-(const Pack<T, 1>& a, const Pack<T, 1>& b) {
  return {a.all - b.all};
}
template <class T>
COGEN_HD Pack<T, 1> operator*(const Pack<T, 1>& a, const Pack<T, 1>& b) {
  return {a.all * b.all};
}
template <class T>
COGEN_HD Pack<T, 1> operator*(const Pack<T, 1>& a, T b) {
  return {a.all * b};
}
template <class T>
COGEN_HD Pack<T, 1> where_positive(const Pack<T, 1>& sign, const Pack<T, 1>& a,
                                   const Pack<T, 1>& b) {
  return {sign.all > typename Pack<T, 1>::Vector{} ? a.all : b.all};
}

#else

template <class T>
struct Pack<T, 1> {
  static constexpr int kCount = kVectorBytes / sizeof(T);
  T all[kCount];

  static COGEN_HD Pack of(T value) {
    Pack pack;
    for (int i = 0; i < kCount; ++i) pack.all[i] = value;
    return pack;
  }
  static COGEN_HD Pack load(const T* from) {
    Pack pack;
    memcpy(&pack, from, sizeof pack);
    return pack;
  }
  COGEN_HD void store(T* to) const { memcpy(to, this, sizeof *this); }
};

template <class T>
COGEN_HD Pack<T, 1> operator+(const Pack<T, 1>& a, const Pack<T, 1>& b) {
  Pack<T, 1> out;
  for (int i = 0; i < Pack<T, 1>::kCount; ++i) out.all[i] = a.all[i] + b.all[i];
  return out;
}
template <class T>
COGEN_HD Pack<T, 1> operator-(const Pack<T, 1>& a, const Pack<T, 1>& b) {
  Pack<T, 1> out;
  for (int i = 0; i < Pack<T, 1>::kCount; ++i) out.all[i] = a.all[i] - b.all[i];
  return out;
}
template <class T>
COGEN_HD Pack<T, 1> operator*(const Pack<T, 1>& a, const Pack<T, 1>& b) {
  Pack<T, 1> out;
  for (int i = 0; i < Pack<T, 1>::kCount; ++i) out.all[i] = a.all[i] * b.all[i];
  return out;
}
template <class T>
COGEN_HD Pack<T, 1> operator*(const Pack<T, 1>& a, T b) {
  return a * Pack<T, 1>::of(b);
}
template <class T>
COGEN_HD Pack<T, 1> where_positive(const Pack<T, 1>& sign, const Pack<T, 1>& a,
                                   const Pack<T, 1>& b) {
  Pack<T, 1> out;
  for (int i = 0; i < Pack<T, 1>::kCount; ++i) {
    out.all[i] = sign.all[i] > T(0) ? a.all[i] : b.all[i];
  }
  return out;
}

#endif

template <class T, int n>
COGEN_HD Pack<T, n> operator+(const Pack<T, n>& a, const Pack<T, n>& b) {
  return {a.low + b.low, a.high + b.high};
}
template <class T, int n>
COGEN_HD Pack<T, n> operator-(const Pack<T, n>& a, const Pack<T, n>& b) {
  return {a.low - b.low, a.high - b.high};
}
template <class T, int n>
COGEN_HD Pack<T, n> operator*(const Pack<T, n>& a, const Pack<T, n>& b) {
  return {a.low * b.low, a.high * b.high};
}
template <class T, int n>
COGEN_HD Pack<T, n> operator*(const Pack<T, n>& a, T b) {
  return {a.low * b, a.high * b};
}
// a where `sign` is positive, else b.
template <class T, int n>
COGEN_HD Pack<T, n> where_positive(const Pack<T, n>& sign, const Pack<T, n>& a,
                                   const Pack<T, n>& b) {
  return {where_positive(sign.low, a.low, b.low), where_positive(sign.high, a.high, b.high)};
}

// Each number through a function, as one loop that the compiler can vectorise.
template <class T, int n, class Function>
COGEN_HD Pack<T, n> each(const Pack<T, n>& x, const Function& function) {
  T values[Pack<T, n>::kCount];
  x.store(values);
  COGEN_SIMD
  for (int i = 0; i < Pack<T, n>::kCount; ++i) values[i] = function(values[i]);
  return Pack<T, n>::load(values);
}

// Chains side by side: enough independent sums to keep two multiply-add units busy, few enough for
// sixteen registers. On a device threads are side by side, and each has one chain; a file that is
// the device's part asks for that, whatever compiles it.
template <class T>
#if defined(COGEN_CHAIN_PER_THREAD)
using Lanes = Pack<T, 0>;
#else
using Lanes = Pack<T, 2>;
#endif

// Units of a layer side by side, eight of them.
constexpr int kUnits = 8;
template <class T>
using Units = Pack<T, kUnits * sizeof(T) / kVectorBytes>;

}  // namespace COGEN_ISA
}  // namespace cogen
