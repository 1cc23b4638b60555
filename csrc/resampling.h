// The next inverse temperature of a population, and its resampling: one text for CPU and CUDA.
// cogen_fast/ops/reference.py is the definition.
#pragma once

#include "crew.h"
#include "kernels.h"

namespace cogen {
namespace COGEN_ISA {

// log sum_n exp(log_weights_n - increment (energy_n - low)), which neither over- nor underflows.
template <class Crew>
COGEN_HD_CALLED double log_sum(const Crew crew, const double* log_weights, const double* energy,
                               int64_t count, double low, double increment) {
  // An energy may be infinite, and 0 times it is nothing here.
  const auto term = [&](int64_t n) {
    return increment > 0.0 ? log_weights[n] - increment * (energy[n] - low) : log_weights[n];
  };
  const double top = greatest_over(crew, count, -HUGE_VAL, term);
  return top + log(sum_over(crew, count, [&](int64_t n) { return exp(term(n) - top); }));
}

template <class Crew>
COGEN_HD_CALLED double next_inverse_temperature(const Crew crew, const double* energy,
                                                const double* log_weights, int64_t count,
                                                double beta, double kept) {
  const double low = -greatest_over(crew, count, -energy[0], [&](int64_t n) { return -energy[n]; });
  const double room = 1.0 - beta;
  const double least = log(kept) + log_sum(crew, log_weights, energy, count, low, 0.0);
  // The logarithm of the conditional effective sample size as a share of the particles, against
  // that of `kept`.
  const auto enough = [&](double increment) {
    return 2.0 * log_sum(crew, log_weights, energy, count, low, increment) -
               log_sum(crew, log_weights, energy, count, low, 2.0 * increment) >=
           least;
  };
  if (enough(room)) return 1.0;
  double below = -kBisectionRange, above = 0.0;
  for (int i = 0; i < kBisections; ++i) {
    const double middle = 0.5 * (below + above);
    (enough(room * exp2(middle)) ? below : above) = middle;
  }
  const double found = beta + room * exp2(below);
  return found > beta ? found : 1.0;
}

// Ancestors by systematic resampling, which never decrease. `upto` has room for as many numbers.
template <class Crew>
COGEN_HD_CALLED void systematic_ancestors(const Crew crew, const double* log_weights, int64_t count,
                                          double uniform, double* upto, int64_t* out) {
  const double top = greatest_over(crew, count, log_weights[0],
                                   [&](int64_t n) { return log_weights[n]; });
  const double sum = sum_over(crew, count, [&](int64_t n) {
    return upto[n] = exp(log_weights[n] - top);
  });
  for (int64_t n = crew.thread; n < count; n += crew.threads) upto[n] /= sum;
  crew.meets();
  if (leads(crew)) {
    for (int64_t n = 1; n < count; ++n) upto[n] += upto[n - 1];
    int64_t parent = 0;
    for (int64_t n = 0; n < count; ++n) {
      const double point = (static_cast<double>(n) + uniform) / static_cast<double>(count);
      while (parent < count - 1 && upto[parent] <= point * upto[count - 1]) ++parent;
      out[n] = parent;
    }
  }
  crew.meets();
}

}  // namespace COGEN_ISA
}  // namespace cogen
