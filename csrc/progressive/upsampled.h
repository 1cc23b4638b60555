// Nearest upsampling by 2 and a 3x3 convolution as one operation, with 9 products per channel and
// pixel of the small image in place of 36. Along one line, with weights k0 k1 k2 and D the
// differences of neighbours x[i-1] - x[i]:
//
//   out[2 i]     = k0 x[i-1] + (k1 + k2) x[i] = s x[i] + k0 D[i]
//   out[2 i + 1] = (k0 + k1) x[i] + k2 x[i+1] = s x[i] - k2 D[i+1],   s = k0 + k1 + k2
//
// In the plane x and D along each side give four images, `xx` (the image itself), `xd`, `dx` and
// `dd` (the second letter is for the horizontal side), which are multiplied by 1, 2, 2 and 4
// matrices of channels, neighbouring in the results: k0 and -k2 for D, vertical first.
// `xd` has one column more than the image, `dx` one row more, `dd` both.
#pragma once

#include <string.h>

#include "progressive/image_bands.h"
#include "progressive/pixel_norm.h"
#include "progressive/matrix_products.h"

namespace cogen {
namespace COGEN_ISA {

// The operands or results of a band's products, several for each cell, in rows of `stride` each.
template <class T>
struct Products {
  T *xx, *xd, *dx, *dd;
  int64_t stride;
};

// Where the products of a band's row i lie: those of D at the row's upper edge come from its row i
// and those at the lower edge from row i + 1.
struct Places {
  int64_t plain, wide, tall, both;  // numbers of the first cell in xx, xd, dx and dd

  Places(const Band& band, const CellRow& row)
      : plain(row.cell),
        wide(row.cell / band.width * (band.width + 1)),
        tall(row.cell + (row.image - band.image) * band.width),
        both(tall / band.width * (band.width + 1)) {}
};

template <class T>
inline void subtract(const T* a, const T* b, T* out, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) out[c] = a[c] - b[c];
}

template <class T>
inline void add(const T* a, const T* b, T* out, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) out[c] = a[c] + b[c];
}

// A band with one row of cells more: where `dx` and `dd` are.
inline Band with_edges(const Band& band) {
  return {band.image, band.images, band.first, band.rows + 1, band.height, band.width};
}

// Images of height x width pixels into xx, xd, dx and dd.
template <class T>
void fill_differences(const Band& band, const T* images, int64_t channels, const T* zeros,
                      const Products<T>& to, int threads) {
  const int64_t wide = band.width + 1;
  const auto pixel = [&](int64_t image, int64_t y, int64_t x) {
    return pixel_or_zeros(images, zeros, channels, image, y, x, band.height, band.width);
  };
  for_each_row(band, channels, threads, [&](const CellRow& row) {
    T* xd = to.xd + row.cell / band.width * wide * channels;
    memcpy(to.xx + row.cell * channels, pixel(row.image, row.i, 0),
           static_cast<size_t>(band.width * channels) * sizeof(T));
    for (int64_t j = 0; j < wide; ++j) {
      subtract(pixel(row.image, row.i, j - 1), pixel(row.image, row.i, j), xd + j * channels,
               channels);
    }
  });
  for_each_row(with_edges(band), channels, threads, [&](const CellRow& row) {
    T* dx = to.dx + row.cell * channels;
    T* dd = to.dd + row.cell / band.width * wide * channels;
    for (int64_t j = 0; j < wide; ++j) {
      const T* here = pixel(row.image, row.i, j);
      const T* above = pixel(row.image, row.i - 1, j);
      const T* left = pixel(row.image, row.i, j - 1);
      const T* diagonal = pixel(row.image, row.i - 1, j - 1);
      if (j < band.width) subtract(above, here, dx + j * channels, channels);
      T* both = dd + j * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        both[c] = (diagonal[c] - above[c]) - (left[c] - here[c]);
      }
    }
  });
}

