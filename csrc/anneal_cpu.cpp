// What the adaptive loop does between moves: the next inverse temperature, and resampling.
// Populations are a few dozen to a few thousand particles and this runs once per temperature, so it
// is plain code for every instruction set.
#define COGEN_ISA between_moves
#include "resampling.h"

#include <vector>

namespace cogen {

void next_beta(int64_t observations, int64_t chains, const double* energy,
               const double* log_weights, const double* beta, const double* kept,
               const bool* active, double* out) {
  for (int64_t b = 0; b < observations; ++b) {
    const int64_t at = b * chains;
    const bool moves = !active || active[b];
    out[b] = moves ? between_moves::next_inverse_temperature(between_moves::Alone{}, energy + at,
                                                             log_weights + at, chains, beta[b],
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
    between_moves::systematic_ancestors(between_moves::Alone{}, log_weights + b * chains, chains,
                                        uniform[b], upto.data(), out);
  }
}

}  // namespace cogen
