// A generator of dense layers, and the gradient of its misfit by the latent, for chains in lanes.
// One text for CPU and CUDA; cogen_fast/generators/mlp.py and ops/reference.py are the definition.
#pragma once

#include "elementary.h"
#include "kernels.h"
#include "lanes.h"

namespace cogen {
namespace COGEN_ISA {

COGEN_HD int padded(int width) { return (width + kPadding - 1) / kPadding * kPadding; }

// What is observed of one output, and how much it counts: energy sum_m weight_m r_m^2.
template <class T>
struct Observed {
  const T* target;      // (M,)
  const uint8_t* mask;  // (M,) or null for all
  const T* weight;      // (M,), or (1,) where not elementwise
  bool weight_elementwise;
};

template <class T>
COGEN_HD Observed<T> observed_of(const MlpObserved<T>& all, int64_t observation, int measured) {
  return {all.target + observation * measured,
          all.mask ? all.mask + observation * all.mask_stride : nullptr,
          all.weight + observation * all.weight_stride, all.weight_elementwise};
}

// kRows outputs of a product at a time, all inputs: sums stay in registers.
template <int kRows, class T>
COGEN_HD void product_rows(const T* weight, const T* bias, int in, int stride, const Lanes<T>* x,
                           Lanes<T>* y) {
  Lanes<T> sum[kRows];
  for (int r = 0; r < kRows; ++r) sum[r] = Lanes<T>::of(bias ? bias[r] : T(0));
  for (int i = 0; i < in; ++i, weight += stride) {
    const Lanes<T> input = x[i];
    for (int r = 0; r < kRows; ++r) sum[r] = sum[r] + input * weight[r];
  }
  for (int r = 0; r < kRows; ++r) y[r] = sum[r];
}

// y = x W + b, W (in, padded out).
template <class T>
inline void product(const T* weight, const T* bias, int in, int out, const Lanes<T>* x,
                    Lanes<T>* y) {
  const int stride = padded(out);
  int o = 0;
  for (; o + 4 <= out; o += 4) {
    product_rows<4>(weight + o, bias ? bias + o : nullptr, in, stride, x, y + o);
  }
  for (; o < out; ++o) {
    product_rows<1>(weight + o, bias ? bias + o : nullptr, in, stride, x, y + o);
  }
}

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

// In place, `count` units.
template <class T>
inline void activate(Activation kind, T slope, int count, Lanes<T>* x) {
  const Lanes<T> zero = Lanes<T>::of(T(0));
  switch (kind) {
    case Activation::identity:
      return;
    case Activation::relu:
      for (int i = 0; i < count; ++i) x[i] = where_positive(x[i], x[i], zero);
      return;
    case Activation::leaky_relu:
      for (int i = 0; i < count; ++i) x[i] = where_positive(x[i], x[i], x[i] * slope);
      return;
    case Activation::tanh:
      for (int i = 0; i < count; ++i) x[i] = each(x[i], [](T v) { return tanh_of(v); });
      return;
    case Activation::sigmoid:
      for (int i = 0; i < count; ++i) {
        x[i] = each(x[i], [](T v) { return T(1) / (T(1) + exp_of(-v)); });
      }
      return;
    case Activation::softplus:
      for (int i = 0; i < count; ++i) x[i] = each(x[i], [](T v) { return softplus(v); });
      return;
    case Activation::elu:
      for (int i = 0; i < count; ++i) {
        x[i] = where_positive(x[i], x[i], each(x[i], [](T v) { return expm1_of(v); }));
      }
      return;
  }
}

// The gradient by a layer's sums from that by its outputs `y`, in place: each of these functions
// has a slope that its value tells.
template <class T>
inline void deactivate(Activation kind, T slope, int count, const Lanes<T>* y, Lanes<T>* grad) {
  const Lanes<T> zero = Lanes<T>::of(T(0)), one = Lanes<T>::of(T(1));
  switch (kind) {
    case Activation::identity:
      return;
    case Activation::relu:
      for (int i = 0; i < count; ++i) grad[i] = where_positive(y[i], grad[i], zero);
      return;
    case Activation::leaky_relu:
      for (int i = 0; i < count; ++i) grad[i] = where_positive(y[i], grad[i], grad[i] * slope);
      return;
    case Activation::tanh:
      for (int i = 0; i < count; ++i) grad[i] = grad[i] * (one - y[i] * y[i]);
      return;
    case Activation::sigmoid:
      for (int i = 0; i < count; ++i) grad[i] = grad[i] * (y[i] * (one - y[i]));
      return;
    case Activation::softplus:
      for (int i = 0; i < count; ++i) {
        grad[i] = grad[i] * each(y[i], [](T v) { return -expm1_of(-v); });
      }
      return;
    case Activation::elu:
      for (int i = 0; i < count; ++i) {
        grad[i] = where_positive(y[i], grad[i], grad[i] * (y[i] + one));
      }
      return;
  }
}

// Weighted squared error of outputs `x`, which it turns into its gradient; energies of the lanes
// are summed in double.
template <class T>
inline void misfit_in_place(const Observed<T>& observed, int count, Lanes<T>* x, double* energy) {
  constexpr int lanes = Lanes<T>::kCount;
  for (int l = 0; l < lanes; ++l) energy[l] = 0.0;
  for (int m = 0; m < count; ++m) {
    if (observed.mask && !observed.mask[m]) {
      x[m] = Lanes<T>::of(T(0));
      continue;
    }
    const T weight = observed.weight[observed.weight_elementwise ? m : 0];
    const Lanes<T> residual = x[m] - Lanes<T>::of(observed.target[m]);
    T values[lanes];
    memcpy(values, &residual, sizeof values);
    COGEN_SIMD
    for (int l = 0; l < lanes; ++l) {
      const double r = values[l];
      energy[l] += static_cast<double>(weight) * r * r;
    }
    x[m] = residual * (T(2) * weight);
  }
}

// Room for one evaluation: the outputs of every layer, and two gradients.
template <class T>
inline int64_t workspace(const Mlp<T>& net) {
  int64_t sum = 0, widest = 0;
  for (int k = 0; k <= net.layers; ++k) {
    sum += net.width[k];
    widest = net.width[k] > widest ? net.width[k] : widest;
  }
  return sum + 2 * widest;
}

// Misfit energies (lanes) and their gradient by z, both (width[0]) lanes.
template <class T>
inline void energy_and_grad(const Mlp<T>& net, const Observed<T>& observed, const Lanes<T>* z,
                            double* energy, Lanes<T>* grad, Lanes<T>* room) {
  const Lanes<T>* outputs[kMostLayers + 1];
  outputs[0] = z;
  Lanes<T>* free = room;
  for (int k = 0; k < net.layers; ++k) {
    const int in = net.width[k], out = net.width[k + 1];
    product(net.weight[k], net.bias[k], in, out, outputs[k], free);
    activate(net.activation[k], net.slope, out, free);
    outputs[k + 1] = free;
    free += out;
  }
  const int last = net.width[net.layers];
  int64_t widest = 0;
  for (int k = 0; k <= net.layers; ++k) widest = net.width[k] > widest ? net.width[k] : widest;
  Lanes<T>* here = free;
  Lanes<T>* other = free + widest;
  for (int m = 0; m < last; ++m) here[m] = outputs[net.layers][m];
  misfit_in_place(observed, last, here, energy);
  for (int k = net.layers - 1; k >= 0; --k) {
    const int in = net.width[k], out = net.width[k + 1];
    deactivate(net.activation[k], net.slope, out, outputs[k + 1], here);
    Lanes<T>* below = k == 0 ? grad : other;
    product<T>(net.back[k], nullptr, out, in, here, below);
    other = here;
    here = below;
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
