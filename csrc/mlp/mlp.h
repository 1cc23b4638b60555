// A generator of dense layers, and the gradient of its misfit by the latent, for chains in lanes.
// One text for CPU and CUDA; cogen_fast/generators/mlp.py and ops/reference.py are the definition.
#pragma once

#include "common/elementary.h"
#include "common/kernels.h"
#include "common/lanes.h"

namespace cogen {
namespace COGEN_ISA {

COGEN_HD constexpr int padded(int width) { return (width + kPadding - 1) / kPadding * kPadding; }

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

// In place, `count` packs.
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

// The gradient by a layer's sums from that by its outputs `y`, in place: each of these functions
// has a slope that its value tells.
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

// What becomes of the sums of a product before they are written: of output o, `sum`.
template <class T>
struct AsTheyAre {
  COGEN_HD Lanes<T> operator()(int /* o */, const Lanes<T>& sum) const { return sum; }
};

template <Activation kKind, class T>
struct Activated {
  T slope;

  COGEN_HD Lanes<T> operator()(int /* o */, Lanes<T> sum) const {
    activate(kKind, slope, 1, &sum);
    return sum;
  }
};

template <Activation kKind, class T>
struct Deactivated {
  T slope;
  const Lanes<T>* outputs;  // of the layer whose sums the gradient is by

