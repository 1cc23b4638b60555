// The misfit of a generator of dense layers and its gradient with respect to the latent, for one
// chain of a device's thread and widths that are known at compile time: all loops are unrolled, so
// that every number of the chain is in a register.
#pragma once

#include "mlp/mlp_chains_in_lanes.h"
#include "mlp/mlp_layers.h"

namespace cogen {
namespace COGEN_ISA {

static_assert(Lanes<float>::kCount == 1, "device code gives each thread one chain");

// A net of kLatent inputs, kDepth hidden layers with kHidden units and activation kKind, and kOut
// outputs. `numbers` has the layers one after the other.
template <class T, int kLatent, int kHidden, int kDepth, int kOut, Activation kKind>
struct StaticMlp {
  const T* numbers;
  Activation last;  // activation of the output
  T slope;

  static constexpr int kFirst = layer_numbers(kLatent, kHidden);
  static constexpr int kBetween = layer_numbers(kHidden, kHidden);

  static COGEN_HD bool fits(const Mlp<T>& net) {
    bool same = net.layers == kDepth + 1;
    same = same && net.width[0] == kLatent && net.width[kDepth + 1] == kOut;
    for (int k = 1; k <= kDepth; ++k) {
      same = same && net.width[k] == kHidden && net.activation[k - 1] == kKind;
    }
    return same;
  }
};

template <class T, int kLatent, int kHidden, int kDepth, int kOut, Activation kKind>
COGEN_HD constexpr int latent_size(const StaticMlp<T, kLatent, kHidden, kDepth, kOut, kKind>&) {
  return kLatent;
}

// y = x W + b; b may be null. Sums have the order of mlp_chains_in_lanes.h.
template <int kIn, int kOut, class T>
COGEN_HD void static_product(const T* weight, const T* bias, const Lanes<T>* x, Lanes<T>* y) {
  COGEN_UNROLL
  for (int o = 0; o < kOut; o += 4) {
    Lanes<T> sum[4];
    const Four<T> start = bias ? Four<T>::load(bias + o) : Four<T>{};
    COGEN_UNROLL
    for (int r = 0; r < 4; ++r) sum[r] = Lanes<T>::of(start.at[r]);
    COGEN_UNROLL
    for (int i = 0; i < kIn; ++i) {
      const Four<T> row = Four<T>::load(weight + i * padded(kOut) + o);
      COGEN_UNROLL
      for (int r = 0; r < 4; ++r) sum[r] = sum[r] + x[i] * row.at[r];
    }
    COGEN_UNROLL
    for (int r = 0; r < 4; ++r) {
      if (o + r < kOut) y[o + r] = sum[r];
    }
  }
}

template <int kIn, int kOut, class T>
COGEN_HD void static_forwards(const T* layer, Activation kind, T slope, const Lanes<T>* x,
                              Lanes<T>* y) {
  static_product<kIn, kOut>(layer, layer + kIn * padded(kOut), x, y);
  activate(kind, slope, kOut, y);
}

// Goes from the gradient with respect to a layer's outputs `y`, which is overwritten, to that with
// respect to its inputs.
template <int kIn, int kOut, class T>
COGEN_HD void static_backwards(const T* layer, Activation kind, T slope, const Lanes<T>* y,
                               Lanes<T>* grad, Lanes<T>* below) {
  const T* none = nullptr;
  deactivate(kind, slope, kOut, y, grad);
  static_product<kOut, kIn>(layer + (kIn + 1) * padded(kOut), none, grad, below);
}

template <class T, int kLatent, int kHidden, int kDepth, int kOut, Activation kKind>
COGEN_HD void energy_and_grad(const StaticMlp<T, kLatent, kHidden, kDepth, kOut, kKind>& net,
                              const Observed<T>& observed, const Lanes<T>* z, double* energy,
                              Lanes<T>* grad, Lanes<T>* /* room */) {
  typedef StaticMlp<T, kLatent, kHidden, kDepth, kOut, kKind> Net;
  const T* const last = net.numbers + Net::kFirst + (kDepth - 1) * Net::kBetween;
  COGEN_READ_AGAIN();
  Lanes<T> hidden[kDepth][kHidden], out[kOut], here[kOut], by_hidden[kDepth][kHidden];

  static_forwards<kLatent, kHidden>(net.numbers, kKind, net.slope, z, hidden[0]);
  COGEN_UNROLL
  for (int k = 1; k < kDepth; ++k) {
    static_forwards<kHidden, kHidden>(net.numbers + Net::kFirst + (k - 1) * Net::kBetween, kKind,
                               net.slope, hidden[k - 1], hidden[k]);
  }
  static_forwards<kHidden, kOut>(last, net.last, net.slope, hidden[kDepth - 1], out);
  COGEN_UNROLL
  for (int m = 0; m < kOut; ++m) here[m] = out[m];
  misfit_in_place(observed, kOut, here, energy);
  static_backwards<kHidden, kOut>(last, net.last, net.slope, out, here, by_hidden[kDepth - 1]);
  COGEN_UNROLL
  for (int k = kDepth - 1; k > 0; --k) {
    static_backwards<kHidden, kHidden>(net.numbers + Net::kFirst + (k - 1) * Net::kBetween, kKind,
                                 net.slope, hidden[k], by_hidden[k], by_hidden[k - 1]);
  }
  static_backwards<kLatent, kHidden>(net.numbers, kKind, net.slope, hidden[0], by_hidden[0], grad);
}

}  // namespace COGEN_ISA
}  // namespace cogen
