// What the adaptive run for a generator of dense layers does with one row of particles around its
// moves: one text for CPU and CUDA. adapt_mlp_cpu.cpp and adapt_mlp_device.h make the moves.
//
// A row's particles may be turned, so that the stiff directions come first, from `choose` to
// `close`.
#pragma once

#include "anneal_mlp.h"
#include "population.h"

namespace cogen {
namespace COGEN_ISA {

constexpr uint32_t kResamplePurpose = 3, kJitterPurpose = 4;

// What a particle has of d entries each.
enum { kLatents, kGrad, kStart, kPosition, kMomenta, kLatentsBackup, kGradBackup };

// Memory of a row.
template <class T>
struct RowRoom {
  double *energy, *before, *log_weights, *scratch;  // (N)
  double* basis;                                    // (d, d)
  double* eigen;                                    // room_of_eigen
  T *weight, *back;    // the first layer's in turned coordinates, as in Mlp
  double *came_from;   // the temperature before
  double *acceptance;  // the sum over the moves so far
};

COGEN_HD int64_t room_of_eigen(int64_t d) { return 2 * d * d + d * (directions_of(d) + 1); }

// entries(n, which) is where the entries of particle n are, Entries::kApart from one another. Crews
// decide temperatures and ancestors by functions of theirs.
template <class T, class Entries, class Crew>
class AdaptiveRow {
 public:
  COGEN_HD AdaptiveRow(const AdaptiveRun<T>& run, int64_t b, const RowRoom<T>& room,
                       const Entries& entries, const Crew& crew)
      : run_(run),
        out_(run.out),
        b_(b),
        chains_(run.shape.chains),
        d_(run.shape.size),
        k_(directions_of(run.shape.size)),
        room_(room),
        entries_(entries),
        crew_(crew) {}

  // What temperature t is: which, whether it is resampled, with what mass. Each particle's ancestor
  // is in `out`, its energy and entries are not there yet.
  COGEN_HD_CALLED void choose(int64_t t) const {
    const int64_t at = place(t);
    const Standing& s = run_.at;
    const int64_t* const roots = run_.roots + b_ * chains_;
    const double beta = s.beta[b_];
    if (!run_.repeats) {
      const bool active = !s.finished[b_];
      double target = beta, kept = out_.kept[at];
      if (active) target = crew_.next_beta(room_.energy, room_.log_weights, chains_, beta, kept);
      if (kept > 0.0 && collapsed(crew_, room_.energy, roots, chains_, room_.scratch)) {
        target = lesser(target, kBlind * beta);
        kept = NAN;
      }
      crew_.meets();
      if (leads(crew_)) {
        out_.active[at] = active;
        out_.kept[at] = kept;
        out_.beta[at] = target;
      }
      crew_.meets();
    }
    weigh(at, roots);
    const double effective = effective_size(crew_, room_.log_weights, chains_);
    if (!run_.repeats) {
      set_mass(at);
      decide(at, effective);
    }
    crew_.meets();
    if (leads(crew_)) {
      out_.effective_size[at] = effective;
      if (out_.active[at]) s.log_step[b_] = log(out_.step_size[at]);
      *room_.acceptance = 0.0;
      *room_.came_from = beta;
    }
    set_basis(at);
    draw_ancestors(at);
  }

  COGEN_HD bool moves(int64_t t, int64_t made) const {
    const int64_t at = place(t);
    return out_.active[at] && made < out_.moves[at];
  }

  COGEN_HD bool turned() const { return run_.plan.mass == MassKind::low_rank && k_ > 0; }

  COGEN_HD int64_t ancestor(int64_t t, int64_t n) const {
    return out_.ancestors[place(t) * chains_ + n];
  }

  // The generator of those coordinates.
  COGEN_HD Mlp<T> net() const {
    Mlp<T> net = run_.net;
    if (turned()) {
      net.weight[0] = room_.weight;
      net.back[0] = room_.back;
    }
    return net;
  }