  COGEN_HD Lanes<T> operator()(int o, Lanes<T> sum) const {
    deactivate(kKind, slope, 1, outputs + o, &sum);
    return sum;
  }
};

// kRows outputs of a product from o on, all inputs: sums stay in registers.
template <int kRows, class T, class Finish>
COGEN_HD void product_rows(const T* weight, const T* bias, int in, int stride, const Lanes<T>* x,
                           int o, const Finish& finish, Lanes<T>* y) {
  weight += o;
  Lanes<T> sum[kRows];
  for (int r = 0; r < kRows; ++r) sum[r] = Lanes<T>::of(bias ? bias[o + r] : T(0));
  for (int i = 0; i < in; ++i, weight += stride) {
    const Lanes<T> input = x[i];
    for (int r = 0; r < kRows; ++r) sum[r] = sum[r] + input * weight[r];
  }
  for (int r = 0; r < kRows; ++r) y[o + r] = finish(o + r, sum[r]);
}

// y = finish(x W + b), W (in, padded out).
template <class T, class Finish>
COGEN_HD_LARGE void product(const T* weight, const T* bias, int in, int out, const Lanes<T>* x,
                            const Finish& finish, Lanes<T>* y) {
  const int stride = padded(out);
  int o = 0;
  for (; o + 5 <= out; o += 5) product_rows<5>(weight, bias, in, stride, x, o, finish, y);
  switch (out - o) {
    case 4:
      return product_rows<4>(weight, bias, in, stride, x, o, finish, y);
    case 3:
      return product_rows<3>(weight, bias, in, stride, x, o, finish, y);
    case 2:
      return product_rows<2>(weight, bias, in, stride, x, o, finish, y);
    case 1:
      return product_rows<1>(weight, bias, in, stride, x, o, finish, y);
  }
}

// y = f(x W + b): cheap functions while the sums are in registers, others in a second pass.
template <class T>
COGEN_HD void product_up(const Mlp<T>& net, int k, const Lanes<T>* x, Lanes<T>* y) {
  const T *weight = net.weight[k], *bias = net.bias[k];
  const int in = net.width[k], out = net.width[k + 1];
  switch (net.activation[k]) {
    case Activation::relu:
      return product(weight, bias, in, out, x, Activated<Activation::relu, T>{net.slope}, y);
    case Activation::leaky_relu:
      return product(weight, bias, in, out, x, Activated<Activation::leaky_relu, T>{net.slope}, y);
    default:
      product(weight, bias, in, out, x, AsTheyAre<T>{}, y);
      activate(net.activation[k], net.slope, out, y);
  }
}

// From the gradient by the sums of layer k to that by its inputs' sums, or by the latent; `inputs`
// are the outputs of the layer before.
template <class T>
COGEN_HD void product_down(const Mlp<T>& net, int k, const Lanes<T>* grad, const Lanes<T>* inputs,
                           Lanes<T>* below) {
  const T *weight = net.back[k], *none = nullptr;
  const int in = net.width[k], out = net.width[k + 1];
  switch (k == 0 ? Activation::identity : net.activation[k - 1]) {
    case Activation::relu:
      return product(weight, none, out, in, grad,
                     Deactivated<Activation::relu, T>{net.slope, inputs}, below);
    case Activation::leaky_relu:
      return product(weight, none, out, in, grad,
                     Deactivated<Activation::leaky_relu, T>{net.slope, inputs}, below);
    default:
      product(weight, none, out, in, grad, AsTheyAre<T>{}, below);
      if (k > 0) deactivate(net.activation[k - 1], net.slope, in, inputs, below);
  }
}

// Weighted squared error of outputs `x`, which it turns into its gradient; energies of the lanes
// are summed in double.
template <class T>
COGEN_HD_LARGE void misfit_in_place(const Observed<T>& observed, int count, Lanes<T>* x,
                                    double* energy) {
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
    residual.store(values);
    COGEN_SIMD
    for (int l = 0; l < lanes; ++l) {
      const double r = values[l];
      energy[l] += static_cast<double>(weight) * r * r;
    }
    x[m] = residual * (T(2) * weight);
  }
}

template <class T>
COGEN_HD_LARGE int widest(const Mlp<T>& net) {
  int most = 0;
  for (int k = 0; k <= net.layers; ++k) most = net.width[k] > most ? net.width[k] : most;
  return most;
}

template <class T>
COGEN_HD int latent_size(const Mlp<T>& net) {
  return net.width[0];
}

template <class T>
COGEN_HD int measured_size(const Mlp<T>& net) {
  return net.width[net.layers];
}

// Room for one evaluation: the outputs of every layer, and two gradients.
template <class T>
COGEN_HD_LARGE int64_t workspace(const Mlp<T>& net) {
  int64_t sum = 2 * widest(net);
  for (int k = 0; k <= net.layers; ++k) sum += net.width[k];
  return sum;
}

// Misfit energies of the lanes, and their gradient by z, (width[0]) as z is.
template <class T>
COGEN_HD_LARGE void energy_and_grad(const Mlp<T>& net, const Observed<T>& observed,
                                    const Lanes<T>* z, double* energy, Lanes<T>* grad,
                                    Lanes<T>* room) {
  const Lanes<T>* outputs[kMostLayers + 1];
  outputs[0] = z;
  Lanes<T>* free = room;
  for (int k = 0; k < net.layers; ++k) {
    product_up(net, k, outputs[k], free);
    outputs[k + 1] = free;
    free += net.width[k + 1];
  }
  const int last = net.width[net.layers];
  Lanes<T>* here = free;
  Lanes<T>* other = free + widest(net);
  for (int m = 0; m < last; ++m) here[m] = outputs[net.layers][m];
  misfit_in_place(observed, last, here, energy);
  deactivate(net.activation[net.layers - 1], net.slope, last, outputs[net.layers], here);
  for (int k = net.layers - 1; k >= 0; --k) {
    Lanes<T>* below = k == 0 ? grad : other;
    product_down(net, k, here, outputs[k], below);
    other = here;
    here = below;
  }
}

// One chain: its units side by side.

// kPacks packs of outputs of a product, all inputs, in kParts sums that wait for one another less.
// kIn is the number of inputs where the compiler knows it, else 0.
template <int kPacks, int kParts, int kIn, class T>
COGEN_HD void product_packs(const T* weight, const T* bias, int in, int stride, const T* x,
                            Units<T>* y) {
  Units<T> sum[kParts][kPacks];
  for (int p = 0; p < kPacks; ++p) {
    sum[0][p] = bias ? Units<T>::load(bias + p * kUnits) : Units<T>::of(T(0));
    for (int s = 1; s < kParts; ++s) sum[s][p] = Units<T>::of(T(0));
  }
  if (kIn > 0) {
    COGEN_UNROLL
    for (int i = 0; i < kIn; ++i) {
      for (int p = 0; p < kPacks; ++p) {
        Units<T>& part = sum[i % kParts][p];
        part = part + Units<T>::load(weight + i * stride + p * kUnits) * x[i];
      }
    }
  } else {
    int i = 0;
    for (; i + kParts <= in; i += kParts, weight += kParts * stride) {
      for (int s = 0; s < kParts; ++s) {
        for (int p = 0; p < kPacks; ++p) {
          sum[s][p] = sum[s][p] + Units<T>::load(weight + s * stride + p * kUnits) * x[i + s];
        }
      }
    }
    for (; i < in; ++i, weight += stride) {
      for (int p = 0; p < kPacks; ++p) {
        sum[0][p] = sum[0][p] + Units<T>::load(weight + p * kUnits) * x[i];
      }
    }
  }
  for (int p = 0; p < kPacks; ++p) {
    Units<T> total = sum[0][p];
    for (int s = 1; s < kParts; ++s) total = total + sum[s][p];
    y[p] = total;
  }
}

template <int kIn = 0, class T>
COGEN_HD void product(const T* weight, const T* bias, int in, int out, const T* x, Units<T>* y) {
  const int stride = padded(out);
  int packs = stride / kUnits;
  for (; packs >= 4; packs -= 3, weight += 3 * kUnits, y += 3) {
    product_packs<3, 3, kIn>(weight, bias, in, stride, x, y);
    if (bias) bias += 3 * kUnits;
  }
  switch (packs) {
    case 3:
      return product_packs<3, 3, kIn>(weight, bias, in, stride, x, y);
    case 2:
      return product_packs<2, 4, kIn>(weight, bias, in, stride, x, y);
    case 1:
      return product_packs<1, 4, kIn>(weight, bias, in, stride, x, y);
  }
}

// The width of all layers between latent and output where it is the same and one that the compiler
// knows too, else 0.
template <class T>
inline int known_hidden(const Mlp<T>& net) {
  if (net.layers < 2) return 0;
  for (int k = 2; k < net.layers; ++k) {
    if (net.width[k] != net.width[1]) return 0;
  }
  const int hidden = net.width[1];
  return hidden == 16 || hidden == 20 || hidden == 32 ? hidden : 0;
}

// Weighted squared error of one output, which becomes its gradient.
template <class T>
inline double misfit_in_place(const Observed<T>& observed, int count, T* x) {
  double energy = 0.0;
  for (int m = 0; m < count; ++m) {
    if (observed.mask && !observed.mask[m]) {
      x[m] = T(0);
      continue;
    }
    const T weight = observed.weight[observed.weight_elementwise ? m : 0];
    const T residual = x[m] - observed.target[m];
    const double r = residual;
    energy += static_cast<double>(weight) * r * r;
    x[m] = residual * (T(2) * weight);
  }
  return energy;
}

template <class T>
inline int64_t workspace_of_one(const Mlp<T>& net) {
  int64_t sum = 2 * padded(widest(net));
  for (int k = 0; k <= net.layers; ++k) sum += padded(net.width[k]);
  return sum;
}

// One layer up: y = f(x W + b). kIn and kOut are widths that the compiler knows, or 0.
template <int kIn, int kOut, class T>
COGEN_HD void layer_up(const Mlp<T>& net, int k, const T* x, T* y) {
  const int in = kIn ? kIn : net.width[k], out = kOut ? kOut : net.width[k + 1];
  Units<T>* units = reinterpret_cast<Units<T>*>(y);
  product<kIn>(net.weight[k], net.bias[k], in, out, x, units);
  activate(net.activation[k], net.slope, padded(out) / kUnits, units);
}

// One layer down: from the gradient by its outputs `y`, destroyed, to that by its inputs.
template <int kIn, int kOut, class T>
COGEN_HD void layer_down(const Mlp<T>& net, int k, const T* y, T* grad, T* below) {
  const int in = kIn ? kIn : net.width[k], out = kOut ? kOut : net.width[k + 1];
  const T* none = nullptr;
  deactivate(net.activation[k], net.slope, padded(out) / kUnits,
             reinterpret_cast<const Units<T>*>(y), reinterpret_cast<Units<T>*>(grad));
  product<kOut>(net.back[k], none, out, in, grad, reinterpret_cast<Units<T>*>(below));
}

// The same for one chain: its energy, and the gradient by z, which has room for a padded width.
// kHidden is the width of all layers between latent and output, or 0.
template <int kHidden, class T>
inline double energy_and_grad(const Mlp<T>& net, const Observed<T>& observed, const T* z, T* grad,
                              T* room) {
  const int last = net.layers - 1, measured = net.width[net.layers];
  const T* outputs[kMostLayers + 1];
  outputs[0] = z;
  T* free = room;
  for (int k = 0; k <= last; ++k) {
    outputs[k + 1] = free;
    if (k == last) {
      layer_up<kHidden, 0>(net, k, outputs[k], free);
    } else if (k == 0) {
      layer_up<0, kHidden>(net, k, outputs[k], free);
    } else {
      layer_up<kHidden, kHidden>(net, k, outputs[k], free);
    }
    free += padded(net.width[k + 1]);
  }
  T* here = free;
  T* other = free + padded(widest(net));
  for (int m = 0; m < padded(measured); ++m) here[m] = outputs[net.layers][m];
  const double energy = misfit_in_place(observed, measured, here);
  for (int k = last; k >= 0; --k) {
    T* below = k == 0 ? grad : other;
    if (k == last) {
      layer_down<kHidden, 0>(net, k, outputs[k + 1], here, below);
    } else if (k == 0) {
      layer_down<0, kHidden>(net, k, outputs[k + 1], here, below);
    } else {
      layer_down<kHidden, kHidden>(net, k, outputs[k + 1], here, below);
    }
    other = here;
    here = below;
  }
  return energy;
}

}  // namespace COGEN_ISA
}  // namespace cogen
