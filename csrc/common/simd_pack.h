// Packs: several numbers side by side, with the arithmetic of a single number. They hold an entry
// of neighbouring chains (Lanes) or neighbouring units of a layer (Units).
#pragma once

#include <stdint.h>

#include "common/hmc_math.h"
#include "common/philox.h"

namespace cogen {
namespace COGEN_ISA {

#if defined(__CUDA_ARCH__) || (defined(__clang__) && !defined(__CUDACC__))
#define COGEN_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)  // the host's compilers have no pragma for it in common
#define COGEN_UNROLL
#elif defined(__GNUC__)
#define COGEN_UNROLL _Pragma("GCC unroll 64")
#else
#define COGEN_UNROLL
#endif

// On a device a loop must be unrolled if its array is to stay in registers. COGEN_READ_AGAIN makes
// the compiler read memory again after it: more weights kept from turn to turn than there are
// registers would be slower.
#if defined(__CUDA_ARCH__)
#define COGEN_DEVICE_UNROLL COGEN_UNROLL
#define COGEN_READ_AGAIN() asm volatile("" ::: "memory")
#else
#define COGEN_DEVICE_UNROLL
#define COGEN_READ_AGAIN()
#endif

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif

// A pack of kVectors vectors of kVectorBytes each; kVectors is a power of two. It consists of two
// halves and not of an array, because GCC keeps arrays in memory and not in registers.
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

// A pack of a single number.
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
  // may_alias: packs are read from and written to arrays of T.
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
// Selects `a` where `sign` is positive, else `b`.
template <class T, int n>
COGEN_HD Pack<T, n> where_positive(const Pack<T, n>& sign, const Pack<T, n>& a,
                                   const Pack<T, n>& b) {
  return {where_positive(sign.low, a.low, b.low), where_positive(sign.high, a.high, b.high)};
}

// Applies a function to each number, in one loop that the compiler can vectorise.
template <class T, int n, class Function>
COGEN_HD Pack<T, n> each(const Pack<T, n>& x, const Function& function) {
  T values[Pack<T, n>::kCount];
  x.store(values);
  COGEN_SIMD
  for (int i = 0; i < Pack<T, n>::kCount; ++i) values[i] = function(values[i]);
  return Pack<T, n>::load(values);
}

// A pack with an entry of several neighbouring chains. On the CPU there are two vectors: enough
// independent sums to keep two multiply-add units busy, few enough for sixteen registers. In device
// code, which defines COGEN_CHAIN_PER_THREAD, each thread has one chain.
template <class T>
#if defined(COGEN_CHAIN_PER_THREAD)
using Lanes = Pack<T, 0>;
#else
using Lanes = Pack<T, 2>;
#endif

// A pack with eight neighbouring units of a layer.
constexpr int kUnits = 8;
template <class T>
using Units = Pack<T, kUnits * sizeof(T) / kVectorBytes>;

}  // namespace COGEN_ISA
}  // namespace cogen
