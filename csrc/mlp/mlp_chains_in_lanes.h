// The misfit of a generator of dense layers and its gradient with respect to the latent, for many
// chains: each lane of a pack has a chain of its own. CPU and CUDA compile this one source.
#pragma once

#include "common/hmc_math.h"
#include "mlp/mlp.h"
#include "mlp/mlp_activations.h"

namespace cogen {
namespace COGEN_ISA {

// What is done with the sum for output o of a product before it is written: nothing, the
// activation, or its backward pass.
template <class T>
struct AsItIs {
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
  const Lanes<T>* outputs;  // of the activation

  COGEN_HD Lanes<T> operator()(int o, Lanes<T> sum) const {
    deactivate(kKind, slope, 1, outputs + o, &sum);
    return sum;
  }
};

// Computes kRows outputs of a product, from number o on, over all inputs; the sums are in
// registers.
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

// y = finish(x W + b) with W (in, padded out); b may be null.
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

// y = f(x W + b) for layer k. Cheap activations f are applied while the sums are in registers,
// others in a second pass.
template <class T>
COGEN_HD void layer_forwards(const Mlp<T>& net, int k, const Lanes<T>* x, Lanes<T>* y) {
  const T *weight = net.weight[k], *bias = net.bias[k];
  const int in = net.width[k], out = net.width[k + 1];
  switch (net.activation[k]) {
    case Activation::relu:
      return product(weight, bias, in, out, x, Activated<Activation::relu, T>{net.slope}, y);
    case Activation::leaky_relu:
      return product(weight, bias, in, out, x, Activated<Activation::leaky_relu, T>{net.slope}, y);
    default:
      product(weight, bias, in, out, x, AsItIs<T>{}, y);
      activate(net.activation[k], net.slope, out, y);
  }
}

// Goes from the gradient with respect to the sums of layer k to that with respect to the sums of
// the layer before, whose outputs are `inputs`; or, for the first layer, to that with respect to
// the latent.
template <class T>
COGEN_HD void layer_backwards(const Mlp<T>& net, int k, const Lanes<T>* grad,
                              const Lanes<T>* inputs, Lanes<T>* below) {
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
      product(weight, none, out, in, grad, AsItIs<T>{}, below);
      if (k > 0) deactivate(net.activation[k - 1], net.slope, in, inputs, below);
  }
}

// The weighted squared error of outputs `x`, whose gradient replaces them. The energies of the
// lanes are summed in double.
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

// How many packs one evaluation needs: for the outputs of every layer, and two gradients.
template <class T>
COGEN_HD_LARGE int64_t workspace(const Mlp<T>& net) {
  int64_t sum = 2 * widest(net);
  for (int k = 0; k <= net.layers; ++k) sum += net.width[k];
  return sum;
}

// The misfit energies of the lanes, and their gradient with respect to the latents z; both z and
// `grad` are (width[0],).
template <class T>
COGEN_HD_LARGE void energy_and_grad(const Mlp<T>& net, const Observed<T>& observed,
                                    const Lanes<T>* z, double* energy, Lanes<T>* grad,
                                    Lanes<T>* room) {
  const Lanes<T>* outputs[kMostLayers + 1];
  outputs[0] = z;
  Lanes<T>* free = room;
  for (int k = 0; k < net.layers; ++k) {
    layer_forwards(net, k, outputs[k], free);
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
    layer_backwards(net, k, here, outputs[k], below);
    other = here;
    here = below;
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