  // With which the transition that comes is made.
  COGEN_HD Move<T> move_of(int64_t t, int64_t leapfrog_steps) const {
    const int64_t at = place(t);
    return {{out_.beta[at], 1.0}, jittered(), mass_of(at), static_cast<int>(leapfrog_steps)};
  }
  COGEN_HD Stream stream() const {
    return {run_.seed, static_cast<uint32_t>(run_.at.transition[b_]),
            static_cast<uint32_t>(run_.observation[b_])};
  }

  // A particle's entry j times Q, or Q' to go `back`.
  COGEN_HD T turned_entry(const T* from, int64_t j, bool back) const {
    double sum = 0.0;
    for (int64_t i = 0; i < d_; ++i) {
      sum += static_cast<double>(from[i * kApart]) *
             (back ? room_.basis[j * d_ + i] : room_.basis[i * d_ + j]);
    }
    return static_cast<T>(sum);
  }

  // What the transition just made teaches. `scratch` has the acceptance probabilities.
  COGEN_HD_CALLED void learn(int64_t t, int64_t leapfrog_steps) const {
    const int64_t at = place(t);
    const Standing& s = run_.at;
    const double acceptance = mean_of(crew_, room_.scratch, chains_);
    const double log_step = s.log_step[b_];
    Tuned now{log_step, s.log_length[b_], s.memory[b_]};
    if (!run_.repeats) {
      const double slope = length_slope(at, leapfrog_steps);
      const double kept = correlation(crew_, room_.before, room_.energy, chains_);
      now = tuned(now, acceptance, slope, kept, chains_, run_.plan.rule);
      if (sees_curvature(at)) see_curvature(at);
    }
    crew_.meets();
    if (leads(crew_)) {
      out_.step_size[at] = exp(log_step);
      s.log_step[b_] = now.log_step;
      s.log_length[b_] = now.log_length;
      s.memory[b_] = now.memory;
      *room_.acceptance += acceptance;
      ++s.transition[b_];
    }
    crew_.meets();
  }

  // The end of temperature t, with so much `spent`.
  COGEN_HD_CALLED void close(int64_t t, int64_t spent) const {
    const int64_t at = place(t);
    if (sees_curvature(at)) rotate(run_.curvature + b_ * d_ * d_, true);
    const double mean = mean_of(crew_, room_.energy, chains_);
    const double deviation = deviation_of(crew_, room_.energy, chains_, mean);
    const bool nothing_left = run_.plan.budget > 0 && spent >= run_.plan.budget;
    crew_.meets();
    if (leads(crew_)) record(at, mean, deviation, nothing_left);
    crew_.meets();
  }

 private:
  static constexpr int64_t kApart = Entries::kApart;

  COGEN_HD int64_t place(int64_t t) const { return t * run_.shape.observations + b_; }

  COGEN_HD void weigh(int64_t at, const int64_t* roots) const {
    const double increment = out_.beta[at] - run_.at.beta[b_];
    for (int64_t n = crew_.thread; n < chains_; n += crew_.threads) {
      room_.log_weights[n] -= increment * room_.energy[n];
    }
    crew_.meets();
    if (!(increment > 0.0)) return;
    const double variance =
        genealogical_variance(crew_, room_.log_weights, roots, chains_, room_.scratch);
    if (leads(crew_)) run_.at.variance[b_] = variance;
  }

  COGEN_HD void decide(int64_t at, double effective) const {
    if (!leads(crew_)) return;
    const double beta = run_.at.beta[b_], share = effective / static_cast<double>(chains_);
    const bool arrived = out_.beta[at] >= 1.0 && beta < 1.0;
    const bool uneven = arrived || share < run_.plan.resample_below + kTie;
    out_.resampled[at] = out_.active[at] && uneven;
    out_.step_size[at] = exp(sharpened(run_.at.log_step[b_], beta, out_.beta[at], d_));
  }

