// The last step of a progressive GAN whose image is compared with an observation: the 1x1
// convolution to the image, the misfit, and the gradient back through both and through the
// activation before them. Only one band of the image is in memory at a time.
#pragma once

#include "common/parallel.h"
#include "progressive/pixel_norm.h"
#include "sampler/misfit.h"

namespace cogen {
namespace COGEN_ISA {

// About how many pixels a band has: enough for the misfit to run over whole lines, few enough for a
// cache.
constexpr int64_t kBandPixels = 2048;

// How many lines of the image one band has; they hold whole lines of measured values.
template <class T>
int64_t band_lines(const Misfit<T>& m) {
  const int64_t each = at_most(m.factor, m.height);
  const int64_t fitting = kBandPixels / (m.width * each);
  return at_most(each * (fitting < 1 ? 1 : fitting), m.height);
}

template <class T>
int64_t to_rgb_bands(const Misfit<T>& m) {
  return ceil_div(m.height, band_lines(m));
}

// A band of an image and of its gradient, (image channels, lines, width), and one pixel's gradient
// with respect to the activation.
template <class T>
struct RgbBand {
  int64_t top, lines;
  T *image, *grad, *pixel;

  static int64_t size(const Misfit<T>& m, int64_t channels) {
    return 2 * m.channels * band_lines(m) * m.width + channels;
  }
  RgbBand(const Misfit<T>& m, int64_t number, T* arena)
      : top(number * band_lines(m)),
        lines(at_most(band_lines(m), m.height - top)),
        image(arena),
        grad(image + m.channels * lines * m.width),
        pixel(grad + m.channels * lines * m.width) {}
};

template <class T>
inline T dot(const T* a, const T* b, int64_t size) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

// Computes the image of a band from its activation `out`, (pixels, channels).
template <class T>
void fill_image(const Misfit<T>& m, const ToRgb<T>& to, const T* out, int64_t channels,
                const RgbBand<T>& band) {
  const int64_t pixels = band.lines * m.width;
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t k = 0; k < m.channels; ++k) {
      const T value = dot(out + i * channels, to.weight + k * channels, channels) + to.bias[k];
      band.image[k * pixels + i] = to.bounded ? tanh(value) : value;
    }
  }
}

// Returns the energy of a band and writes its gradient.
template <class T, bool kMasked, bool kWeights>
double band_energy(const Misfit<T>& m, int64_t row, const RgbBand<T>& band) {
  const int64_t values = ceil_div(m.width, m.factor), per_channel = ceil_div(m.height, m.factor);
  const int64_t b = m.observation[row];
  double energy = 0.0;
  for (int64_t k = 0; k < m.channels; ++k) {
    for (int64_t line = 0; line < band.lines; line += at_most(m.factor, band.lines - line)) {
      const int64_t at = (k * band.lines + line) * m.width;
      const int64_t measured = (k * per_channel + (band.top + line) / m.factor) * values;
      const Row<T> part{band.image + at, m.target + b * m.measured + measured,
                        kMasked ? m.mask + b * m.mask_stride + measured : nullptr,
                        m.weight + b * m.weight_stride + (kWeights ? measured : 0),
                        band.grad + at};
      energy += line_energy<T, kMasked, kWeights>(m, part, at_most(m.factor, band.lines - line));
    }
  }
  return energy;
}

template <class T>
double band_energy(const Misfit<T>& m, int64_t row, const RgbBand<T>& band) {
  if (m.mask) {
    return m.weight_elementwise ? band_energy<T, true, true>(m, row, band)
                                : band_energy<T, true, false>(m, row, band);
  }
  return m.weight_elementwise ? band_energy<T, false, true>(m, row, band)
                              : band_energy<T, false, false>(m, row, band);
}

// Carries the gradient of a band back to the convolution before the activation; `first` is the
// number of the band's first pixel among those of all images.
template <class T>
void back_from_image(const Misfit<T>& m, const ToRgb<T>& from, const RgbBand<T>& band,
                     int64_t first, const PixelNormGrad<T>& to) {
  const int64_t pixels = band.lines * m.width, channels = to.channels;
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t k = 0; k < m.channels; ++k) {
      const T value = band.image[k * pixels + i], by_image = band.grad[k * pixels + i];
      const T by_sum = from.bounded ? by_image * (T(1) - value * value) : by_image;
      const T* weight = from.weight + k * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        band.pixel[c] = (k == 0 ? T(0) : band.pixel[c]) + by_sum * weight[c];
      }
    }
    finish(to, band.pixel, first + i);
  }
}

template <class T>
void to_rgb_misfit(const Misfit<T>& m, const ToRgb<T>& to_rgb, const PixelNormGrad<T>& to,
                   T* arena, int threads) {
  const int64_t each = to_rgb_bands(m), units = m.rows * each;
  const int64_t entries = m.rows * m.height * m.width * to.channels;
  double* partials = each == 1 ? m.energy : m.partials;
  for_each_unit(units, threads_for(entries, units, threads), [&](int64_t unit) {
    const int64_t row = unit / each;
    const RgbBand<T> band(m, unit % each,
                             arena + thread_number() * RgbBand<T>::size(m, to.channels));
    const int64_t first = (row * m.height + band.top) * m.width;
    fill_image(m, to_rgb, to.out + first * to.channels, to.channels, band);
    partials[unit] = band_energy(m, row, band);
    back_from_image(m, to_rgb, band, first, to);
  });
  if (each == 1) return;
  for (int64_t row = 0; row < m.rows; ++row) {
    double energy = 0.0;
    for (int64_t k = 0; k < each; ++k) energy += partials[row * each + k];
    m.energy[row] = energy;
  }
}

template <class T>
int64_t to_rgb_arena(const Misfit<T>& m, int64_t channels, int threads) {
  return threads * RgbBand<T>::size(m, channels);
}

}  // namespace COGEN_ISA
}  // namespace cogen