// Products into the activation of images of 2 height x 2 width pixels; dd is used up.
template <class T>
void finish_quads(const Band& band, const Products<T>& from, const PixelNorm<T>& to,
                  int threads) {
  const int64_t channels = to.channels, stride = from.stride, wide = band.width + 1;
  for_each_row(band, 4 * channels, threads, [&](const CellRow& row) {
    const Places at(band, row);
    for (int64_t j = 0; j < band.width; ++j) {
      const T* xx = from.xx + (at.plain + j) * stride;
      for (int k = 0; k < 4; ++k) {
        const int p = k / 2, q = k % 2;
        const T* xd = from.xd + ((at.wide + j + q) * 2 + q) * stride;
        const T* dx = from.dx + ((at.tall + p * band.width + j) * 2 + p) * stride;
        T* dd = from.dd + ((at.both + p * wide + j + q) * 4 + k) * stride;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) dd[c] += (xx[c] + xd[c]) + dx[c];
        finish(to, dd, quad_pixel(band, row, j, k));
      }
    }
  });
}

// The adjoint of `finish_quads`: what each product is to be multiplied back from, given the
// gradient by the images of 2 height x 2 width pixels.
template <class T>
void fill_quads(const Band& band, const T* images, int64_t channels, const T* zeros,
                const Products<T>& to, int threads) {
  const int64_t wide = band.width + 1;
  const auto pixel = [&](int64_t image, int64_t y, int64_t x) {
    return pixel_or_zeros(images, zeros, channels, image, y, x, 2 * band.height, 2 * band.width);
  };
  for_each_row(band, 4 * channels, threads, [&](const CellRow& row) {
    const int64_t y = 2 * row.i;
    T* xd = to.xd + row.cell / band.width * wide * 2 * channels;
    for (int64_t j = 0; j < wide; ++j) {
      for (int q = 0; q < 2; ++q) {
        add(pixel(row.image, y, 2 * j - q), pixel(row.image, y + 1, 2 * j - q),
            xd + (2 * j + q) * channels, channels);
      }
    }
    for (int64_t j = 0; j < band.width; ++j) {
      add(xd + (2 * j) * channels, xd + (2 * (j + 1) + 1) * channels,
          to.xx + (row.cell + j) * channels, channels);
    }
  });
  for_each_row(with_edges(band), 4 * channels, threads, [&](const CellRow& row) {
    T* dx = to.dx + row.cell * 2 * channels;
    T* dd = to.dd + row.cell / band.width * wide * 4 * channels;
    for (int p = 0; p < 2; ++p) {
      const int64_t y = 2 * row.i - p;
      for (int64_t j = 0; j < wide; ++j) {
        if (j < band.width) {
          add(pixel(row.image, y, 2 * j), pixel(row.image, y, 2 * j + 1),
              dx + (2 * j + p) * channels, channels);
        }
        for (int q = 0; q < 2; ++q) {
          const T* from = pixel(row.image, y, 2 * j - q);
          memcpy(dd + (4 * j + 2 * p + q) * channels, from,
                 static_cast<size_t>(channels) * sizeof(T));
        }
      }
    }
  });
}

// The adjoint of `fill_differences`, into the gradient of the activation before; xx is used up.
template <class T>
void finish_differences(const Band& band, const Products<T>& from, const PixelNormGrad<T>& to,
                        int threads) {
  const int64_t channels = to.channels, stride = from.stride, wide = band.width + 1;
  for_each_row(band, channels, threads, [&](const CellRow& row) {
    const Places at(band, row);
    const int64_t first = (row.image * band.height + row.i) * band.width;
    for (int64_t j = 0; j < band.width; ++j) {
      T* xx = from.xx + (at.plain + j) * stride;
      const T* xd = from.xd + (at.wide + j) * stride;
      const T* dx = from.dx + (at.tall + j) * stride;
      const T* above = from.dd + (at.both + j) * stride;
      const T* below = above + wide * stride;
      const int64_t next = stride, under = band.width * stride;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        xx[c] += (xd[next + c] - xd[c]) + (dx[under + c] - dx[c]) +
                 ((below[next + c] - below[c]) - (above[next + c] - above[c]));
      }
      finish(to, xx, first + j);
    }
  });
}