  COGEN_HD void set_mass(int64_t at) const {
    T* const inverse_mass = out_.inverse_mass + at * d_;
    if (turned()) {
      double* const mass = room_.eigen + 2 * d_ * d_ + d_ * k_;
      stiff_directions(crew_, run_.curvature + b_ * d_ * d_, out_.beta[at], d_, run_.filler,
                       out_.stiff + at * d_ * k_, mass, room_.eigen);
      for (int64_t i = crew_.thread; i < d_; i += crew_.threads) {
        inverse_mass[i] = static_cast<T>(mass[i]);
      }
    } else if (run_.plan.mass == MassKind::diagonal) {
      diagonal_mass(inverse_mass);
    }
  }

  // The population's variances, drawn towards their mean, with a geometric mean of 1.
  COGEN_HD void diagonal_mass(T* inverse_mass) const {
    const double* const log_weights = room_.log_weights;
    const double total = log_sum_exp(crew_, log_weights, chains_);
    double mean = 0.0;
    for (int64_t i = 0; i < d_; ++i) {
      const double centre = sum_over(crew_, chains_, [&](int64_t n) {
        return exp(log_weights[n] - total) * entries_(n, kLatents)[i * kApart];
      });
      const double variance = sum_over(crew_, chains_, [&](int64_t n) {
        const double apart = entries_(n, kLatents)[i * kApart] - centre;
        return exp(log_weights[n] - total) * apart * apart;
      });
      if (leads(crew_)) inverse_mass[i] = static_cast<T>(variance);
      mean += variance / static_cast<double>(d_);
    }
    if (leads(crew_)) draw_together(inverse_mass, mean);
  }

  COGEN_HD void draw_together(T* inverse_mass, double mean) const {
    const double count = static_cast<double>(chains_);
    double log_sum = 0.0;
    for (int64_t i = 0; i < d_; ++i) {
      const double shrunk = mean > 0.0 ? (count * static_cast<double>(inverse_mass[i]) +
                                          kMassShrinkage * mean) / (count + kMassShrinkage)
                                       : 1.0;
      inverse_mass[i] = static_cast<T>(shrunk);
      log_sum += log(shrunk);
    }
    const double scale = exp(log_sum / static_cast<double>(d_));
    for (int64_t i = 0; i < d_; ++i) {
      inverse_mass[i] = static_cast<T>(static_cast<double>(inverse_mass[i]) / scale);
    }
  }

  // Whether moves teach the curvature, which is in the turned coordinates then.
  COGEN_HD bool sees_curvature(int64_t at) const {
    return turned() && !run_.repeats && out_.active[at] && out_.moves[at] > 0;
  }

  // Coordinates in which the stiff directions come first: a basis, the generator's first layer in
  // it, and the curvature.
  COGEN_HD void set_basis(int64_t at) const {
    if (!turned()) return;
    basis_of(crew_, out_.stiff + at * d_ * k_, d_, k_, room_.eigen + 2 * d_ * d_, room_.basis);
    if (sees_curvature(at)) rotate(run_.curvature + b_ * d_ * d_, false);
    const int64_t out = run_.net.width[1], row = padded(static_cast<int>(out));
    const int64_t column = padded(static_cast<int>(d_));
    for (int64_t j = 0; j < d_; ++j) {
      for (int64_t o = crew_.thread; o < row; o += crew_.threads) {
        double sum = 0.0;
        for (int64_t i = 0; i < d_; ++i) {
          sum += room_.basis[i * d_ + j] * static_cast<double>(run_.net.weight[0][i * row + o]);
        }
        room_.weight[j * row + o] = static_cast<T>(sum);
        if (o < out) room_.back[o * column + j] = static_cast<T>(sum);
      }
    }
    for (int64_t o = crew_.thread; o < out; o += crew_.threads) {
      for (int64_t j = d_; j < column; ++j) room_.back[o * column + j] = T(0);
    }
  }

