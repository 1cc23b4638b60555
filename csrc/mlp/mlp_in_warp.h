// The misfit of a generator of dense layers and its gradient with respect to the latent, for one
// chain of a device's warp: lane l has the units l, l + 32, ... of each layer. Lanes read one
// another's numbers from the warp's part of shared memory. device_thread.h describes what a
// Machine is.
#pragma once

#include "common/simd_pack.h"
#include "mlp/mlp_activations.h"
#include "mlp/mlp_layers.h"

namespace cogen {
namespace COGEN_ISA {

constexpr int kWarp = 32;

// Computes one unit of a product over all inputs, in four partial sums, because additions to the
// same sum wait for one another. `weight` points to the weight of the unit for the first input. kIn
// and kStride are `in` and `stride` if they are known at compile time, or 0.
template <int kIn, int kStride, class T>
COGEN_HD T unit_of(const T* weight, T bias, int in, int stride, const T* x) {
  T sum[4] = {bias, T(0), T(0), T(0)};
  const int count = kIn > 0 ? kIn : in, step = kStride > 0 ? kStride : stride;
  int i = 0;
  COGEN_DEVICE_UNROLL
  for (; i + 4 <= count; i += 4) {
    const Four<T> inputs = Four<T>::load(x + i);
    COGEN_UNROLL
    for (int s = 0; s < 4; ++s) sum[s] = sum[s] + weight[(i + s) * step] * inputs.at[s];
  }
  for (; i < count; ++i) sum[0] = sum[0] + weight[i * step] * x[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The same for a layer of a net whose hidden layers all have kHidden units, or 0 if that is not
// known at compile time.
template <int kHidden, class T>
COGEN_HD T unit_of_layer(const T* weight, T bias, int in, int out, const T* x) {
  const int stride = padded(out);
  if (kHidden == 0 || in != kHidden) return unit_of<0, 0>(weight, bias, in, stride, x);
  if (out != kHidden) return unit_of<kHidden, 0>(weight, bias, in, stride, x);
  return unit_of<kHidden, padded(kHidden)>(weight, bias, in, stride, x);
}

template <class T>
COGEN_HD T activated(Activation kind, T slope, T sum) {
  Lanes<T> unit = Lanes<T>::of(sum);
  activate(kind, slope, 1, &unit);
  return unit.all;
}

template <class T>
COGEN_HD T deactivated(Activation kind, T slope, T value, T grad) {
  const Lanes<T> unit = Lanes<T>::of(value);
  Lanes<T> by_unit = Lanes<T>::of(grad);
  deactivate(kind, slope, 1, &unit, &by_unit);
  return by_unit.all;
}

// Returns a lane's part of the weighted squared error of outputs `y`, and writes its part of the
// gradient with respect to the sums of the last layer.
template <class T>
COGEN_HD double misfit_of_lane(const Mlp<T>& net, const Observed<T>& observed, int lane, const T* y,
                               T* grad) {
  const Activation kind = net.activation[net.layers - 1];
  double energy = 0.0;
  for (int m = lane; m < measured_size(net); m += kWarp) {
    T by_output = T(0);
    if (!observed.mask || observed.mask[m]) {
      const T weight = observed.weight[observed.weight_elementwise ? m : 0];
      const T residual = y[m] - observed.target[m];
      const double r = residual;
      energy += static_cast<double>(weight) * r * r;
      by_output = residual * (T(2) * weight);
    }
    grad[m] = deactivated(kind, net.slope, y[m], by_output);
  }
  return energy;
}

// How many numbers one evaluation needs: for the outputs of every layer, and two gradients.
template <class T>
COGEN_HD int64_t workspace_of_warp(const Mlp<T>& net) {
  int64_t sum = 2 * padded(widest(net));
  for (int k = 1; k <= net.layers; ++k) sum += padded(net.width[k]);
  return sum;
}

// Returns a lane's part of the energy, and writes the dimensions of `grad` that are the lane's own.
// The warp must have been synchronised since `z` was written.
template <int kHidden, class T, class Machine, class Layers>
COGEN_HD_LARGE double energy_and_grad_in_warp(const Machine& machine, const Mlp<T>& net,
                                              const Layers& layers, const Observed<T>& observed,
                                              const T* z, T* grad, T* room) {
  const int lane = machine.thread % kWarp;
  const T* x = z;
  T* y = room;
  for (int k = 0; k < net.layers; ++k) {
    const Layer<T> layer = layers(k);
    const int in = net.width[k], out = net.width[k + 1];
    for (int o = lane; o < out; o += kWarp) {
      const T sum = unit_of_layer<kHidden>(layer.weight + o, layer.bias[o], in, out, x);
      y[o] = activated(net.activation[k], net.slope, sum);
    }
    machine.sync_warp();
    x = y;
    y += padded(out);
  }
  T* here = y;
  T* other = here + padded(widest(net));
  const double energy = misfit_of_lane(net, observed, lane, x, here);
  machine.sync_warp();
  for (int k = net.layers - 1; k >= 0; --k) {
    const Layer<T> layer = layers(k);
    const int in = net.width[k], out = net.width[k + 1];
    x -= k > 0 ? padded(in) : 0;  // from this layer's outputs to its inputs
    for (int i = lane; i < in; i += kWarp) {
      const T by_input = unit_of_layer<kHidden>(layer.back + i, T(0), out, in, here);
      if (k == 0) {
        grad[i] = by_input;
      } else {
        other[i] = deactivated(net.activation[k - 1], net.slope, x[i], by_input);
      }
    }
    machine.sync_warp();
    T* const done = here;
    here = other;
    other = done;
  }
  return energy;
}

}  // namespace COGEN_ISA
}  // namespace cogen
