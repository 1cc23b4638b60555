// A generator with two latents, two outputs and two hidden layers of a width and an activation that
// are known at compile time, for a single chain on the CPU: the lanes of a pack have neighbouring
// units. A gradient waits for the one before it, so latency is what counts: from layer to layer all
// numbers stay in registers.
#pragma once

#include "mlp/mlp.h"
#include "mlp/mlp_activations.h"

namespace cogen {
namespace COGEN_ISA {

#if defined(__GNUC__) && !defined(__CUDACC__)

// Adds the halves of each of two vectors: the lower half of the result is for `a`, the upper for
// `b`.
COGEN_HD Pack<float, 1> half_sums(const Pack<float, 1>& a, const Pack<float, 1>& b) {
  return {__builtin_shufflevector(a.all, b.all, 0, 1, 2, 3, 12, 13, 14, 15) +
          __builtin_shufflevector(a.all, b.all, 4, 5, 6, 7, 8, 9, 10, 11)};
}
COGEN_HD Pack<double, 1> half_sums(const Pack<double, 1>& a, const Pack<double, 1>& b) {
  return {__builtin_shufflevector(a.all, b.all, 0, 1, 6, 7) +
          __builtin_shufflevector(a.all, b.all, 2, 3, 4, 5)};
}

// Adds neighbours: each half of the result has sums of `a`, then of `b`, from the same half of
// these.
COGEN_HD Pack<float, 1> neighbour_sums(const Pack<float, 1>& a, const Pack<float, 1>& b) {
  return {__builtin_shufflevector(a.all, b.all, 0, 2, 8, 10, 4, 6, 12, 14) +
          __builtin_shufflevector(a.all, b.all, 1, 3, 9, 11, 5, 7, 13, 15)};
}
COGEN_HD Pack<double, 1> neighbour_sums(const Pack<double, 1>& a, const Pack<double, 1>& b) {
  return {__builtin_shufflevector(a.all, b.all, 0, 4, 2, 6) +
          __builtin_shufflevector(a.all, b.all, 1, 5, 3, 7)};
}

// The sum of the numbers of each of eight packs.
COGEN_HD Units<float> sums_of(const Units<float> (&x)[kUnits]) {
  const Units<float> first = neighbour_sums(half_sums(x[0], x[4]), half_sums(x[1], x[5]));
  const Units<float> second = neighbour_sums(half_sums(x[2], x[6]), half_sums(x[3], x[7]));
  return neighbour_sums(first, second);
}
COGEN_HD Units<double> sums_of(const Units<double> (&x)[kUnits]) {
  Pack<double, 1> half[kUnits];
  COGEN_UNROLL
  for (int i = 0; i < kUnits; ++i) half[i] = x[i].low + x[i].high;
  return {neighbour_sums(half_sums(half[0], half[2]), half_sums(half[1], half[3])),
          neighbour_sums(half_sums(half[4], half[6]), half_sums(half[5], half[7]))};
}

// A pack that has number i of another one in all places.
template <int i>
COGEN_HD Pack<float, 1> repeated(const Units<float>& x) {
  return {__builtin_shufflevector(x.all, x.all, i, i, i, i, i, i, i, i)};
}
template <int i>
COGEN_HD Units<double> repeated(const Units<double>& x) {
  static_assert(i < Pack<double, 1>::kCount, "for the lower half");
  const Pack<double, 1> half{__builtin_shufflevector(x.low.all, x.low.all, i, i, i, i)};
  return {half, half};
}

#else

template <class T>
COGEN_HD Units<T> sums_of(const Units<T> (&x)[kUnits]) {
  T sums[kUnits] = {};
  for (int i = 0; i < kUnits; ++i) {
    T values[kUnits];
    x[i].store(values);
    for (int j = 0; j < kUnits; ++j) sums[i] += values[j];
  }
  return Units<T>::load(sums);
}

template <int i, class T>
COGEN_HD Units<T> repeated(const Units<T>& x) {
  T values[kUnits];
  x.store(values);
  return Units<T>::of(values[i]);
}

#endif

// y = x W + b, by a dot product for each output: W is transposed, (kOut, padded kIn). b may be
// null.
template <int kIn, int kOut, class T>
COGEN_HD void dot_products(const T* rows, const T* bias, const Units<T>* x, Units<T>* y) {
  constexpr int kStride = padded(kIn);
  COGEN_UNROLL
  for (int first = 0; first < kOut; first += kUnits) {
    Units<T> sum[kUnits];
    COGEN_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      sum[u] = Units<T>::of(T(0));
      if (first + u >= kOut) continue;
      const T* const row = rows + (first + u) * kStride;
      sum[u] = Units<T>::load(row) * x[0];
      COGEN_UNROLL
      for (int i = kUnits; i < kIn; i += kUnits) {
        sum[u] = sum[u] + Units<T>::load(row + i) * x[i / kUnits];
      }
    }
    y[first / kUnits] = sums_of(sum);
    if (bias) y[first / kUnits] = y[first / kUnits] + Units<T>::load(bias + first);
  }
}

// y = x W + b with two inputs, as a sum of two rows of W (2, padded kOut). b may be null.
template <int kOut, class T>
COGEN_HD void sum_of_rows(const T* weight, const T* bias, const Units<T>& x, Units<T>* y) {
  const Units<T> first = repeated<0>(x), second = repeated<1>(x);
  COGEN_UNROLL
  for (int o = 0; o < kOut; o += kUnits) {
    const Units<T> start = bias ? Units<T>::load(bias + o) : Units<T>::of(T(0));
    y[o / kUnits] = start + Units<T>::load(weight + o) * first +
                    Units<T>::load(weight + padded(kOut) + o) * second;
  }
}

// The net, and what is observed of its output. Latents, outputs and their gradients are a pack
// each, whose numbers after the second are zero.
template <class T, int kHidden, Activation kKind>
class SmallMlp {
 public:
  SmallMlp(const Mlp<T>& net, const Observed<T>& observed) : net_(net) {
    T target[kUnits] = {}, weight[kUnits] = {}, seen[kUnits] = {};
    for (int m = 0; m < 2; ++m) {
      target[m] = observed.target[m];
      weight[m] = T(2) * observed.weight[observed.weight_elementwise ? m : 0];
      seen[m] = observed.mask && !observed.mask[m] ? T(0) : T(1);
    }
    target_ = Units<T>::load(target);
    weight_ = Units<T>::load(weight);
    seen_ = Units<T>::load(seen);
  }

