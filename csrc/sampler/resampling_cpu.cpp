// Systematic resampling of a population. cogen_fast/ops/reference.py is the definition. Populations
// have a few dozen to a few thousand particles and are resampled at most once for each temperature,
// so there is no code for each instruction set.
#include <cmath>
#include <vector>

#include "common/kernels.h"

namespace cogen {
namespace {

template <class Value>
double sum_over(int64_t count, const Value& value) {
  double sum = 0.0;
  for (int64_t n = 0; n < count; ++n) sum += value(n);
  return sum;
}

// The largest of `start` and all values.
template <class Value>
double greatest_over(int64_t count, double start, const Value& value) {
  double top = start;
  for (int64_t n = 0; n < count; ++n) {
    const double here = value(n);
    top = here > top ? here : top;
  }
  return top;
}

// Writes the ancestor of each particle; ancestors never decrease. `upto` is memory for the
// cumulated weights.
void systematic_ancestors(const double* log_weights, int64_t count, double uniform, double* upto,
                          int64_t* out) {
  const double top =
      greatest_over(count, log_weights[0], [&](int64_t n) { return log_weights[n]; });
  const double sum = sum_over(
      count, [&](int64_t n) { return upto[n] = std::exp(log_weights[n] - top); });
  for (int64_t n = 0; n < count; ++n) upto[n] /= sum;
  for (int64_t n = 1; n < count; ++n) upto[n] += upto[n - 1];
  int64_t parent = 0;
  for (int64_t n = 0; n < count; ++n) {
    const double point = (static_cast<double>(n) + uniform) / static_cast<double>(count);
    while (parent < count - 1 && upto[parent] <= point * upto[count - 1]) ++parent;
    out[n] = parent;
  }
}

}  // namespace

void systematic(int64_t observations, int64_t chains, const double* log_weights,
                const double* uniform, const bool* wanted, int64_t* out) {
  std::vector<double> upto(chains);
  for (int64_t b = 0; b < observations; ++b, out += chains) {
    if (wanted && !wanted[b]) {
      for (int64_t n = 0; n < chains; ++n) out[n] = n;
      continue;
    }
    systematic_ancestors(log_weights + b * chains, chains, uniform[b], upto.data(), out);
  }
}

}  // namespace cogen
