// What the adaptive loop does between moves: the next inverse temperature, and resampling.
// cogen_fast/ops/reference.py is the definition. Populations are a few dozen to a few thousand
// particles and this runs once per temperature, so it is plain code for every instruction set.
#include <math.h>

#include <vector>

#include "kernels.h"

namespace cogen {
namespace {

// Normalised weights of one observation's particles.
void softmax(const double* log_weights, int64_t count, std::vector<double>& out) {
  double top = log_weights[0], sum = 0.0;
  for (int64_t n = 1; n < count; ++n) top = log_weights[n] > top ? log_weights[n] : top;
  for (int64_t n = 0; n < count; ++n) sum += out[n] = exp(log_weights[n] - top);
  for (int64_t n = 0; n < count; ++n) out[n] /= sum;
}

double smallest(const double* values, int64_t count) {
  double low = values[0];
  for (int64_t n = 1; n < count; ++n) low = values[n] < low ? values[n] : low;
  return low;
}

// log sum_n exp(log_weights_n - increment (energy_n - low)), which neither over- nor underflows.
double log_sum(const double* log_weights, const double* energy, int64_t count, double low,
               double increment) {
  // An energy may be infinite, and 0 times it is nothing here.
  const auto term = [&](int64_t n) {
    return increment > 0.0 ? log_weights[n] - increment * (energy[n] - low) : log_weights[n];
  };
  double top = -HUGE_VAL, sum = 0.0;
  for (int64_t n = 0; n < count; ++n) top = term(n) > top ? term(n) : top;
  for (int64_t n = 0; n < count; ++n) sum += exp(term(n) - top);
  return top + log(sum);
}

double next(const double* log_weights, const double* energy, int64_t count, double beta,
            double kept) {
  const double low = smallest(energy, count), room = 1.0 - beta;
  const double least = log(kept) + log_sum(log_weights, energy, count, low, 0.0);
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
    (enough(room * exp2(middle)) ? below : above) = middle;
  }
  const double found = beta + room * exp2(below);
  return found > beta ? found : 1.0;
}

}  // namespace

void next_beta(int64_t observations, int64_t chains, const double* energy,
               const double* log_weights, const double* beta, const double* kept,
               const bool* active, double* out) {
  for (int64_t b = 0; b < observations; ++b) {
    const int64_t at = b * chains;
    const bool moves = !active || active[b];
    out[b] = moves ? next(log_weights + at, energy + at, chains, beta[b], kept[b]) : beta[b];
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
    softmax(log_weights + b * chains, chains, upto);
    for (int64_t n = 1; n < chains; ++n) upto[n] += upto[n - 1];
    int64_t parent = 0;
    for (int64_t n = 0; n < chains; ++n) {
      const double point = (static_cast<double>(n) + uniform[b]) / static_cast<double>(chains);
      while (parent < chains - 1 && upto[parent] <= point * upto[chains - 1]) ++parent;
      out[n] = parent;
    }
  }
}

}  // namespace cogen
