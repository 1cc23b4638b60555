// A generator of dense layers: its sizes, and what is observed of its output.
// cogen_fast/generators/mlp.py and ops/reference.py are the definition.
#pragma once

#include "common/kernels.h"
#include "common/philox.h"

namespace cogen {
namespace COGEN_ISA {

// A width with the units that fill its last vectors.
COGEN_HD constexpr int padded(int width) { return (width + kPadding - 1) / kPadding * kPadding; }

// What is observed of one output. The energy is sum_m weight_m r_m^2 with residuals r.
template <class T>
struct Observed {
  const T* target;      // (M,)
  const uint8_t* mask;  // (M,) or null for all
  const T* weight;      // (M,) if elementwise, else (1,)
  bool weight_elementwise;
};

template <class T>
COGEN_HD Observed<T> observed_of(const MlpObserved<T>& all, int64_t observation, int measured) {
  return {all.target + observation * measured,
          all.mask ? all.mask + observation * all.mask_stride : nullptr,
          all.weight + observation * all.weight_stride, all.weight_elementwise};
}

// The width of the widest layer.
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

// The width of all hidden layers if they have the same and there is code compiled for it, else 0.
template <class T>
inline int static_hidden_width(const Mlp<T>& net) {
  if (net.layers < 2) return 0;
  for (int k = 2; k < net.layers; ++k) {
    if (net.width[k] != net.width[1]) return 0;
  }
  const int hidden = net.width[1];
  return hidden == 16 || hidden == 20 || hidden == 32 ? hidden : 0;
}

}  // namespace COGEN_ISA
}  // namespace cogen