  // `matrix` M becomes Q' M Q, or Q M Q' to go `back`.
  COGEN_HD_CALLED void rotate(double* matrix, bool back) const {
    const double* const q = room_.basis;
    double* const room = room_.eigen;
    const auto at = [&](int64_t i, int64_t j) { return back ? q[j * d_ + i] : q[i * d_ + j]; };
    for (int64_t i = 0; i < d_; ++i) {
      for (int64_t j = crew_.thread; j < d_; j += crew_.threads) {
        double sum = 0.0;
        for (int64_t r = 0; r < d_; ++r) sum += matrix[i * d_ + r] * at(r, j);
        room[i * d_ + j] = sum;
      }
    }
    crew_.meets();
    for (int64_t i = 0; i < d_; ++i) {
      for (int64_t j = crew_.thread; j < d_; j += crew_.threads) {
        double sum = 0.0;
        for (int64_t r = 0; r < d_; ++r) sum += at(r, i) * room[r * d_ + j];
        matrix[i * d_ + j] = sum;
      }
    }
    crew_.meets();
  }

  COGEN_HD double uniform_of(uint32_t purpose) const {
    const Stream at = stream();
    const Words words =
        philox(at.seed, purpose << kPurposeBits, at.transition, 0, at.observation);
    return to_uniform<double>(words.w[0]);
  }

  COGEN_HD void draw_ancestors(int64_t at) const {
    int64_t* const ancestors = out_.ancestors + at * chains_;
    crew_.meets();
    if (!out_.resampled[at]) {
      for (int64_t n = crew_.thread; n < chains_; n += crew_.threads) ancestors[n] = n;
      crew_.meets();
      return;
    }
    double* const log_weights = room_.log_weights;
    crew_.systematic(log_weights, chains_, uniform_of(kResamplePurpose), room_.scratch, ancestors);
    const double even =
        log_sum_exp(crew_, log_weights, chains_) - log(static_cast<double>(chains_));
    // Ancestors never decrease, but a root may be asked for after its place was taken.
    int64_t* const roots = run_.roots + b_ * chains_;
    for (int64_t n = crew_.thread; n < chains_; n += crew_.threads) {
      room_.scratch[n] = static_cast<double>(roots[ancestors[n]]);
    }
    crew_.meets();
    for (int64_t n = crew_.thread; n < chains_; n += crew_.threads) {
      roots[n] = static_cast<int64_t>(room_.scratch[n]);
      log_weights[n] = even;
    }
    if (leads(crew_)) ++run_.at.resamplings[b_];
    crew_.meets();
  }

  // The step size with its jitter, of the transition that comes.
  COGEN_HD double jittered() const {
    const double turn = 2.0 * uniform_of(kJitterPurpose) - 1.0;
    return exp(run_.at.log_step[b_]) * (1.0 + run_.plan.rule.jitter * turn);
  }

  COGEN_HD const T* mass_of(int64_t at) const {
    const bool some = run_.plan.mass == MassKind::diagonal || turned();
    return some ? out_.inverse_mass + at * d_ : nullptr;
  }

  // Gradient of log(ChEES / length) by log length (Hoffman, Radul and Sountsov 2021, section 3).
  COGEN_HD double length_slope(int64_t at, int64_t leapfrog_steps) const {
    const T* const mass = mass_of(at);
    const double* const probability = room_.scratch;
    const double length = jittered() * static_cast<double>(leapfrog_steps);
    double* const means = room_.eigen;
    double* const proposed_means = means + d_;
    set_means(means, proposed_means);
    double gain = 0.0, criterion = 0.0;
    for (int64_t n = crew_.thread; n < chains_; n += crew_.threads) {
      if (!(probability[n] > 0.0)) continue;
      const T* const z = entries_(n, kStart);
      const T* const q = entries_(n, kPosition);
      const T* const v = entries_(n, kMomenta);
      // |z' - m'|^2 - |z - m|^2 and <z' - m', velocity>.
      double change = 0.0, along = 0.0;
      for (int64_t i = 0; i < d_; ++i) {
        const double from = static_cast<double>(z[i * kApart]) - means[i];
        const double to = static_cast<double>(q[i * kApart]) - proposed_means[i];
        change += to * to - from * from;
        along += to * static_cast<double>(v[i * kApart]) *
                 (mass ? static_cast<double>(mass[i]) : 1.0);
      }
      gain += probability[n] * change * along;
      criterion += probability[n] * change * change;
    }
    gain = crew_.sum(gain);
    criterion = crew_.sum(criterion);
    if (!(criterion > 0.0)) return 0.0;
    const double slope = 4.0 * length * gain / greater(criterion, kTiny) - 1.0;
    return lesser(greater(slope, -kSteepest), kSteepest);
  }

