// Nearest upsampling by 2 and a 3x3 convolution as one operation, with 9 products per channel and
// pixel of the small image in place of 36. Along one line, with weights k0 k1 k2 and D the
// differences of neighbours x[i-1] - x[i]:
//
//   out[2 i]     = k0 x[i-1] + (k1 + k2) x[i] = s x[i] + k0 D[i]
//   out[2 i + 1] = (k0 + k1) x[i] + k2 x[i+1] = s x[i] - k2 D[i+1],   s = k0 + k1 + k2
//
// In two dimensions, x or D along each side gives four images: `xx`, the image itself, `xd`, `dx`
// and `dd`, whose second letter is for the horizontal side. They are multiplied by 1, 2, 2 and 4
// matrices of channels: D along a side has one for k0 and one for -k2. The products of a pixel are
// side by side, those for the vertical k0 before those for -k2. `xd` has one column more than the
// image, `dx` one row more, and `dd` both.
#pragma once

#include <string.h>

#include "progressive/image_bands.h"
#include "progressive/matrix_products.h"
#include "progressive/pixel_norm.h"

namespace cogen {
namespace COGEN_ISA {

// The operands or results of a band's products. A cell may have several, in rows of `stride`
// numbers.
template <class T>
struct Products {
  T *xx, *xd, *dx, *dd;
  int64_t stride;
};

// Where the products of row i of a band are: the numbers of its first cells in xx, xd, dx and dd.
// Those of D at the upper edge of the row are in row i of dx and dd, those at its lower edge in row
// i + 1.
struct RowStart {
  int64_t plain, wide, tall, both;

  RowStart(const Band& band, const CellRow& row)
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

// The band of `dx` and `dd`, which have one row of cells more.
inline Band with_edges(const Band& band) {
  return {band.image, band.images, band.first, band.rows + 1, band.height, band.width};
}

// Computes xx, xd, dx and dd of images of height x width pixels.
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

// Adds the products up and finishes the activation of images of 2 height x 2 width pixels; dd is
// overwritten.
template <class T>
void finish_quads(const Band& band, const Products<T>& from, const PixelNorm<T>& to,
                  int threads) {
  const int64_t channels = to.channels, stride = from.stride, wide = band.width + 1;
  for_each_row(band, 4 * channels, threads, [&](const CellRow& row) {
    const RowStart at(band, row);
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

// The adjoint of the sums in `finish_quads`: the gradient with respect to each product, given that
// with respect to the images of 2 height x 2 width pixels.
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

// The adjoint of `fill_differences`, which finishes the gradient with respect to the input of the
// activation before; xx is overwritten.
template <class T>
void finish_differences(const Band& band, const Products<T>& from, const PixelNormGrad<T>& to,
                        int threads) {
  const int64_t channels = to.channels, stride = from.stride, wide = band.width + 1;
  for_each_row(band, channels, threads, [&](const CellRow& row) {
    const RowStart at(band, row);
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

// How many cells xx, xd, dx and dd have.
struct Counts {
  int64_t of[4];

  explicit Counts(const Band& band) {
    const int64_t rows = band.images * band.rows, tall = rows + band.images, wide = band.width + 1;
    of[0] = rows * band.width, of[1] = rows * wide, of[2] = tall * band.width, of[3] = tall * wide;
  }
};

// How many matrices xx, xd, dx and dd are multiplied by.
constexpr int64_t kMatrices[4] = {1, 2, 2, 4};

// Places four arrays one after the other from `first` on, with each[k] numbers for each cell of
// array k. Returns where they end.
template <class T>
T* place_arrays(T* first, const Counts& counts, const int64_t (&each)[4], T* (&at)[4]) {
  for (int k = 0; k < 4; ++k) {
    at[k] = first;
    first += counts.of[k] * each[k];
  }
  return first;
}

// How many numbers a cell has in each of the four arrays: `one` for a single row, `many` for a row
// for each matrix.
struct CellNumbers {
  int64_t one[4], many[4];

  CellNumbers(int64_t single, int64_t repeated) {
    for (int k = 0; k < 4; ++k) one[k] = single, many[k] = kMatrices[k] * repeated;
  }
};

// How many numbers a cell needs for its operands and results, in the forward or backward pass.
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

// Multiplies the four arrays x by their matrices, which lie one after the other from `weight` on,
// into y.
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
  const CellNumbers numbers(kernel.in, width);
  for (int64_t number = 0; number < bands.count(); ++number) {
    const Band band = bands[number];
    const Counts counts(band);
    T *x[4], *y[4];
    place_arrays(place_arrays(arena, counts, numbers.one, x), counts, numbers.many, y);
    fill_differences(band, images, kernel.in, zeros, {x[0], x[1], x[2], x[3], kernel.in}, threads);
    multiply(counts, x, numbers.one, kernel.packed, y, numbers.many, threads);
    finish_quads(band, {y[0], y[1], y[2], y[3], width}, to, threads);
  }
}

template <class T>
void upsample_grad(const Cells& cells, const T* grad, const Kernel3x3<T>& kernel,
                   const PixelNormGrad<T>& to, const T* zeros, T* arena, int threads) {
  const int64_t width = padded<T>(kernel.out);
  const Bands bands(cells, numbers_per_cell<T>(kernel.out, kernel.in));
  const CellNumbers numbers(width, kernel.in);
  for (int64_t number = 0; number < bands.count(); ++number) {
    const Band band = bands[number];
    const Counts counts(band);
    T *x[4], *y[4];
    place_arrays(place_arrays(arena, counts, numbers.many, x), counts, numbers.one, y);
    fill_quads(band, grad, kernel.in, zeros, {x[0], x[1], x[2], x[3], kernel.in}, threads);
    multiply(counts, x, numbers.many, kernel.packed, y, numbers.one, threads);
    finish_differences(band, {y[0], y[1], y[2], y[3], width}, to, threads);
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
