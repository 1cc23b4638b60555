// What the adaptive method decides between moves, for the particles of one observation, and the
// pace that a call's observations share: one text for CPU and CUDA. cogen_fast/sampler (smc, pace,
// tuning, stiffness) is the definition; everything is in double.
#pragma once

#include "crew.h"
#include "kernels.h"
#include "step_math.h"

namespace cogen {
namespace COGEN_ISA {

constexpr int64_t kPopulation = 16;
constexpr int kRungs = 4;
COGEN_HD constexpr int ladder(int rung) { return 4 << rung; }
constexpr double kSharpnessGain = 0.3, kMassShrinkage = 8.0, kTie = 1e-6;
constexpr double kBlind = 2.718281828459045;
constexpr double kLeastKept = 0.1, kModerateKept = 0.3, kRounding = 1e-9, kUnknownTravel = 10.0;
constexpr double kSteepest = 2.0, kTiny = 1e-300;
constexpr int64_t kLeastFinalRounds = 2;
constexpr double kLeastRoots = 4.0, kCurvatureGain = 0.1, kRank = 1e-9;

// --- weights ------------------------------------------------------------------------------------

template <class Crew>
COGEN_HD_CALLED double log_sum_exp(const Crew crew, const double* x, int64_t count) {
  const double top = greatest_over(crew, count, x[0], [&](int64_t n) { return x[n]; });
  if (!(fabs(top) <= DBL_MAX)) return top;
  return top + log(sum_over(crew, count, [&](int64_t n) { return exp(x[n] - top); }));
}

template <class Crew>
COGEN_HD_CALLED double effective_size(const Crew crew, const double* log_weights, int64_t count) {
  const double top = greatest_over(crew, count, log_weights[0],
                                   [&](int64_t n) { return log_weights[n]; });
  double sum = 0.0, squares = 0.0;
  for (int64_t n = crew.thread; n < count; n += crew.threads) {
    const double w = exp(log_weights[n] - top);
    sum += w;
    squares += w * w;
  }
  sum = crew.sum(sum);
  return sum * sum / crew.sum(squares);
}

// Relative variance of the mean weight by the genealogy (Lee and Whiteley 2018); NaN where fewer
// than four prior draws are left, by weight. `shares` has room for N numbers.
template <class Crew>
COGEN_HD_CALLED double genealogical_variance(const Crew crew, const double* log_weights,
                                             const int64_t* roots, int64_t count, double* shares) {
  const double total = log_sum_exp(crew, log_weights, count);
  for (int64_t n = crew.thread; n < count; n += crew.threads) shares[n] = 0.0;
  crew.meets();
  if (leads(crew)) {
    for (int64_t n = 0; n < count; ++n) shares[roots[n]] += exp(log_weights[n] - total);
  }
  crew.meets();
  const double concentration =
      sum_over(crew, count, [&](int64_t n) { return shares[n] * shares[n]; });
  if (!(concentration * kLeastRoots <= 1.0)) return NAN;
  const double size = static_cast<double>(count);
  return greater(concentration * size - 1.0, 0.0) / (count > 1 ? size - 1.0 : 1.0);
}

// Whether all particles are copies of one another.
template <class Crew>
COGEN_HD_CALLED bool collapsed(const Crew crew, const double* energy, const int64_t* roots,
                               int64_t count, double* marks) {
  bool apart = false;
  for (int64_t n = crew.thread; n < count && !apart; n += crew.threads) {
    apart = energy[n] != energy[0];
  }
  if (any(crew, apart)) return false;
  for (int64_t n = crew.thread; n < count; n += crew.threads) marks[n] = 0.0;
  crew.meets();
  for (int64_t n = crew.thread; n < count; n += crew.threads) marks[roots[n]] = 1.0;
  crew.meets();
  const double alive = sum_over(crew, count, [&](int64_t n) { return marks[n]; });
  return alive < static_cast<double>(count);
}

// --- pace ---------------------------------------------------------------------------------------

COGEN_HD_CALLED double least_kept(const AnnealingPlan& plan) {
  return lesser(kLeastKept, plan.kept * (1.0 - kRounding));
}

COGEN_HD_CALLED int64_t moves_needed(double memory, const TuningRule& rule) {
  const double kept = lesser(greater(memory, 0.0), 0.999);
  if (kept <= rule.remembered) return 1;
  return lesser(rule.most_moves,
                static_cast<int64_t>(ceil(log(rule.remembered) / log(kept))));
}

COGEN_HD_CALLED double travel_left(double beta, double sharpness, int64_t size) {
  if (beta >= 1.0) return 0.0;
  const double e_folds = beta > 0.0 ? -log(beta) : kUnknownTravel;
  return greater(sharpness, 0.6 * square_root(static_cast<double>(size) / 2.0)) * e_folds;
}

COGEN_HD_CALLED double kept_by(double travel, double steps) {
  if (travel == 0.0) return 1.0;
  const double each = travel / steps;
  return steps > 0.0 ? exp(-each * each) : 0.0;
}

struct Fit {
  int64_t length, moves;
  double steps;
};

// L, M and the number of steps of the temperature that fit into what is left of a budget.
COGEN_HD_CALLED Fit fitted(int64_t remaining, double travel, double final_rounds, int64_t length,
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
      const int64_t shorter = fixed ? length : ladder(rung);
      if (shorter > length) continue;
      const double steps = left / static_cast<double>(shorter) - kLeastFinalRounds;
      if (steps >= 1.0 && kept_by(travel, steps) >= least) return {shorter, 1, steps};
    }
  }
  int64_t last = 0;
  for (int rung = fixed ? 0 : kRungs - 1; rung >= 0 && last == 0; --rung) {
    const int64_t shorter = fixed ? length : ladder(rung);
    if (shorter <= length && shorter <= remaining) last = shorter;
  }
  for (int64_t shorter = 3; shorter >= 1 && last == 0 && !fixed; --shorter) {
    if (shorter <= remaining) last = shorter;
  }
  return {last > 1 ? last : 1, last < 1 ? last : 1, 0.0};
}

