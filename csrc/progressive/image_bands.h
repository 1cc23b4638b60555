// Images are cut into cells, and cells into bands. The operands and results of one band are in
// memory at a time.
#pragma once

#include <stdint.h>

#include "common/kernels.h"
#include "common/parallel.h"

namespace cogen {
namespace COGEN_ISA {

// A band: the rows of cells [first, first + rows) of the images `image` to image + images - 1,
// which have height x width cells. Arrays for the cells of one band are dense, (images, rows,
// width, ...).
struct Band {
  int64_t image, images, first, rows, height, width;

  int64_t cells() const { return images * rows * width; }
};

// A band has about as many numbers as fit into a cache, but at least so many cells that products
// run at full speed.
constexpr int64_t kLeastCells = 256, kBandNumbers = 1 << 19;

// How images are cut into bands, each of whole images or of some rows of one.
struct Bands {
  Cells all;
  int64_t images, rows;  // of a band
  int64_t per_image;     // how many bands an image has

  // `each` is how many numbers a cell needs.
  Bands(const Cells& cells, int64_t each) : all(cells) {
    const int64_t fitting = kBandNumbers / each;
    const int64_t wanted = fitting < kLeastCells ? kLeastCells : fitting;
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

// Row `i` of an image's cells; `cell` is the number of its first cell in the band.
struct CellRow {
  int64_t image, i, cell;
};

// Calls body(row) for each row of cells of a band.
template <class Body>
inline void for_each_row(const Band& band, int64_t channels, int threads, const Body& body) {
  const int64_t units = band.images * band.rows, entries = units * band.width * channels;
  for_each_unit(units, threads_for(entries, units, threads), [&](int64_t unit) {
    body(CellRow{band.image + unit / band.rows, band.first + unit % band.rows,
                 unit * band.width});
  });
}

// The number of pixel (k / 2, k % 2) of cell j of a row among all pixels of all images, for cells
// of 2x2 pixels.
inline int64_t quad_pixel(const Band& band, const CellRow& row, int64_t j, int k) {
  const int64_t y = 2 * row.i + k / 2, x = 2 * j + k % 2;
  return (row.image * 2 * band.height + y) * 2 * band.width + x;
}

// The channels of pixel (y, x) of an image of height x width pixels; zeros if it is outside.
template <class T>
inline const T* pixel_or_zeros(const T* images, const T* zeros, int64_t channels, int64_t image,
                               int64_t y, int64_t x, int64_t height, int64_t width) {
  const bool inside = y >= 0 && y < height && x >= 0 && x < width;
  return inside ? images + ((image * height + y) * width + x) * channels : zeros;
}

}  // namespace COGEN_ISA
}  // namespace cogen
