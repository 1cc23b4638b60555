// What the adaptive method decides between moves, for the particles of one observation, and the
// pace that a call's observations share. cogen_fast/sampler (smc, pace, tuning, stiffness) is the
// definition; everything is in double.
#pragma once

#include "kernels.h"
#include "step_math.h"

namespace cogen {
namespace COGEN_ISA {

constexpr int64_t kPopulation = 16;
constexpr int kLadder[] = {4, 8, 16, 32};
constexpr int kRungs = 4;
constexpr double kSharpnessGain = 0.3, kMassShrinkage = 8.0, kTie = 1e-6, kBlind = 2.718281828459045;
constexpr double kLeastKept = 0.1, kModerateKept = 0.3, kRounding = 1e-9, kUnknownTravel = 10.0;
constexpr double kSteepest = 2.0, kTiny = 1e-300;
constexpr int64_t kLeastFinalRounds = 2;
constexpr double kLeastRoots = 4.0, kCurvatureGain = 0.1, kRank = 1e-9;

COGEN_HD double lesser(double a, double b) { return a < b ? a : b; }
COGEN_HD double greater(double a, double b) { return a > b ? a : b; }
COGEN_HD int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// --- weights ------------------------------------------------------------------------------------

inline double log_sum_exp(const double* x, int64_t count) {
  double top = x[0], sum = 0.0;
  for (int64_t n = 1; n < count; ++n) top = greater(top, x[n]);
  if (!(fabs(top) <= DBL_MAX)) return top;
  for (int64_t n = 0; n < count; ++n) sum += exp(x[n] - top);
  return top + log(sum);
}

inline double effective_size(const double* log_weights, int64_t count) {
  double top = log_weights[0], sum = 0.0, squares = 0.0;
  for (int64_t n = 1; n < count; ++n) top = greater(top, log_weights[n]);
  for (int64_t n = 0; n < count; ++n) {
    const double w = exp(log_weights[n] - top);
    sum += w;
    squares += w * w;
  }
  return sum * sum / squares;
}

// Relative variance of the mean weight by the genealogy (Lee and Whiteley 2018); NaN where fewer
// than four prior draws are left, by weight. `shares` has room for N numbers.
inline double genealogical_variance(const double* log_weights, const int64_t* roots, int64_t count,
                                    double* shares) {
  const double total = log_sum_exp(log_weights, count);
  for (int64_t n = 0; n < count; ++n) shares[n] = 0.0;
  for (int64_t n = 0; n < count; ++n) shares[roots[n]] += exp(log_weights[n] - total);
  double concentration = 0.0;
  for (int64_t n = 0; n < count; ++n) concentration += shares[n] * shares[n];
  if (!(concentration * kLeastRoots <= 1.0)) return NAN;
  const double size = static_cast<double>(count);
  return greater(concentration * size - 1.0, 0.0) / (count > 1 ? size - 1.0 : 1.0);
}

// Whether all particles are copies of one another.
inline bool collapsed(const double* energy, const int64_t* roots, int64_t count, double* marks) {
  for (int64_t n = 1; n < count; ++n) {
    if (energy[n] != energy[0]) return false;
  }
  for (int64_t n = 0; n < count; ++n) marks[n] = 0.0;
  int64_t alive = 0;
  for (int64_t n = 0; n < count; ++n) {
    alive += marks[roots[n]] == 0.0;
    marks[roots[n]] = 1.0;
  }
  return alive < count;
}

// --- pace ---------------------------------------------------------------------------------------

inline double least_kept(const AnnealingPlan& plan) {
  return lesser(kLeastKept, plan.kept * (1.0 - kRounding));
}

inline int64_t moves_needed(double memory, const TuningRule& rule) {
  const double kept = lesser(greater(memory, 0.0), 0.999);
  if (kept <= rule.remembered) return 1;
  return lesser(rule.most_moves,
                static_cast<int64_t>(ceil(log(rule.remembered) / log(kept))));
}

inline double travel_left(double beta, double sharpness, int64_t size) {
  if (beta >= 1.0) return 0.0;
  const double e_folds = beta > 0.0 ? -log(beta) : kUnknownTravel;
  return greater(sharpness, 0.6 * square_root(static_cast<double>(size) / 2.0)) * e_folds;
}

inline double kept_by(double travel, double steps) {
  if (travel == 0.0) return 1.0;
  const double each = travel / steps;
  return steps > 0.0 ? exp(-each * each) : 0.0;
}

struct Fit {
  int64_t length, moves;
  double steps;
};

// L, M and the number of steps of the temperature that fit into what is left of a budget.
inline Fit fitted(int64_t remaining, double travel, double final_rounds, int64_t length,
                  int64_t moves, const AnnealingPlan& plan) {
  const double wanted = travel / square_root(-log(plan.kept));
  const double rounds = greater(final_rounds, 1.0), left = static_cast<double>(remaining);
  const auto affordable =
      static_cast<int64_t>(left / ((wanted + rounds) * static_cast<double>(length)));
  if (affordable >= 1) return {length, lesser(moves, affordable), wanted};
  const bool fixed = plan.leapfrog_steps > 0;
  const double shares[] = {kModerateKept, kLeastKept, 0.0};
  for (const double least : shares) {
    for (int rung = fixed ? 0 : kRungs - 1; rung >= 0; --rung) {
      const int64_t shorter = fixed ? length : kLadder[rung];
      if (shorter > length) continue;
      const double steps = left / static_cast<double>(shorter) - kLeastFinalRounds;
      if (steps >= 1.0 && kept_by(travel, steps) >= least) return {shorter, 1, steps};
    }
  }
  int64_t last = 0;
  for (int rung = fixed ? 0 : kRungs - 1; rung >= 0 && last == 0; --rung) {
    const int64_t shorter = fixed ? length : kLadder[rung];
    if (shorter <= length && shorter <= remaining) last = shorter;
  }
  for (int64_t shorter = 3; shorter >= 1 && last == 0 && !fixed; --shorter) {
    if (shorter <= remaining) last = shorter;
  }
  return {last > 1 ? last : 1, last < 1 ? last : 1, 0.0};
}

struct Pace {
  int64_t leapfrog_steps, hmc_steps;
};

// The pace of the next temperature: M and the share to keep of every observation, L of all.
inline Pace choose_pace(const AnnealingPlan& plan, int64_t size, const Standing& at, int64_t spent,
                        int64_t* moves, double* kept) {
  double log_ratio = 0.0, memory = 0.0, travel = 0.0;
  int64_t moving = 0, rounds = 0;
  for (int64_t b = 0; b < at.observations; ++b) {
    if (at.finished[b]) continue;
    log_ratio += at.log_length[b] - at.log_step[b];
    memory += at.memory[b];
    travel = greater(travel, travel_left(at.beta[b], at.sharpness[b], size));
    rounds = moving == 0 ? at.rounds[b] : lesser(rounds, at.rounds[b]);
    ++moving;
  }
  const double count = static_cast<double>(moving);
  int64_t length = plan.leapfrog_steps;
  if (length == 0) {
    double nearest = HUGE_VAL;
    for (const int rung : kLadder) {
      const double distance = fabs(log(static_cast<double>(rung)) - log_ratio / count);
      if (distance < nearest) {
        nearest = distance;
        length = rung;
      }
    }
  }
  Fit fit{length, 0, 0.0};
  if (plan.budget > 0) {
    const int64_t common = plan.hmc_steps ? plan.hmc_steps : moves_needed(memory / count, plan.rule);
    fit = fitted(plan.budget - spent, travel, static_cast<double>(plan.final_rounds - rounds),
                 length, common, plan);
  }
  Pace pace{fit.length, 0};
  for (int64_t b = 0; b < at.observations; ++b) {
    kept[b] = plan.kept;
    moves[b] = plan.hmc_steps ? plan.hmc_steps : moves_needed(at.memory[b], plan.rule);
    if (plan.budget > 0) {
      kept[b] = lesser(plan.kept,
                       kept_by(travel_left(at.beta[b], at.sharpness[b], size), fit.steps));
      moves[b] = fit.moves;
    }
    if (at.finished[b]) moves[b] = 0;
    pace.hmc_steps = moves[b] > pace.hmc_steps ? moves[b] : pace.hmc_steps;
  }
  return pace;
}

// --- tuning -------------------------------------------------------------------------------------

inline double sharpened(double log_step, double beta, double new_beta, int64_t size) {
  if (!(beta > 0.0)) return log_step;
  const double wide = exp(2.0 * log_step) * square_root(static_cast<double>(size));
  const double share = lesser(greater(1.0 - wide, 0.0), 1.0);
  return log_step - 0.5 * share * log(new_beta / beta);
}

// Correlation over particles; 1 where either does not vary.
inline double correlation(const double* a, const double* b, int64_t count) {
  double mean_a = 0.0, mean_b = 0.0, aa = 0.0, bb = 0.0, ab = 0.0;
  bool a_varies = false, b_varies = false;
  for (int64_t n = 0; n < count; ++n) {
    a_varies |= a[n] != a[0];
    b_varies |= b[n] != b[0];
    mean_a += a[n];
    mean_b += b[n];
  }
  if (!(a_varies && b_varies)) return 1.0;
  mean_a /= static_cast<double>(count);
  mean_b /= static_cast<double>(count);
  for (int64_t n = 0; n < count; ++n) {
    const double x = a[n] - mean_a, y = b[n] - mean_b;
    aa += x * x;
    bb += y * y;
    ab += x * y;
  }
  return ab / greater(square_root(aa * bb), kTiny);
}

struct Tuned {
  double log_step, log_length, memory;
};

inline Tuned tuned(const Tuned& was, double acceptance, double slope, double correlated,
                   int64_t chains, const TuningRule& rule) {
  const double few = static_cast<double>(chains) / static_cast<double>(kPopulation);
  Tuned now;
  now.log_step = was.log_step + rule.step_gain * lesser(1.0, few) * (acceptance - rule.target);
  now.log_length = was.log_length + rule.length_gain * slope;
  const double low = now.log_step + log(0.7 * kLadder[0]);
  const double high = now.log_step + log(1.4 * kLadder[kRungs - 1]);
  now.log_length = lesser(greater(lesser(now.log_length, log(2.0)), low), high);
  now.memory = was.memory + rule.memory_gain * (correlated - was.memory);
  return now;
}

inline double sharpness_after(double was, double beta, double new_beta, double kept, bool active,
                              const AnnealingPlan& plan) {
  const double e_folds = log(new_beta / beta);
  const bool learns =
      active && beta > 0.0 && e_folds > 0.0 && kept >= least_kept(plan);
  if (!learns) return was;
  const double seen = square_root(-log(kept)) / e_folds, known = was > 0.0 ? was : seen;
  return known + kSharpnessGain * (seen - known);
}

// --- stiff directions ---------------------------------------------------------------------------

inline int64_t directions_of(int64_t size) { return lesser(int64_t{32}, size / 3); }

// Eigenvalues (ascending, into `values`) and eigenvectors (columns of `vectors`) of the symmetric
// (d, d) `matrix`, which is destroyed: cyclic Jacobi rotations.
inline void eigen(double* matrix, int64_t d, double* values, double* vectors) {
  for (int64_t i = 0; i < d * d; ++i) vectors[i] = i % (d + 1) == 0 ? 1.0 : 0.0;
  for (int sweep = 0; sweep < 40; ++sweep) {
    double off = 0.0, all = 0.0;
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = 0; j < d; ++j) {
        const double square = matrix[i * d + j] * matrix[i * d + j];
        all += square;
        if (i != j) off += square;
      }
    }
    if (!(off > 1e-30 * all)) break;
    for (int64_t p = 0; p < d; ++p) {
      for (int64_t q = p + 1; q < d; ++q) {
        const double apq = matrix[p * d + q];
        if (apq == 0.0) continue;
        const double theta = (matrix[q * d + q] - matrix[p * d + p]) / (2.0 * apq);
        const double t = (theta < 0.0 ? -1.0 : 1.0) / (fabs(theta) + square_root(theta * theta + 1.0));
        const double c = 1.0 / square_root(t * t + 1.0), s = t * c;
        for (int64_t i = 0; i < d; ++i) {
          const double a = matrix[i * d + p], b = matrix[i * d + q];
          matrix[i * d + p] = c * a - s * b;
          matrix[i * d + q] = s * a + c * b;
        }
        for (int64_t i = 0; i < d; ++i) {
          const double a = matrix[p * d + i], b = matrix[q * d + i];
          matrix[p * d + i] = c * a - s * b;
          matrix[q * d + i] = s * a + c * b;
        }
        for (int64_t i = 0; i < d; ++i) {
          const double a = vectors[i * d + p], b = vectors[i * d + q];
          vectors[i * d + p] = c * a - s * b;
          vectors[i * d + q] = s * a + c * b;
        }
      }
    }
  }
  for (int64_t i = 0; i < d; ++i) values[i] = matrix[i * d + i];
  for (int64_t i = 0; i < d; ++i) {
    int64_t least = i;
    for (int64_t j = i + 1; j < d; ++j) least = values[j] < values[least] ? j : least;
    if (least == i) continue;
    const double value = values[i];
    values[i] = values[least];
    values[least] = value;
    for (int64_t r = 0; r < d; ++r) {
      const double entry = vectors[r * d + i];
      vectors[r * d + i] = vectors[r * d + least];
      vectors[r * d + least] = entry;
    }
  }
}

