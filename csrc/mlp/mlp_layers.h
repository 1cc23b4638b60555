// Where device code finds the layers of a net: in the run's own arrays, or copied one after the
// other into shared memory.
#pragma once

#include "mlp/mlp.h"

namespace cogen {
namespace COGEN_ISA {

// Four numbers that are read at once.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
  T at[4];

  static COGEN_HD Four load(const T* from) { return *reinterpret_cast<const Four*>(from); }
};

// How many numbers a layer has where its weights, its bias and its transposed weights lie one after
// the other, each padded as in Mlp.
COGEN_HD constexpr int layer_numbers(int in, int out) {
  return in * padded(out) + padded(out) + out * padded(in);
}

template <class T>
struct Layer {
  const T *weight, *bias, *back;  // as in Mlp
};

// The layers of a net in the arrays of the run.
template <class T>
struct LayersInPlace {
  const Mlp<T>& net;

  COGEN_HD Layer<T> operator()(int k) const { return {net.weight[k], net.bias[k], net.back[k]}; }
};

// The layers of a net copied one after the other; `first` says where each begins.
template <class T>
struct LayersPacked {
  const Mlp<T>& net;
  const T* numbers;
  const int* first;

  COGEN_HD Layer<T> operator()(int k) const {
    const int in = net.width[k], out = net.width[k + 1];
    const T* const weight = numbers + first[k];
    return {weight, weight + in * padded(out), weight + (in + 1) * padded(out)};
  }
};

// Where each layer begins among the numbers of all, and where the last one ends.
template <class T>
inline void place_layers(const Mlp<T>& net, int* first) {
  first[0] = 0;
  for (int k = 0; k < net.layers; ++k) {
    first[k + 1] = first[k] + layer_numbers(net.width[k], net.width[k + 1]);
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