// What an observation tells of itself before a temperature.
struct Progressing {
  double log_ratio, memory, travel;  // of a trajectory's length to a step; to be gone
  int64_t rounds;
  bool finished;
};

COGEN_HD_CALLED Progressing progressing(const Standing& at, int64_t b, int64_t size) {
  return {at.log_length[b] - at.log_step[b], at.memory[b],
          travel_left(at.beta[b], at.sharpness[b], size), at.rounds[b], at.finished[b]};
}

struct Pace {
  int64_t leapfrog_steps, hmc_steps;
};

// M and the share to keep of one observation.
struct OwnPace {
  int64_t moves;
  double kept;
};

COGEN_HD_CALLED OwnPace own_pace(const AnnealingPlan& plan, const Fit& fit,
                                 const Progressing& one) {
  OwnPace own{plan.hmc_steps ? plan.hmc_steps : moves_needed(one.memory, plan.rule), plan.kept};
  if (plan.budget > 0) own = {fit.moves, lesser(plan.kept, kept_by(one.travel, fit.steps))};
  if (one.finished) own.moves = 0;
  return own;
}

// L of all `count` observations, and what fits into the budget. told(b) is what b tells of itself.
template <class Crew, class Told>
COGEN_HD_LARGE Fit common_fit(const Crew& crew, const AnnealingPlan& plan, int64_t count,
                              const Told& told, int64_t spent) {
  double log_ratio = 0.0, memory = 0.0, travel = 0.0, moving = 0.0, fewest = -HUGE_VAL;
  for (int64_t b = crew.thread; b < count; b += crew.threads) {
    const Progressing one = told(b);
    if (one.finished) continue;
    log_ratio += one.log_ratio;
    memory += one.memory;
    travel = greater(travel, one.travel);
    fewest = greater(fewest, -static_cast<double>(one.rounds));
    moving += 1.0;
  }
  log_ratio = crew.sum(log_ratio);
  memory = crew.sum(memory);
  travel = crew.greatest(travel);
  fewest = crew.greatest(fewest);
  moving = crew.sum(moving);
  int64_t length = plan.leapfrog_steps;
  if (length == 0) {
    double nearest = HUGE_VAL;
    for (int rung = 0; rung < kRungs; ++rung) {
      const double distance = fabs(log(static_cast<double>(ladder(rung))) - log_ratio / moving);
      if (distance < nearest) {
        nearest = distance;
        length = ladder(rung);
      }
    }
  }
  if (plan.budget == 0) return {length, 0, 0.0};
  const int64_t common = plan.hmc_steps ? plan.hmc_steps : moves_needed(memory / moving, plan.rule);
  const double rounds = static_cast<double>(plan.final_rounds) + fewest;
  return fitted(plan.budget - spent, travel, rounds, length, common, plan);
}

// The pace of the next temperature.
template <class Crew, class Told>
COGEN_HD_LARGE Pace common_pace(const Crew& crew, const AnnealingPlan& plan, const Fit& fit,
                                int64_t count, const Told& told) {
  const double most = greatest_over(crew, count, 0.0, [&](int64_t b) {
    return static_cast<double>(own_pace(plan, fit, told(b)).moves);
  });
  return {fit.length, static_cast<int64_t>(most)};
}

// --- tuning -------------------------------------------------------------------------------------

COGEN_HD_CALLED double sharpened(double log_step, double beta, double new_beta, int64_t size) {
  if (!(beta > 0.0)) return log_step;
  const double wide = exp(2.0 * log_step) * square_root(static_cast<double>(size));
  const double share = lesser(greater(1.0 - wide, 0.0), 1.0);
  return log_step - 0.5 * share * log(new_beta / beta);
}

