// Correlations with two or three taps along each side of an image, by tiles: `kOut` outputs of a
// line from kOut + kTaps - 1 products in place of kTaps kOut (Winograd's F(m, r); Lavin and Gray 2016,
// arXiv:1509.09308). A tile of that many pixels along each side is transformed to as many operands,
// one for each of as many matrix products; their results are transformed to kOut^2 pixels. The
// products are not computed here.
//
// Three taps are a 3x3 convolution. Two taps are a quarter of a transposed convolution of stride 2
// with a 4x4 kernel, that of the output's rows and columns of one parity; its gradient with respect
// to the input is the sum of four of them, each of the pixels of one parity.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/simd_pack.h"
#include "progressive/image_bands.h"
#include "progressive/pixel_norm.h"

namespace cogen {
namespace COGEN_ISA {

// The transforms of one line: `before` makes operands of the inputs d, and `after` outputs of the
// results m. cogen_fast/ops/convolution/winograd.py has the transform of the kernel. The points of
// interpolation (0, infinity and those named) are, of several sets tried, those that lose least to
// rounding.
template <int kTaps, int kOut>
struct Line;

// With the point 1.
template <>
struct Line<2, 2> {
  template <class T, int n>
  static void before(const Pack<T, n> (&d)[3], Pack<T, n> (&v)[3]) {
    v[0] = d[0] - d[1], v[1] = d[1], v[2] = d[1] - d[2];
  }
  template <class T, int n>
  static void after(const Pack<T, n> (&m)[3], Pack<T, n> (&y)[2]) {
    y[0] = m[0] + m[1], y[1] = m[1] - m[2];
  }
};

// With the points 1, -1 and 1/2.
template <>
struct Line<2, 4> {
  template <class T, int n>
  static void before(const Pack<T, n> (&d)[5], Pack<T, n> (&v)[5]) {
    const T half = T(0.5);
    const Pack<T, n> odd = d[3] - d[1], step = (d[2] - d[1]) * half;
    v[0] = odd + (d[0] - d[2]) * half;
    v[1] = d[3] + step;
    v[2] = (d[3] - d[2]) - step;
    v[3] = odd;
    v[4] = (d[4] - d[2]) - odd * half;
  }
  template <class T, int n>
  static void after(const Pack<T, n> (&m)[5], Pack<T, n> (&y)[4]) {
    const Pack<T, n> sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = (m[0] + sum) + m[3];
    y[1] = difference + m[3] * T(0.5);
    y[2] = sum + m[3] * T(0.25);
    y[3] = (difference + m[3] * T(0.125)) + m[4];
  }
};

// With the points 1 and -1.
template <>
struct Line<3, 2> {
  template <class T, int n>
  static void before(const Pack<T, n> (&d)[4], Pack<T, n> (&v)[4]) {
    v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[3];
  }
  template <class T, int n>
  static void after(const Pack<T, n> (&m)[4], Pack<T, n> (&y)[2]) {
    y[0] = (m[0] + m[1]) + m[2], y[1] = (m[1] - m[2]) - m[3];
  }
};

// With the points 1, -1, 1/2 and -2.
template <>
struct Line<3, 4> {
  template <class T, int n>
  static void before(const Pack<T, n> (&d)[6], Pack<T, n> (&v)[6]) {
    const T half = T(0.5), more = T(1.5), most = T(2.5), two = T(2);
    const Pack<T, n> odd = d[3] - d[1], even = d[4] - d[2];
    v[0] = ((d[0] - d[2]) + even) + odd * more;
    v[1] = (d[4] - d[1]) + (d[3] * most + d[2] * half);
    v[2] = (d[4] + d[1]) + (d[3] * half - d[2] * most);
    v[3] = even + odd * two;
    v[4] = even - odd * half;
    v[5] = ((d[5] - d[3]) - odd) + even * more;
  }
  template <class T, int n>
  static void after(const Pack<T, n> (&m)[6], Pack<T, n> (&y)[4]) {
    const Pack<T, n> sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = (m[0] + sum) + (m[3] + m[4]);
    y[1] = difference + (m[3] * T(0.5) - m[4] * T(2));
    y[2] = sum + (m[3] * T(0.25) + m[4] * T(4));
    y[3] = difference + ((m[3] * T(0.125) - m[4] * T(8)) + m[5]);
  }
};

// Transforms one pack of channels, `from` of each pixel of a tile, to operands.
template <class T, int n, int kTaps, int kOut>
inline void fill_pack(const T* const* pixels, int64_t from, T* const* slots) {
  constexpr int kIn = kOut + kTaps - 1;
  Pack<T, n> rows[kIn][kIn];
  COGEN_UNROLL
  for (int y = 0; y < kIn; ++y) {
    Pack<T, n> line[kIn];
    COGEN_UNROLL
    for (int x = 0; x < kIn; ++x) line[x] = Pack<T, n>::load(pixels[y * kIn + x] + from);
    Line<kTaps, kOut>::before(line, rows[y]);
  }
  COGEN_UNROLL
  for (int x = 0; x < kIn; ++x) {
    Pack<T, n> line[kIn], out[kIn];
    COGEN_UNROLL
    for (int y = 0; y < kIn; ++y) line[y] = rows[y][x];
    Line<kTaps, kOut>::before(line, out);
    COGEN_UNROLL
    for (int y = 0; y < kIn; ++y) out[y].store(slots[y * kIn + x] + from);
  }
}

// Transforms one pack of channels of a tile's results to pixels, (kOut, kOut, channels).
template <class T, int n, int kTaps, int kOut>
inline void empty_pack(const T* const* slots, int64_t from, T* pixels, int64_t channels) {
  constexpr int kIn = kOut + kTaps - 1;
  Pack<T, n> rows[kOut][kIn];
  COGEN_UNROLL
  for (int x = 0; x < kIn; ++x) {
    Pack<T, n> line[kIn], out[kOut];
    COGEN_UNROLL
    for (int y = 0; y < kIn; ++y) line[y] = Pack<T, n>::load(slots[y * kIn + x] + from);
    Line<kTaps, kOut>::after(line, out);
    COGEN_UNROLL
    for (int y = 0; y < kOut; ++y) rows[y][x] = out[y];
  }
  COGEN_UNROLL
  for (int y = 0; y < kOut; ++y) {
    Pack<T, n> out[kOut];
    Line<kTaps, kOut>::after(rows[y], out);
    COGEN_UNROLL
    for (int x = 0; x < kOut; ++x) out[x].store(pixels + (y * kOut + x) * channels + from);
  }
}

// Computes the operands of all tiles.
template <class T, int kTaps, int kOut>
void fill_tiles(const TileGrid& grid, const TileImages<T>& images, const T* zeros, T* to,
                int64_t stride, int threads) {
  constexpr int kIn = kOut + kTaps - 1;
  const int64_t channels = images.channels, units = grid.count * grid.high;
  const int64_t entries = grid.tiles() * kIn * kIn * channels;
  for_each_unit(units, threads_for(entries, units, threads), [&](int64_t unit) {
    const int64_t image = unit / grid.high, i = unit % grid.high;
    for (int64_t j = 0; j < grid.wide; ++j) {
      const T* pixels[kIn * kIn];
      T* slots[kIn * kIn];
      for (int k = 0; k < kIn * kIn; ++k) {
        const int64_t y = grid.step * (kOut * i + k / kIn) + grid.top;
        const int64_t x = grid.step * (kOut * j + k % kIn) + grid.left;
        pixels[k] = pixel_or_zeros(images.first, zeros, channels, image, y, x, images.height,
                                   images.width);
        slots[k] = to + (k * grid.tiles() + unit * grid.wide + j) * stride;
      }
      int64_t from = 0;
      for (; from + Pack<T, 1>::kCount <= channels; from += Pack<T, 1>::kCount) {
        fill_pack<T, 1, kTaps, kOut>(pixels, from, slots);
      }
      for (; from < channels; ++from) fill_pack<T, 0, kTaps, kOut>(pixels, from, slots);
    }
  });
}

// Turns the results of all tiles into an activation, or into the gradient by what the activation
// before was made of: Finish says which.
template <class T, int kTaps, int kOut, class Finish>
void finish_tiles(const TileGrid& grid, const T* results, const Finish& to, int64_t height,
                     int64_t width, T* pixels, int threads) {
  constexpr int kIn = kOut + kTaps - 1;
  const int64_t channels = to.channels, units = grid.count * grid.high;
  const int64_t entries = grid.tiles() * kIn * kIn * channels;
  for_each_unit(units, threads_for(entries, units, threads), [&](int64_t unit) {
    const int64_t image = unit / grid.high, i = unit % grid.high;
    T* const tile = pixels + thread_number() * kOut * kOut * channels;
    for (int64_t j = 0; j < grid.wide; ++j) {
      const T* slots[kIn * kIn];
      for (int k = 0; k < kIn * kIn; ++k) {
        slots[k] = results + (k * grid.tiles() + unit * grid.wide + j) * channels;
      }
      int64_t from = 0;
      for (; from + Pack<T, 1>::kCount <= channels; from += Pack<T, 1>::kCount) {
        empty_pack<T, 1, kTaps, kOut>(slots, from, tile, channels);
      }
      for (; from < channels; ++from) empty_pack<T, 0, kTaps, kOut>(slots, from, tile, channels);
      for (int k = 0; k < kOut * kOut; ++k) {
        const int64_t y = grid.step * (kOut * i + k / kOut) + grid.top;
        const int64_t x = grid.step * (kOut * j + k % kOut) + grid.left;
        if (y >= height || x >= width) continue;  // the last tiles may reach beyond the image
        finish(to, tile + k * channels, (image * height + y) * width + x);
      }
    }
  });
}

// Calls body(taps, outputs) with the numbers of a grid as types.
template <class Body>
void with_tiles(const TileGrid& grid, const Body& body) {
  typedef std::integral_constant<int, 2> Two;
  typedef std::integral_constant<int, 3> Three;
  typedef std::integral_constant<int, 4> Four;
  if (grid.taps == 2) {
    grid.outputs == 2 ? body(Two(), Two()) : body(Two(), Four());
  } else {
    grid.outputs == 2 ? body(Three(), Two()) : body(Three(), Four());
  }
}

template <class T>
void fill_operands(const TileGrid& grid, const TileImages<T>& images, const T* zeros, T* to,
                   int64_t stride, int threads) {
  with_tiles(grid, [&](auto taps, auto outputs) {
    fill_tiles<T, taps, outputs>(grid, images, zeros, to, stride, threads);
  });
}

template <class T, class Finish>
void finish_results(const TileGrid& grid, const T* results, const Finish& to, int64_t height,
                    int64_t width, T* pixels, int threads) {
  with_tiles(grid, [&](auto taps, auto outputs) {
    finish_tiles<T, taps, outputs>(grid, results, to, height, width, pixels, threads);
  });
}

}  // namespace COGEN_ISA
}  // namespace cogen
