// 3x3 convolutions with 16 products per channel and 2x2 pixels in place of 36: F(2x2, 3x3) of
// Winograd (Lavin and Gray 2016, arXiv:1509.09308). A tile of 4x4 pixels is transformed to 16
// numbers, one for each of 16 matrix products; their 16 results are transformed to 2x2 pixels.
#pragma once

#include "progressive/image_bands.h"
#include "progressive/matrix_products.h"
#include "progressive/pixel_norm.h"

namespace cogen {
namespace COGEN_ISA {

template <class T>
struct Four {
  T a, b, c, d;
};

// Transforms a line of four pixels to the operands of four products.
template <class T>
inline Four<T> before_products(T d0, T d1, T d2, T d3) {
  return {d0 - d2, d1 + d2, d2 - d1, d1 - d3};
}

template <class T>
struct Two {
  T a, b;
};

// Transforms the results of four products to a line of two pixels.
template <class T>
inline Two<T> after_products(T m0, T m1, T m2, T m3) {
  return {m0 + m1 + m2, m1 - m2 - m3};
}

// The operands or results of a band's 16 products, (cells, channels) each, in rows of `stride`
// numbers.
template <class T>
struct Slots {
  T* first;
  int64_t cells, channels, stride;

  // A gap between slots: at distances of a power of two they would compete for the same cache
  // lines.
  static constexpr int64_t kGap = 64 / sizeof(T);
  static int64_t size(int64_t cells, int64_t stride) { return cells * stride + kGap; }

  T* slot(int k) const { return first + k * size(cells, stride); }
};

// The operands or results of one cell.
template <class T>
struct Tile {
  T* slot[16];

  Tile(const Slots<T>& slots, int64_t cell) {
    for (int k = 0; k < 16; ++k) slot[k] = slots.slot(k) + cell * slots.stride;
  }
};

// Transforms the 4x4 pixels x, line by line, to the operands of one cell.
template <class T>
inline void fill_tile(const T* const (&x)[16], const Tile<T>& tile, int64_t channels) {
  T* const* v = tile.slot;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const auto p = before_products(x[0][c], x[4][c], x[8][c], x[12][c]);
    const auto q = before_products(x[1][c], x[5][c], x[9][c], x[13][c]);
    const auto r = before_products(x[2][c], x[6][c], x[10][c], x[14][c]);
    const auto s = before_products(x[3][c], x[7][c], x[11][c], x[15][c]);
    const auto a = before_products(p.a, q.a, r.a, s.a);
    const auto b = before_products(p.b, q.b, r.b, s.b);
    const auto d = before_products(p.c, q.c, r.c, s.c);
    const auto e = before_products(p.d, q.d, r.d, s.d);
    v[0][c] = a.a, v[1][c] = a.b, v[2][c] = a.c, v[3][c] = a.d;
    v[4][c] = b.a, v[5][c] = b.b, v[6][c] = b.c, v[7][c] = b.d;
    v[8][c] = d.a, v[9][c] = d.b, v[10][c] = d.c, v[11][c] = d.d;
    v[12][c] = e.a, v[13][c] = e.b, v[14][c] = e.c, v[15][c] = e.d;
  }
}

// Transforms the results of one cell to 2x2 pixels: pixel (y, x) replaces what slot 2 y + x had.
template <class T>
inline void empty_tile(const Tile<T>& tile, int64_t channels) {
  T* const* m = tile.slot;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const auto p = after_products(m[0][c], m[4][c], m[8][c], m[12][c]);
    const auto q = after_products(m[1][c], m[5][c], m[9][c], m[13][c]);
    const auto r = after_products(m[2][c], m[6][c], m[10][c], m[14][c]);
    const auto s = after_products(m[3][c], m[7][c], m[11][c], m[15][c]);
    const auto top = after_products(p.a, q.a, r.a, s.a);
    const auto bottom = after_products(p.b, q.b, r.b, s.b);
    m[0][c] = top.a, m[1][c] = top.b, m[2][c] = bottom.a, m[3][c] = bottom.b;
  }
}

// Computes the operands of all cells of images of 2 height x 2 width pixels, with zeros around
// them.
template <class T>
void fill_tiles(const Band& band, const T* images, const T* zeros, const Slots<T>& to,
                int threads) {
  for_each_row(band, 16 * to.channels, threads, [&](const CellRow& row) {
    for (int64_t j = 0; j < band.width; ++j) {
      const T* x[16];
      for (int k = 0; k < 16; ++k) {
        x[k] = pixel_or_zeros(images, zeros, to.channels, row.image, 2 * row.i + k / 4 - 1,
                              2 * j + k % 4 - 1, 2 * band.height, 2 * band.width);
      }
      fill_tile(x, Tile<T>(to, row.cell + j), to.channels);
    }
  });
}

// Turns results into an activation, or into the gradient with respect to the input of the
// activation before; they are overwritten.
template <class T, class Finish>
void finish_tiles(const Band& band, const Slots<T>& from, const Finish& to, int threads) {
  for_each_row(band, 16 * from.channels, threads, [&](const CellRow& row) {
    for (int64_t j = 0; j < band.width; ++j) {
      const Tile<T> tile(from, row.cell + j);
      empty_tile(tile, from.channels);
      for (int k = 0; k < 4; ++k) finish(to, tile.slot[k], quad_pixel(band, row, j, k));
    }
  });
}

// How many numbers a cell needs for its operands and results.
template <class T>
int64_t numbers_per_tile(int64_t in, int64_t out) {
  return 16 * (in + padded<T>(out));
}

template <class T>
int64_t convolve_arena(const Cells& cells, int64_t in, int64_t out) {
  const Bands bands(cells, numbers_per_tile<T>(in, out));
  const int64_t most = bands[0].cells();
  return 16 * (Slots<T>::size(most, in) + Slots<T>::size(most, padded<T>(out)));
}

// The convolution, or its backward pass, which has the kernel turned: Finish says which.
template <class T, class Finish>
void convolve(const Cells& cells, const T* images, const Kernel3x3<T>& kernel, const Finish& to,
              const T* zeros, T* arena, int threads) {
  const Bands bands(cells, numbers_per_tile<T>(kernel.in, kernel.out));
  const int64_t width = padded<T>(kernel.out);
  for (int64_t number = 0; number < bands.count(); ++number) {
    const Band band = bands[number];
    const int64_t count = band.cells();
    const Slots<T> operands{arena, count, kernel.in, kernel.in};
    const Slots<T> results{operands.slot(16), count, kernel.out, width};
    fill_tiles(band, images, zeros, operands, threads);
    ProductList<T, 16> list;
    for (int k = 0; k < 16; ++k) {
      list.x[k] = operands.slot(k), list.y[k] = results.slot(k);
      list.weight[k] = kernel.packed + k * kernel.in * width;
      list.rows[k] = count, list.inputs[k] = kernel.in, list.outputs[k] = width;
    }
    multiply(list, threads);
    finish_tiles(band, results, to, threads);
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