// Correlation over particles; 1 where either does not vary.
template <class Crew>
COGEN_HD_CALLED double correlation(const Crew crew, const double* a, const double* b,
                                   int64_t count) {
  double mean_a = 0.0, mean_b = 0.0, aa = 0.0, bb = 0.0, ab = 0.0;
  bool a_varies = false, b_varies = false;
  for (int64_t n = crew.thread; n < count; n += crew.threads) {
    a_varies |= a[n] != a[0];
    b_varies |= b[n] != b[0];
    mean_a += a[n];
    mean_b += b[n];
  }
  a_varies = any(crew, a_varies);
  b_varies = any(crew, b_varies);
  if (!(a_varies && b_varies)) return 1.0;
  mean_a = crew.sum(mean_a) / static_cast<double>(count);
  mean_b = crew.sum(mean_b) / static_cast<double>(count);
  for (int64_t n = crew.thread; n < count; n += crew.threads) {
    const double x = a[n] - mean_a, y = b[n] - mean_b;
    aa += x * x;
    bb += y * y;
    ab += x * y;
  }
  aa = crew.sum(aa);
  bb = crew.sum(bb);
  return crew.sum(ab) / greater(square_root(aa * bb), kTiny);
}

struct Tuned {
  double log_step, log_length, memory;
};

COGEN_HD_CALLED Tuned tuned(const Tuned& was, double acceptance, double slope, double correlated,
                            int64_t chains, const TuningRule& rule) {
  const double few = static_cast<double>(chains) / static_cast<double>(kPopulation);
  Tuned now;
  now.log_step = was.log_step + rule.step_gain * lesser(1.0, few) * (acceptance - rule.target);
  now.log_length = was.log_length + rule.length_gain * slope;
  const double low = now.log_step + log(0.7 * ladder(0));
  const double high = now.log_step + log(1.4 * ladder(kRungs - 1));
  now.log_length = lesser(greater(lesser(now.log_length, log(2.0)), low), high);
  now.memory = was.memory + rule.memory_gain * (correlated - was.memory);
  return now;
}

COGEN_HD_CALLED double sharpness_after(double was, double beta, double new_beta, double kept,
                                       bool active, const AnnealingPlan& plan) {
  const double e_folds = log(new_beta / beta);
  const bool learns =
      active && beta > 0.0 && e_folds > 0.0 && kept >= least_kept(plan);
  if (!learns) return was;
  const double seen = square_root(-log(kept)) / e_folds, known = was > 0.0 ? was : seen;
  return known + kSharpnessGain * (seen - known);
}

// --- stiff directions ---------------------------------------------------------------------------

COGEN_HD int64_t directions_of(int64_t size) { return lesser(int64_t{32}, size / 3); }

// Eigenvalues (ascending, into `values`) and eigenvectors (columns of `vectors`) of the symmetric
// (d, d) `matrix`, which is destroyed: cyclic Jacobi rotations.
template <class Crew>
COGEN_HD_CALLED void eigen(const Crew crew, double* matrix, int64_t d, double* values,
                           double* vectors) {
  for (int64_t i = crew.thread; i < d; i += crew.threads) {
    for (int64_t j = 0; j < d; ++j) vectors[i * d + j] = i == j ? 1.0 : 0.0;
  }
  for (int sweep = 0; sweep < 40; ++sweep) {
    double off = 0.0, all = 0.0;
    for (int64_t i = crew.thread; i < d; i += crew.threads) {
      for (int64_t j = 0; j < d; ++j) {
        const double square = matrix[i * d + j] * matrix[i * d + j];
        all += square;
        if (i != j) off += square;
      }
    }
    off = crew.sum(off);
    all = crew.sum(all);
    if (!(off > 1e-30 * all)) break;
    for (int64_t p = 0; p < d; ++p) {
      for (int64_t q = p + 1; q < d; ++q) {
        const double apq = matrix[p * d + q];
        if (apq == 0.0) continue;
        const double theta = (matrix[q * d + q] - matrix[p * d + p]) / (2.0 * apq);
        const double t =
            (theta < 0.0 ? -1.0 : 1.0) / (fabs(theta) + square_root(theta * theta + 1.0));
        const double c = 1.0 / square_root(t * t + 1.0), s = t * c;
        crew.meets();  // all have read
        for (int64_t i = crew.thread; i < d; i += crew.threads) {
          const double a = matrix[i * d + p], b = matrix[i * d + q];
          matrix[i * d + p] = c * a - s * b;
          matrix[i * d + q] = s * a + c * b;
        }
        crew.meets();
        for (int64_t i = crew.thread; i < d; i += crew.threads) {
          const double a = matrix[p * d + i], b = matrix[q * d + i];
          matrix[p * d + i] = c * a - s * b;
          matrix[q * d + i] = s * a + c * b;
        }
        for (int64_t i = crew.thread; i < d; i += crew.threads) {
          const double a = vectors[i * d + p], b = vectors[i * d + q];
          vectors[i * d + p] = c * a - s * b;
          vectors[i * d + q] = s * a + c * b;
        }
        crew.meets();
      }
    }
  }
  for (int64_t i = crew.thread; i < d; i += crew.threads) values[i] = matrix[i * d + i];
  crew.meets();
  for (int64_t i = 0; i < d; ++i) {
    int64_t least = i;
    for (int64_t j = i + 1; j < d; ++j) least = values[j] < values[least] ? j : least;
    crew.meets();  // all know which
    if (least == i) continue;
    if (leads(crew)) {
      const double value = values[i];
      values[i] = values[least];
      values[least] = value;
    }
    for (int64_t r = crew.thread; r < d; r += crew.threads) {
      const double entry = vectors[r * d + i];
      vectors[r * d + i] = vectors[r * d + least];
      vectors[r * d + least] = entry;
    }
    crew.meets();
  }
}