// Cells of xx, xd, dx and dd.
struct Counts {
  int64_t of[4];

  explicit Counts(const Band& band) {
    const int64_t rows = band.images * band.rows, tall = rows + band.images, wide = band.width + 1;
    of[0] = rows * band.width, of[1] = rows * wide, of[2] = tall * band.width, of[3] = tall * wide;
  }
};

// How many matrices xx, xd, dx and dd are multiplied by.
constexpr int64_t kMatrices[4] = {1, 2, 2, 4};

// `each[k]` numbers for each cell of image k, from `first` on; returns where they end.
template <class T>
T* spread(T* first, const Counts& counts, const int64_t (&each)[4], T* (&at)[4]) {
  for (int k = 0; k < 4; ++k) {
    at[k] = first;
    first += counts.of[k] * each[k];
  }
  return first;
}

// Numbers for each cell of one side of the products.
struct Sides {
  int64_t one[4], many[4];

  Sides(int64_t once, int64_t often) {
    for (int k = 0; k < 4; ++k) one[k] = once, many[k] = kMatrices[k] * often;
  }
};

// For either way: the images' own numbers and those of the products.
template <class T>
int64_t numbers_per_cell(int64_t in, int64_t out) {
  return 4 * padded<T>(in) + 9 * padded<T>(out);
}

template <class T>
int64_t upsample_arena(const Cells& cells, int64_t in, int64_t out) {
  const int64_t each = numbers_per_cell<T>(in, out);
  const Counts counts(Bands(cells, each)[0]);
  return counts.of[3] * each;
}

// The images x by their matrices, which lie one after the other from `weight` on, into y.
template <class T>
void multiply(const Counts& counts, T* const (&x)[4], const int64_t (&inputs)[4], const T* weight,
              T* const (&y)[4], const int64_t (&outputs)[4], int threads) {
  ProductList<T, 4> list;
  for (int k = 0; k < 4; ++k) {
    list.x[k] = x[k], list.weight[k] = weight, list.y[k] = y[k];
    list.rows[k] = counts.of[k], list.inputs[k] = inputs[k], list.outputs[k] = outputs[k];
    weight += inputs[k] * outputs[k];
  }
  multiply(list, threads);
}

template <class T>
void upsample(const Cells& cells, const T* images, const Kernel3x3<T>& kernel,
              const PixelNorm<T>& to, const T* zeros, T* arena, int threads) {
  const int64_t width = padded<T>(kernel.out);
  const Bands bands(cells, numbers_per_cell<T>(kernel.in, kernel.out));
  const Sides sides(kernel.in, width);
  for (int64_t number = 0; number < bands.count(); ++number) {
    const Band band = bands[number];
    const Counts counts(band);
    T *x[4], *y[4];
    spread(spread(arena, counts, sides.one, x), counts, sides.many, y);
    fill_differences(band, images, kernel.in, zeros, {x[0], x[1], x[2], x[3], kernel.in}, threads);
    multiply(counts, x, sides.one, kernel.packed, y, sides.many, threads);
    finish_quads(band, {y[0], y[1], y[2], y[3], width}, to, threads);
  }
}

template <class T>
void upsample_grad(const Cells& cells, const T* grad, const Kernel3x3<T>& kernel,
                   const PixelNormGrad<T>& to, const T* zeros, T* arena, int threads) {
  const int64_t width = padded<T>(kernel.out);
  const Bands bands(cells, numbers_per_cell<T>(kernel.out, kernel.in));
  const Sides sides(width, kernel.in);
  for (int64_t number = 0; number < bands.count(); ++number) {
    const Band band = bands[number];
    const Counts counts(band);
    T *x[4], *y[4];
    spread(spread(arena, counts, sides.many, x), counts, sides.one, y);
    fill_quads(band, grad, kernel.in, zeros, {x[0], x[1], x[2], x[3], kernel.in}, threads);
    multiply(counts, x, sides.many, kernel.packed, y, sides.one, threads);
    finish_differences(band, {y[0], y[1], y[2], y[3], width}, to, threads);
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
