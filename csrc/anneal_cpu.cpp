// What the adaptive loop does between moves: the next inverse temperature of a population, and its
// resampling. cogen_fast/ops/reference.py is the definition. Populations are a few dozen to a few
// thousand particles and this runs once per temperature, so it is plain code for every instruction
// set.
#include <cmath>
#include <vector>

#include "kernels.h"

namespace cogen {
namespace {

template <class Value>
double sum_over(int64_t count, const Value& value) {
  double sum = 0.0;
  for (int64_t n = 0; n < count; ++n) sum += value(n);
  return sum;
}

// The greatest of `start` and all values.
template <class Value>
double greatest_over(int64_t count, double start, const Value& value) {
  double top = start;
  for (int64_t n = 0; n < count; ++n) {
    const double here = value(n);
    top = here > top ? here : top;
  }
  return top;
}

// log sum_n exp(log_weights_n - increment (energy_n - low)), which neither over- nor underflows.
double log_sum(const double* log_weights, const double* energy, int64_t count, double low,
               double increment) {
  // An energy may be infinite, and 0 times it is nothing here.
  const auto term = [&](int64_t n) {
    return increment > 0.0 ? log_weights[n] - increment * (energy[n] - low) : log_weights[n];
  };
  const double top = greatest_over(count, -HUGE_VAL, term);
  return top + std::log(sum_over(count, [&](int64_t n) { return std::exp(term(n) - top); }));
}

double next_inverse_temperature(const double* energy, const double* log_weights, int64_t count,
                                double beta, double kept) {
  const double low = -greatest_over(count, -energy[0], [&](int64_t n) { return -energy[n]; });
  const double room = 1.0 - beta;
  const double least = std::log(kept) + log_sum(log_weights, energy, count, low, 0.0);
  // The logarithm of the conditional effective sample size as a share of the particles, against
  // that of `kept`.
  const auto enough = [&](double increment) {
    return 2.0 * log_sum(log_weights, energy, count, low, increment) -
               log_sum(log_weights, energy, count, low, 2.0 * increment) >=
           least;
  };
  if (enough(room)) return 1.0;
  double below = -kBisectionRange, above = 0.0;
  for (int i = 0; i < kBisections; ++i) {
    const double middle = 0.5 * (below + above);
    (enough(room * std::exp2(middle)) ? below : above) = middle;
  }
  const double found = beta + room * std::exp2(below);
  return found > beta ? found : 1.0;
}

// Ancestors by systematic resampling, which never decrease. `upto` has room for as many numbers.
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

void next_beta(int64_t observations, int64_t chains, const double* energy,
               const double* log_weights, const double* beta, const double* kept,
               const bool* active, double* out) {
  for (int64_t b = 0; b < observations; ++b) {
    const int64_t at = b * chains;
    const bool moves = !active || active[b];
    out[b] = moves ? next_inverse_temperature(energy + at, log_weights + at, chains, beta[b],
                                              kept[b])
                   : beta[b];
  }
}

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
