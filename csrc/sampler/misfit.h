// The weighted squared error of one line of an output against an observation, and its gradient.
//
// Unobserved entries may be NaN, so they are left out by selection, not multiplied by zero.
// Residuals are in the working type, their weighted squares are summed in double.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/kernels.h"

namespace cogen {
namespace COGEN_ISA {

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
// a / b rounded up, for positive numbers; a + b may be too large for the type.
inline int64_t ceil_div(int64_t a, int64_t b) { return (a - 1) / b + 1; }

template <class T>
inline T residual_of(T value, T target, bool observed) {
  return observed ? value - target : T(0);
}

// What belongs to one output: its entries, what is observed of it, and its gradient.
template <class T>
struct Row {
  const T* x;
  const T* target;
  const uint8_t* mask;
  const T* weight;
  T* grad;
};

// The energy of the entries [begin, end) of a row that is measured entry by entry, and their
// gradient.
template <class T, bool kMasked, bool kWeights>
double entries_energy(const Row<T>& row, int64_t begin, int64_t end) {
  double energy = 0.0;
#pragma omp simd reduction(+ : energy)
  for (int64_t i = begin; i < end; ++i) {
    const T weight = row.weight[kWeights ? i : 0];
    const T r = residual_of(row.x[i], row.target[i], kMasked ? row.mask[i] != 0 : true);
    row.grad[i] = T(2) * weight * r;
    energy += static_cast<double>(weight) * r * r;
  }
  return energy;
}

// The sum of one block of `height` x `width` entries.
template <class T>
inline T block_sum(const T* x, int64_t stride, int64_t height, int64_t width) {
  T sum = 0;
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < width; ++j) sum += x[i * stride + j];
  }
  return sum;
}

// Writes the same value to all entries of one block.
template <class T>
inline void fill_block(T* out, int64_t stride, int64_t height, int64_t width, T value) {
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < width; ++j) out[i * stride + j] = value;
  }
}

// The energy of one line of block means, and its gradient; kFactor > 0 is a factor known at compile
// time.
template <class T, bool kMasked, bool kWeights, int kFactor>
double pool_line(const Row<T>& row, int64_t stride, int64_t blocks, int64_t factor) {
  const int64_t k = kFactor > 0 ? kFactor : factor;
  const T area = static_cast<T>(k * k);
  double energy = 0.0;
  for (int64_t j = 0; j < blocks; ++j) {
    const T weight = row.weight[kWeights ? j : 0];
    const T mean = block_sum(row.x + j * k, stride, k, k) / area;
    const T r = residual_of(mean, row.target[j], kMasked ? row.mask[j] != 0 : true);
    fill_block(row.grad + j * k, stride, k, k, T(2) * weight * r / area);
    energy += static_cast<double>(weight) * r * r;
  }
  return energy;
}

// The energy of one line of every factor-th pixel, and its gradient, which has `lines` lines.
template <class T, bool kMasked, bool kWeights>
double stride_line(const Row<T>& row, int64_t width, int64_t lines, int64_t pixels,
                   int64_t factor) {
  double energy = 0.0;
  memset(row.grad, 0, static_cast<size_t>(lines * width) * sizeof(T));
  for (int64_t j = 0; j < pixels; ++j) {
    const T weight = row.weight[kWeights ? j : 0];
    const T r = residual_of(row.x[j * factor], row.target[j], kMasked ? row.mask[j] != 0 : true);
    row.grad[j * factor] = T(2) * weight * r;
    energy += static_cast<double>(weight) * r * r;
  }
  return energy;
}

// The energy of one line of measured values, which belongs to `lines` lines of the output, and
// their gradient. For the kind `mask` a line has `width` entries.
template <class T, bool kMasked, bool kWeights>
double line_energy(const Misfit<T>& m, const Row<T>& row, int64_t lines) {
  if (m.kind == MisfitKind::mask) return entries_energy<T, kMasked, kWeights>(row, 0, m.width);
  if (m.kind == MisfitKind::stride) {
    return stride_line<T, kMasked, kWeights>(row, m.width, lines, ceil_div(m.width, m.factor),
                                             m.factor);
  }
  const int64_t blocks = m.width / m.factor;
  switch (m.factor) {
    case 2: return pool_line<T, kMasked, kWeights, 2>(row, m.width, blocks, 2);
    case 4: return pool_line<T, kMasked, kWeights, 4>(row, m.width, blocks, 4);
    case 8: return pool_line<T, kMasked, kWeights, 8>(row, m.width, blocks, 8);
    default: return pool_line<T, kMasked, kWeights, 0>(row, m.width, blocks, m.factor);
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