  static bool fits(const Mlp<T>& net) {
    return net.layers == 3 && net.width[0] == 2 && net.width[1] == kHidden &&
           net.width[2] == kHidden && net.width[3] == 2 && net.activation[0] == kKind &&
           net.activation[1] == kKind && net.activation[2] == Activation::identity;
  }

  // Returns the gradient of the misfit by z, and writes the outputs.
  COGEN_HD Units<T> grad(const Units<T>& z, Units<T>* outputs) const {
    const T* const none = nullptr;
    Units<T> first[kPacks], second[kPacks], by_first[kPacks], by_second[kPacks], by_latent;
    sum_of_rows<kHidden>(net_.weight[0], net_.bias[0], z, first);
    activate_all(first);
    dot_products<kHidden, kHidden>(net_.back[1], net_.bias[1], first, second);
    activate_all(second);
    dot_products<kHidden, 2>(net_.back[2], net_.bias[2], second, outputs);
    const Units<T> residual = where_positive(seen_, *outputs - target_, Units<T>::of(T(0)));
    sum_of_rows<kHidden>(net_.back[2], none, residual * weight_, by_second);
    deactivate_all(second, by_second);
    dot_products<kHidden, kHidden>(net_.weight[1], none, by_second, by_first);
    deactivate_all(first, by_first);
    dot_products<kHidden, 2>(net_.weight[0], none, by_first, &by_latent);
    return by_latent;
  }

 private:
  static constexpr int kPacks = padded(kHidden) / kUnits;

  COGEN_HD void activate_all(Units<T> (&x)[kPacks]) const {
    COGEN_UNROLL
    for (int p = 0; p < kPacks; ++p) activate(kKind, net_.slope, 1, &x[p]);
  }

  COGEN_HD void deactivate_all(const Units<T> (&y)[kPacks], Units<T> (&grad)[kPacks]) const {
    COGEN_UNROLL
    for (int p = 0; p < kPacks; ++p) deactivate(kKind, net_.slope, 1, &y[p], &grad[p]);
  }

  const Mlp<T>& net_;
  Units<T> target_, weight_, seen_;
};

}  // namespace COGEN_ISA
}  // namespace cogen
