// Several chains side by side, one in each lane: the unit in which a small generator is evaluated.
// On a GPU a thread has one lane, and its neighbours the others.
#pragma once

#include <stdint.h>

#include "philox.h"
#include "step_math.h"

namespace cogen {
namespace COGEN_ISA {

#if defined(__GNUC__) && !defined(__CUDACC__)

// Two vectors of 32 bytes: enough independent sums to keep two multiply-add units busy, few enough
// for sixteen registers.
template <class T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(32)));
  static constexpr int kEach = 32 / sizeof(T);
  static constexpr int kCount = 2 * kEach;
  Vector low, high;

  static COGEN_HD Lanes of(T value) { return {Vector{} + value, Vector{} + value}; }
  COGEN_HD T get(int lane) const { return lane < kEach ? low[lane] : high[lane - kEach]; }
  COGEN_HD void set(int lane, T value) {
    if (lane < kEach) {
      low[lane] = value;
    } else {
      high[lane - kEach] = value;
    }
  }
};

template <class T>
COGEN_HD Lanes<T> operator+(const Lanes<T>& a, const Lanes<T>& b) {
  return {a.low + b.low, a.high + b.high};
}
template <class T>
COGEN_HD Lanes<T> operator-(const Lanes<T>& a, const Lanes<T>& b) {
  return {a.low - b.low, a.high - b.high};
}
template <class T>
COGEN_HD Lanes<T> operator*(const Lanes<T>& a, const Lanes<T>& b) {
  return {a.low * b.low, a.high * b.high};
}
template <class T>
COGEN_HD Lanes<T> operator*(const Lanes<T>& a, T b) {
  return {a.low * b, a.high * b};
}
// a where `sign` is positive, else b.
template <class T>
COGEN_HD Lanes<T> where_positive(const Lanes<T>& sign, const Lanes<T>& a, const Lanes<T>& b) {
  const typename Lanes<T>::Vector zero{};
  return {sign.low > zero ? a.low : b.low, sign.high > zero ? a.high : b.high};
}

#else

#if defined(__CUDACC__)
constexpr int kLaneBytes = 0;  // one lane
#else
constexpr int kLaneBytes = 64;
#endif

template <class T>
struct Lanes {
  static constexpr int kCount = kLaneBytes ? kLaneBytes / sizeof(T) : 1;
  T lane[kCount];

  static COGEN_HD Lanes of(T value) {
    Lanes all;
    for (int i = 0; i < kCount; ++i) all.lane[i] = value;
    return all;
  }
  COGEN_HD T get(int i) const { return lane[i]; }
  COGEN_HD void set(int i, T value) { lane[i] = value; }
};

template <class T>
COGEN_HD Lanes<T> operator+(const Lanes<T>& a, const Lanes<T>& b) {
  Lanes<T> out;
  for (int i = 0; i < Lanes<T>::kCount; ++i) out.lane[i] = a.lane[i] + b.lane[i];
  return out;
}
template <class T>
COGEN_HD Lanes<T> operator-(const Lanes<T>& a, const Lanes<T>& b) {
  Lanes<T> out;
  for (int i = 0; i < Lanes<T>::kCount; ++i) out.lane[i] = a.lane[i] - b.lane[i];
  return out;
}
template <class T>
COGEN_HD Lanes<T> operator*(const Lanes<T>& a, const Lanes<T>& b) {
  Lanes<T> out;
  for (int i = 0; i < Lanes<T>::kCount; ++i) out.lane[i] = a.lane[i] * b.lane[i];
  return out;
}
template <class T>
COGEN_HD Lanes<T> operator*(const Lanes<T>& a, T b) {
  return a * Lanes<T>::of(b);
}
template <class T>
COGEN_HD Lanes<T> where_positive(const Lanes<T>& sign, const Lanes<T>& a, const Lanes<T>& b) {
  Lanes<T> out;
  for (int i = 0; i < Lanes<T>::kCount; ++i) {
    out.lane[i] = sign.lane[i] > T(0) ? a.lane[i] : b.lane[i];
  }
  return out;
}

#endif

// Each lane through a function, as one loop that the compiler can vectorise.
template <class T, class Function>
COGEN_HD Lanes<T> each(const Lanes<T>& x, const Function& function) {
  constexpr int count = Lanes<T>::kCount;
  T values[count];
  memcpy(values, &x, sizeof values);
  COGEN_SIMD
  for (int i = 0; i < count; ++i) values[i] = function(values[i]);
  Lanes<T> out;
  memcpy(&out, values, sizeof values);
  return out;
}

}  // namespace COGEN_ISA
}  // namespace cogen
