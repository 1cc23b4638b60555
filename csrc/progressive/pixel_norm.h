// What follows each convolution of a progressive GAN, for one pixel: bias, leaky ReLU and pixel
// norm; and the backward pass. cogen_fast/ops/reference.py is the definition.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/kernels.h"

namespace cogen {
namespace COGEN_ISA {

// Computes pixel `pixel` of a.out from the convolution's output `x` there, which may be the same
// memory.
template <class T>
inline void finish(const PixelNorm<T>& a, const T* x, int64_t pixel) {
  const int64_t channels = a.channels;
  const T slope = a.slope;  // a copy: the loop is vectorised only if no store can change it
  const T* bias = a.bias;
  T* out = a.out + pixel * channels;
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < channels; ++c) {
    const T biased = x[c] + bias[c];
    const T y = biased > T(0) ? biased : slope * biased;
    squares += y * y;
    out[c] = y;
  }
  if (!a.scale) return;
  const T scale = T(1) / sqrt(squares / static_cast<T>(channels) + static_cast<T>(kNormEpsilon));
  a.scale[pixel] = scale;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) out[c] *= scale;
}

// Computes pixel `pixel` of a.grad, the gradient with respect to the convolution's output, from
// the gradient `x` with respect to the normalised output there. `x` is overwritten; a.grad may be
// its memory or that of a.out.
template <class T>
inline void finish(const PixelNormGrad<T>& a, T* x, int64_t pixel) {
  const int64_t channels = a.channels;
  const T* out = a.out + pixel * channels;
  T* grad = a.grad + pixel * channels;
  if (a.extra) {
    const T* extra = a.extra + pixel * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) x[c] += extra[c];
  }
  const T slope = a.slope;
  T along = 0, scale = 1;
  if (a.scale) {
#pragma omp simd reduction(+ : along)
    for (int64_t c = 0; c < channels; ++c) along += x[c] * out[c];
    along /= static_cast<T>(channels);
    scale = a.scale[pixel];
  }
  // The normalised output has the sign of what the leaky ReLU read.
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const T y = out[c], g = scale * (x[c] - along * y);
    grad[c] = y > T(0) ? g : slope * g;
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