  // Of the particles before a move, and of where it would take them.
  COGEN_HD void set_means(double* means, double* proposed_means) const {
    for (int64_t i = crew_.thread; i < d_; i += crew_.threads) means[i] = proposed_means[i] = 0.0;
    for (int64_t n = 0; n < chains_; ++n) {
      const T* const z = entries_(n, kStart);
      const T* const q = room_.scratch[n] > 0.0 ? entries_(n, kPosition) : z;
      for (int64_t i = crew_.thread; i < d_; i += crew_.threads) {
        means[i] += static_cast<double>(z[i * kApart]);
        proposed_means[i] += static_cast<double>(q[i * kApart]);
      }
    }
    for (int64_t i = crew_.thread; i < d_; i += crew_.threads) {
      means[i] /= static_cast<double>(chains_);
      proposed_means[i] /= static_cast<double>(chains_);
    }
    crew_.meets();
  }

  // The running mean of beta grad grad', in the turned coordinates.
  COGEN_HD void see_curvature(int64_t at) const {
    double* const curvature = run_.curvature + b_ * d_ * d_;
    double trace = 0.0;
    for (int64_t i = 0; i < d_; ++i) trace += curvature[i * d_ + i];
    crew_.meets();  // all have read
    const double weight = trace > 0.0 ? kCurvatureGain : 1.0;
    const double scale = weight * out_.beta[at] / static_cast<double>(chains_);
    for (int64_t i = crew_.thread; i < d_; i += crew_.threads) {
      for (int64_t j = 0; j < d_; ++j) curvature[i * d_ + j] *= 1.0 - weight;
    }
    for (int64_t n = 0; n < chains_; ++n) {
      const T* const g = entries_(n, kGrad);
      for (int64_t i = crew_.thread; i < d_; i += crew_.threads) {
        const double gi = scale * static_cast<double>(g[i * kApart]);
        for (int64_t j = 0; j < d_; ++j) {
          curvature[i * d_ + j] += gi * static_cast<double>(g[j * kApart]);
        }
      }
    }
  }

  COGEN_HD void record(int64_t at, double mean, double deviation, bool spent) const {
    const Standing& s = run_.at;
    const bool active = out_.active[at];
    const int64_t moves = out_.moves[at];
    out_.energy_mean[at] = active ? mean : NAN;
    out_.energy_std[at] = active ? deviation : NAN;
    out_.acceptance[at] =
        active && moves > 0 ? *room_.acceptance / static_cast<double>(moves) : NAN;
    s.sharpness[b_] = sharpness_after(s.sharpness[b_], *room_.came_from, out_.beta[at],
                                      out_.kept[at], active, run_.plan);
    s.beta[b_] = out_.beta[at];
    s.rounds[b_] += active && out_.beta[at] >= 1.0;
    const bool over = moves == 0 || spent;
    const bool ended =
        s.rounds[b_] >= run_.plan.final_rounds || (s.rounds[b_] >= 1 && over);
    s.jumped[b_] |= active && out_.kept[at] < least_kept(run_.plan) && s.rounds[b_] <= 1;
    s.finished[b_] |= active && ended;
  }

  const AdaptiveRun<T>& run_;
  const Temperatures<T>& out_;
  const int64_t b_, chains_, d_, k_;
  const RowRoom<T> room_;
  const Entries entries_;
  const Crew crew_;
};

}  // namespace COGEN_ISA
}  // namespace cogen
