// Weighted squared error of outputs against an observation, and its gradient, in one pass on CPU.
// Compiled once per instruction set (COGEN_ISA), as hmc_cpu.cpp is.
//
// Unobserved entries are selected away, never multiplied by zero: NaN may stand there. Residuals
// are in the working type, their weighted squares are summed in double: within a segment in an
// order that depends on the shape, then over segments from first to last.
#include <string.h>

#include "kernels.h"
#include "parallel.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

// Input entries of one segment of a row: the unit of work.
constexpr int64_t kSegmentEntries = 8192;

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
// Of positive numbers; a stride may be near the largest there is.
inline int64_t ceil_div(int64_t a, int64_t b) { return (a - 1) / b + 1; }

template <class T>
inline T residual_of(T value, T target, bool observed) {
  return observed ? value - target : T(0);
}

// What belongs to one row: its output, its observation's data, its gradient.
template <class T>
struct Row {
  const T* x;
  const T* target;
  const uint8_t* mask;
  const T* weight;
  T* grad;
};

template <class T>
Row<T> row_of(const Misfit<T>& m, int64_t row) {
  const int64_t b = m.observation[row], at = row * m.channels * m.height * m.width;
  return {m.outputs + at, m.target + b * m.measured,
          m.mask ? m.mask + b * m.mask_stride : nullptr, m.weight + b * m.weight_stride,
          m.grad + at};
}

// Entries [begin, end) of a row that is read entry by entry.
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

template <class T>
inline void fill_block(T* out, int64_t stride, int64_t height, int64_t width, T value) {
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < width; ++j) out[i * stride + j] = value;
  }
}

// One line of block means; kFactor > 0 is a factor known at compile time.
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

// One line of every factor-th pixel; `lines` lines of the gradient belong to it.
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

template <class T, bool kMasked, bool kWeights>
double line_energy(const Misfit<T>& m, const Row<T>& row, int64_t lines) {
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

// Lines of measured values in an output of (C, H, W), for `pool` and `stride`.
template <class T>
struct Lines {
  int64_t per_channel, all, per_segment;

  explicit Lines(const Misfit<T>& m)
      : per_channel(ceil_div(m.height, m.factor)), all(m.channels * per_channel) {
    const int64_t fitting = kSegmentEntries / (m.width * at_most(m.factor, m.height));
    per_segment = fitting < 1 ? 1 : fitting;
  }
};

template <class T, bool kMasked, bool kWeights>
double lines_energy(const Misfit<T>& m, const Row<T>& row, int64_t segment) {
  const Lines<T> lines(m);
  const int64_t values = ceil_div(m.width, m.factor);
  const int64_t begin = segment * lines.per_segment;
  const int64_t end = at_most(begin + lines.per_segment, lines.all);
  double energy = 0.0;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t top = line % lines.per_channel * m.factor;
    const int64_t at = (line / lines.per_channel * m.height + top) * m.width;
    const Row<T> part{row.x + at, row.target + line * values,
                      kMasked ? row.mask + line * values : nullptr,
                      kWeights ? row.weight + line * values : row.weight, row.grad + at};
    energy += line_energy<T, kMasked, kWeights>(m, part, at_most(m.factor, m.height - top));
  }
  return energy;
}

template <class T, bool kMasked, bool kWeights>
double segment_energy(const Misfit<T>& m, const Row<T>& row, int64_t segment) {
  if (m.kind != MisfitKind::mask) return lines_energy<T, kMasked, kWeights>(m, row, segment);
  const int64_t begin = segment * kSegmentEntries;
  return entries_energy<T, kMasked, kWeights>(row, begin,
                                              at_most(begin + kSegmentEntries, m.measured));
}

template <class T>
double segment_energy(const Misfit<T>& m, const Row<T>& row, int64_t segment) {
  if (m.mask) {
    return m.weight_elementwise ? segment_energy<T, true, true>(m, row, segment)
                                : segment_energy<T, true, false>(m, row, segment);
  }
  return m.weight_elementwise ? segment_energy<T, false, true>(m, row, segment)
                              : segment_energy<T, false, false>(m, row, segment);
}

template <class T>
int64_t segments(const Misfit<T>& m) {
  if (m.kind == MisfitKind::mask) return ceil_div(m.measured, kSegmentEntries);
  const Lines<T> lines(m);
  return ceil_div(lines.all, lines.per_segment);
}

template <class T>
void misfit(const Misfit<T>& m, int threads) {
  const int64_t units = m.rows * m.segments;
  const int64_t entries = m.rows * m.channels * m.height * m.width;
  double* partials = m.segments == 1 ? m.energy : m.partials;
  for_each_unit(units, threads_for(entries, units, threads), [&](int64_t unit) {
    partials[unit] = segment_energy(m, row_of(m, unit / m.segments), unit % m.segments);
  });
  if (m.segments == 1) return;
  for (int64_t row = 0; row < m.rows; ++row) {
    double energy = 0.0;
    for (int64_t s = 0; s < m.segments; ++s) energy += partials[row * m.segments + s];
    m.energy[row] = energy;
  }
}

}  // namespace

extern const MisfitOps<float> misfit_float{segments<float>, misfit<float>};
extern const MisfitOps<double> misfit_double{segments<double>, misfit<double>};

}  // namespace COGEN_ISA
}  // namespace cogen
