// The activations of dense layers, and their backward pass.
#pragma once

#include "common/elementary_functions.h"
#include "common/kernels.h"
#include "common/simd_pack.h"

namespace cogen {
namespace COGEN_ISA {

template <class T>
COGEN_HD T softplus(T x) {
  const T size = x < T(0) ? -x : x;
  return (x > T(0) ? x : T(0)) + log1p_of(exp_of(-size));
}

template <class T>
COGEN_HD T tanh_of(T x) {
  const T e = expm1_of(x > T(15) ? T(30) : T(2) * x);
  return e / (e + T(2));
}

// Applies an activation to `count` packs, in place.
template <class T, int n>
COGEN_HD void activate(Activation kind, T slope, int count, Pack<T, n>* x) {
  const Pack<T, n> zero = Pack<T, n>::of(T(0));
  switch (kind) {
    case Activation::identity:
      return;
    case Activation::relu:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) x[i] = where_positive(x[i], x[i], zero);
      return;
    case Activation::leaky_relu:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) x[i] = where_positive(x[i], x[i], x[i] * slope);
      return;
    case Activation::tanh:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) x[i] = each(x[i], [](T v) { return tanh_of(v); });
      return;
    case Activation::sigmoid:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) {
        x[i] = each(x[i], [](T v) { return T(1) / (T(1) + exp_of(-v)); });
      }
      return;
    case Activation::softplus:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) x[i] = each(x[i], [](T v) { return softplus(v); });
      return;
    case Activation::elu:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) {
        x[i] = where_positive(x[i], x[i], each(x[i], [](T v) { return expm1_of(v); }));
      }
      return;
  }
}

// Turns the gradient with respect to a layer's outputs `y` into that with respect to the sums
// before the activation, in place. The derivative of each of these functions can be computed from
// its value.
template <class T, int n>
COGEN_HD void deactivate(Activation kind, T slope, int count, const Pack<T, n>* y,
                         Pack<T, n>* grad) {
  const Pack<T, n> zero = Pack<T, n>::of(T(0)), one = Pack<T, n>::of(T(1));
  switch (kind) {
    case Activation::identity:
      return;
    case Activation::relu:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) grad[i] = where_positive(y[i], grad[i], zero);
      return;
    case Activation::leaky_relu:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) grad[i] = where_positive(y[i], grad[i], grad[i] * slope);
      return;
    case Activation::tanh:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) grad[i] = grad[i] * (one - y[i] * y[i]);
      return;
    case Activation::sigmoid:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) grad[i] = grad[i] * (y[i] * (one - y[i]));
      return;
    case Activation::softplus:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) {
        grad[i] = grad[i] * each(y[i], [](T v) { return -expm1_of(-v); });
      }
      return;
    case Activation::elu:
      COGEN_DEVICE_UNROLL
      for (int i = 0; i < count; ++i) {
        grad[i] = where_positive(y[i], grad[i], grad[i] * (y[i] + one));
      }
      return;
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
