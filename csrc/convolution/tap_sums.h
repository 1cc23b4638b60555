// A transposed convolution of stride 2, padding 1 and a 4x4 kernel, from the products of each input
// pixel with all 16 weights: for images of few channels, of which tiles would waste most.
#pragma once

#include <stdint.h>

#include "common/kernels.h"
#include "common/parallel.h"
#include "progressive/pixel_norm.h"

namespace cogen {
namespace COGEN_ISA {

// The two taps of a parity along one side: the weight, and the input pixel by its distance.
struct Tap {
  int64_t weight, distance;
};
constexpr Tap kTaps[2][2] = {{{3, -1}, {1, 0}}, {{2, 0}, {0, 1}}};

// Adds up the terms of one output pixel, and finishes its activation. kChannels is 0 where their
// number is not known to the compiler.
template <class T, int kChannels>
inline void sum_pixel(const T* products, const Extent& size, int64_t image, int64_t y, int64_t x,
                      const PixelNorm<T>& to) {
  const int64_t channels = kChannels ? kChannels : to.channels;
  T* const out = to.out + ((image * 2 * size.height + y) * 2 * size.width + x) * channels;
  T local[kChannels ? kChannels : 1];
  T* const sum = kChannels ? local : out;  // few enough channels stay in registers
  for (int64_t c = 0; c < channels; ++c) sum[c] = to.bias[c];
  for (const Tap& row : kTaps[y % 2]) {
    const int64_t i = y / 2 + row.distance;
    if (i < 0 || i >= size.height) continue;
    for (const Tap& column : kTaps[x % 2]) {
      const int64_t j = x / 2 + column.distance;
      if (j < 0 || j >= size.width) continue;
      const int64_t pixel = (image * size.height + i) * size.width + j;
      const T* from = products + (pixel * 16 + row.weight * 4 + column.weight) * channels;
      for (int64_t c = 0; c < channels; ++c) sum[c] += from[c];
    }
  }
  for (int64_t c = 0; c < channels; ++c) out[c] = sum[c] > T(0) ? sum[c] : to.slope * sum[c];
}

template <class T, int kChannels>
void sum_taps_of(const Extent& size, const T* products, const PixelNorm<T>& to, int threads) {
  const int64_t units = size.count * 2 * size.height, width = 2 * size.width;
  const int64_t entries = 4 * units * width * to.channels;
  for_each_unit(units, threads_for(entries, units, threads), [&](int64_t unit) {
    const int64_t image = unit / (2 * size.height), y = unit % (2 * size.height);
    for (int64_t x = 0; x < width; ++x) {
      sum_pixel<T, kChannels>(products, size, image, y, x, to);
    }
  });
}

// Grey and colour images have loops of their own.
template <class T>
void sum_taps(const Extent& size, const T* products, const PixelNorm<T>& to, int threads) {
  const auto each = to.channels == 1   ? sum_taps_of<T, 1>
                    : to.channels == 3 ? sum_taps_of<T, 3>
                                       : sum_taps_of<T, 0>;
  each(size, products, to, threads);
}

}  // namespace COGEN_ISA
}  // namespace cogen