// The orthogonal (d, d) Q of the QR decomposition of `stiff` (d, k), by Householder reflections.
// `columns` has room for d * k numbers.
template <class Crew>
COGEN_HD_CALLED void basis_of(const Crew crew, const double* stiff, int64_t d, int64_t k,
                              double* columns, double* q) {
  for (int64_t i = crew.thread; i < d * k; i += crew.threads) columns[i] = stiff[i];
  for (int64_t i = crew.thread; i < d; i += crew.threads) {
    for (int64_t j = 0; j < d; ++j) q[i * d + j] = i == j ? 1.0 : 0.0;
  }
  crew.meets();
  for (int64_t c = 0; c < k; ++c) {
    double below = 0.0;
    for (int64_t i = c + 1; i < d; ++i) below += columns[i * k + c] * columns[i * k + c];
    if (below == 0.0) continue;
    const double head = columns[c * k + c], norm = square_root(head * head + below);
    const double beta = head > 0.0 ? -norm : norm, scale = 1.0 / (head - beta);
    const double tau = (beta - head) / beta;
    crew.meets();  // all have read
    // v = (1, columns[c + 1 ..] scale); H = 1 - tau v v'.
    for (int64_t i = c + 1 + crew.thread; i < d; i += crew.threads) columns[i * k + c] *= scale;
    if (leads(crew)) columns[c * k + c] = 1.0;
    crew.meets();
    for (int64_t j = c + 1 + crew.thread; j < k; j += crew.threads) {
      double sum = 0.0;
      for (int64_t i = c; i < d; ++i) sum += columns[i * k + c] * columns[i * k + j];
      for (int64_t i = c; i < d; ++i) columns[i * k + j] -= tau * sum * columns[i * k + c];
    }
    for (int64_t r = crew.thread; r < d; r += crew.threads) {
      double sum = 0.0;
      for (int64_t i = c; i < d; ++i) sum += q[r * d + i] * columns[i * k + c];
      for (int64_t i = c; i < d; ++i) q[r * d + i] -= tau * sum * columns[i * k + c];
    }
    crew.meets();
  }
}

// Stiffest directions (d, k) at `beta`, and the inverse mass (d) there. `room` has 2 d d + d
// numbers; `filler` (d, k) is in general position.
template <class Crew>
COGEN_HD_CALLED void stiff_directions(const Crew crew, const double* curvature, double beta,
                                      int64_t d, const double* filler, double* stiff,
                                      double* inverse_mass, double* room) {
  const int64_t k = directions_of(d);
  double* matrix = room;
  double* vectors = matrix + d * d;
  double* values = vectors + d * d;
  for (int64_t i = crew.thread; i < d * d; i += crew.threads) matrix[i] = curvature[i];
  crew.meets();
  eigen(crew, matrix, d, values, vectors);
  const auto stiffness = [&](int64_t rank) { return values[d - 1 - rank]; };  // the largest first
  const auto hessian = [&](int64_t rank) { return beta * greater(stiffness(rank), 0.0) + 1.0; };
  for (int64_t j = crew.thread; j < d; j += crew.threads) {
    inverse_mass[j] = j < k ? hessian(k) / hessian(j) : 1.0;
  }
  for (int64_t j = 0; j < k; ++j) {
    const bool known = stiffness(j) > kRank * stiffness(0);
    for (int64_t i = crew.thread; i < d; i += crew.threads) {
      stiff[i * k + j] = known ? vectors[i * d + d - 1 - j] : filler[i * k + j];
    }
  }
  crew.meets();
}

}  // namespace COGEN_ISA
}  // namespace cogen
