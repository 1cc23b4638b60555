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

// Conditional effective sample size of a step, as a share of the particles.
double kept_share(const std::vector<double>& weights, const double* energy, double low,
                  double increment) {
  double first = 0.0, second = 0.0;
  for (size_t n = 0; n < weights.size(); ++n) {
    const double w = exp(-increment * (energy[n] - low));
    first += weights[n] * w;
    second += weights[n] * w * w;
  }
  return first * first / second;
}

double next(const double* energy, const std::vector<double>& weights, double beta, double kept) {
  const double low = smallest(energy, static_cast<int64_t>(weights.size()));
  const double room = 1.0 - beta;
  if (kept_share(weights, energy, low, room) >= kept) return 1.0;
  double below = -kBisectionRange, above = 0.0;
  for (int i = 0; i < kBisections; ++i) {
    const double middle = 0.5 * (below + above);
    const bool fine = kept_share(weights, energy, low, room * exp2(middle)) >= kept;
    (fine ? below : above) = middle;
  }
  return beta + room * exp2(below);
}

}  // namespace

void next_beta(int64_t observations, int64_t chains, const double* energy,
               const double* log_weights, const double* beta, const double* kept,
               const bool* active, double* out) {
  std::vector<double> weights(chains);
  for (int64_t b = 0; b < observations; ++b) {
    out[b] = beta[b];
    if (active && !active[b]) continue;
    softmax(log_weights + b * chains, chains, weights);
    out[b] = next(energy + b * chains, weights, beta[b], kept[b]);
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
