// The misfit of a generator of dense layers and its gradient with respect to the latent, for a
// single chain on the CPU: the lanes of a pack have neighbouring units of a layer.
#pragma once

#include "mlp/mlp.h"
#include "mlp/mlp_activations.h"

namespace cogen {
namespace COGEN_ISA {

// Computes kPacks packs of outputs of a product over all inputs. Each output has kParts partial
// sums, because additions to the same sum wait for one another. kIn is the number of inputs if it
// is known at compile time, else 0.
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

// The weighted squared error of one output, whose gradient replaces it.
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

// How many numbers one evaluation needs: for the outputs of every layer, and two gradients.
template <class T>
inline int64_t workspace_of_one(const Mlp<T>& net) {
  int64_t sum = 2 * padded(widest(net));
  for (int k = 0; k <= net.layers; ++k) sum += padded(net.width[k]);
  return sum;
}

// One layer forwards: y = f(x W + b). kIn and kOut are widths known at compile time, or 0.
template <int kIn, int kOut, class T>
COGEN_HD void layer_forwards(const Mlp<T>& net, int k, const T* x, T* y) {
  const int in = kIn ? kIn : net.width[k], out = kOut ? kOut : net.width[k + 1];
  Units<T>* units = reinterpret_cast<Units<T>*>(y);
  product<kIn>(net.weight[k], net.bias[k], in, out, x, units);
  activate(net.activation[k], net.slope, padded(out) / kUnits, units);
}

// One layer backwards: from the gradient with respect to its outputs `y`, which is overwritten, to
// that with respect to its inputs.
template <int kIn, int kOut, class T>
COGEN_HD void layer_backwards(const Mlp<T>& net, int k, const T* y, T* grad, T* below) {
  const int in = kIn ? kIn : net.width[k], out = kOut ? kOut : net.width[k + 1];
  const T* none = nullptr;
  deactivate(net.activation[k], net.slope, padded(out) / kUnits,
             reinterpret_cast<const Units<T>*>(y), reinterpret_cast<Units<T>*>(grad));
  product<kOut>(net.back[k], none, out, in, grad, reinterpret_cast<Units<T>*>(below));
}

// Returns the misfit energy of one chain and writes its gradient with respect to z, which has room
// for a padded width. kHidden is the width of all hidden layers if there is code compiled for it,
// or 0.
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
      layer_forwards<kHidden, 0>(net, k, outputs[k], free);
    } else if (k == 0) {
      layer_forwards<0, kHidden>(net, k, outputs[k], free);
    } else {
      layer_forwards<kHidden, kHidden>(net, k, outputs[k], free);
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
      layer_backwards<kHidden, 0>(net, k, outputs[k + 1], here, below);
    } else if (k == 0) {
      layer_backwards<0, kHidden>(net, k, outputs[k + 1], here, below);
    } else {
      layer_backwards<kHidden, kHidden>(net, k, outputs[k + 1], here, below);
    }
    other = here;
    here = below;
  }
  return energy;
}

}  // namespace COGEN_ISA
}  // namespace cogen