// The orthogonal (d, d) Q of the QR decomposition of `stiff` (d, k), by Householder reflections.
// `columns` has room for d * k numbers.
inline void basis_of(const double* stiff, int64_t d, int64_t k, double* columns, double* q) {
  for (int64_t i = 0; i < d * k; ++i) columns[i] = stiff[i];
  for (int64_t i = 0; i < d * d; ++i) q[i] = i % (d + 1) == 0 ? 1.0 : 0.0;
  for (int64_t c = 0; c < k; ++c) {
    double below = 0.0;
    for (int64_t i = c + 1; i < d; ++i) below += columns[i * k + c] * columns[i * k + c];
    if (below == 0.0) continue;
    const double head = columns[c * k + c], norm = square_root(head * head + below);
    const double beta = head > 0.0 ? -norm : norm, scale = 1.0 / (head - beta);
    const double tau = (beta - head) / beta;
    // v = (1, columns[c + 1 ..] scale); H = 1 - tau v v'.
    for (int64_t i = c + 1; i < d; ++i) columns[i * k + c] *= scale;
    columns[c * k + c] = 1.0;
    for (int64_t j = c + 1; j < k; ++j) {
      double sum = 0.0;
      for (int64_t i = c; i < d; ++i) sum += columns[i * k + c] * columns[i * k + j];
      for (int64_t i = c; i < d; ++i) columns[i * k + j] -= tau * sum * columns[i * k + c];
    }
    for (int64_t r = 0; r < d; ++r) {
      double sum = 0.0;
      for (int64_t i = c; i < d; ++i) sum += q[r * d + i] * columns[i * k + c];
      for (int64_t i = c; i < d; ++i) q[r * d + i] -= tau * sum * columns[i * k + c];
    }
  }
}

// Stiffest directions (d, k) at `beta`, and the inverse mass (d) there. `room` has 2 d d + d
// numbers; `filler` (d, k) is in general position.
inline void stiff_directions(const double* curvature, double beta, int64_t d, const double* filler,
                             double* stiff, double* inverse_mass, double* room) {
  const int64_t k = directions_of(d);
  double* matrix = room;
  double* vectors = matrix + d * d;
  double* values = vectors + d * d;
  for (int64_t i = 0; i < d * d; ++i) matrix[i] = curvature[i];
  eigen(matrix, d, values, vectors);
  const auto stiffness = [&](int64_t rank) { return values[d - 1 - rank]; };  // the largest first
  const auto hessian = [&](int64_t rank) { return beta * greater(stiffness(rank), 0.0) + 1.0; };
  for (int64_t j = 0; j < d; ++j) inverse_mass[j] = j < k ? hessian(k) / hessian(j) : 1.0;
  for (int64_t j = 0; j < k; ++j) {
    const bool known = stiffness(j) > kRank * stiffness(0);
    for (int64_t i = 0; i < d; ++i) {
      stiff[i * k + j] = known ? vectors[i * d + d - 1 - j] : filler[i * k + j];
    }
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
