// Images cut into cells, and bands of neighbouring cells whose operands and results are in memory at
// a time.
#pragma once

#include <stdint.h>

#include "common/kernels.h"
#include "common/parallel.h"

namespace cogen {
namespace COGEN_ISA {

// Rows [first, first + rows) of each of `images` images of height x width cells, from number
// `image` on. What belongs to a band's cells alone is dense: (images, rows, width, ...).
struct Band {
  int64_t image, images, first, rows, height, width;

  int64_t cells() const { return images * rows * width; }
};

// Enough cells for products at full speed, or so many that what they need fits into a cache.
constexpr int64_t kLeastCells = 256, kBandNumbers = 1 << 19;

// Bands of whole images or of rows of one.
struct Bands {
  Cells all;
  int64_t images, rows, per_image;  // of a band, and bands of an image

  // `each` is how many numbers a cell needs.
  Bands(const Cells& cells, int64_t each) : all(cells) {
    const int64_t fitting = kBandNumbers / each, wanted = fitting < kLeastCells ? kLeastCells : fitting;
    const int64_t lines = (wanted + all.width - 1) / all.width;
    rows = lines < all.height ? lines : all.height;
    images = lines < all.height ? 1 : lines / all.height;
    if (images > all.count) images = all.count;
    per_image = (all.height + rows - 1) / rows;
  }
  int64_t count() const { return (all.count + images - 1) / images * per_image; }
  Band operator[](int64_t number) const {
    const int64_t image = number / per_image * images, first = number % per_image * rows;
    const int64_t left = all.count - image, below = all.height - first;
    return {image, images < left ? images : left, first, rows < below ? rows : below, all.height,
            all.width};
  }
};

// Row `i` of an image's cells; `cell` is the number of its first one among those of the band.
struct CellRow {
  int64_t image, i, cell;
};

template <class Body>
inline void for_each_row(const Band& band, int64_t channels, int threads, const Body& body) {
  const int64_t units = band.images * band.rows, entries = units * band.width * channels;
  for_each_unit(units, threads_for(entries, units, threads), [&](int64_t unit) {
    body(CellRow{band.image + unit / band.rows, band.first + unit % band.rows,
                 unit * band.width});
  });
}

// Number of pixel (k / 2, k % 2) of cell j of a row, among all pixels of all images.
inline int64_t quad_pixel(const Band& band, const CellRow& row, int64_t j, int k) {
  const int64_t y = 2 * row.i + k / 2, x = 2 * j + k % 2;
  return (row.image * 2 * band.height + y) * 2 * band.width + x;
}

// The channels of pixel (y, x) of an image of `height` x `width`; zeros outside.
template <class T>
inline const T* pixel_or_zeros(const T* images, const T* zeros, int64_t channels, int64_t image,
                               int64_t y, int64_t x, int64_t height, int64_t width) {
  const bool inside = y >= 0 && y < height && x >= 0 && x < width;
  return inside ? images + ((image * height + y) * width + x) * channels : zeros;
}

}  // namespace COGEN_ISA
}  // namespace cogen
