// The weighted squared error of outputs against an observation, and its gradient, in one pass on
// the CPU. Compiled once for each instruction set, as hmc_cpu.cpp is.
//
// Energies are summed in double: within a segment of an output in an order that depends on the
// shape, then over segments from first to last.
#include "common/parallel.h"
#include "sampler/misfit.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

// About how many entries of an output one segment has; a segment is a unit of work.
constexpr int64_t kSegmentEntries = 8192;

template <class T>
Row<T> row_of(const Misfit<T>& m, int64_t row) {
  const int64_t b = m.observation[row], at = row * m.channels * m.height * m.width;
  return {m.outputs + at, m.target + b * m.measured,
          m.mask ? m.mask + b * m.mask_stride : nullptr, m.weight + b * m.weight_stride,
          m.grad + at};
}

// How many lines of measured values an output (C, H, W) has, for the kinds `pool` and `stride`.
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
