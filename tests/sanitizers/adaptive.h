// The adaptive run for generators of dense layers, for those who check it: cases, what a run reads
// and writes, and where it begins.
#pragma once

#include "dense.h"

namespace cogen {
namespace driver {

struct AdaptiveCase {
  DenseCase dense;
  AnnealingPlan plan;
  int64_t steps, spent;
  double log_step;
  int finished;  // bit b: row b is finished from the start
  bool begun, trace;

  int64_t directions() const {
    return plan.mass == MassKind::low_rank ? std::min(32, dense.size() / 3) : 0;
  }
  bool turned() const { return directions() > 0; }
};

inline std::string describe(const AdaptiveCase& c) {
  const AnnealingPlan& p = c.plan;
  std::string text = describe(c.dense) + " kept=" + std::to_string(p.kept) +
                     " resample_below=" + std::to_string(p.resample_below) +
                     " L=" + std::to_string(p.leapfrog_steps) +
                     " M=" + std::to_string(p.hmc_steps) + " budget=" + std::to_string(p.budget) +
                     " rounds=" + std::to_string(p.final_rounds) +
                     " mass=" + std::to_string(static_cast<int>(p.mass)) +
                     " finished=" + std::to_string(c.finished);
  if (c.begun) text += " begun";
  if (c.trace) text += " trace";
  return text;
}

template <class T>
struct AdaptiveState {
  Chains<T> chains;
  Array<int64_t> roots, resamplings, rounds, transition;
  Array<double> curvature, beta, log_step, log_length, memory, sharpness, variance;
  Array<bool> finished, jumped;

  explicit AdaptiveState(const DenseCase& c)
      : chains(c),
        roots(c.rows() * c.chains, c.ragged),
        resamplings(c.rows(), c.ragged),
        rounds(c.rows(), c.ragged),
        transition(c.rows(), c.ragged),
        curvature(c.rows() * c.size() * c.size(), c.ragged),
        beta(c.rows(), c.ragged),
        log_step(c.rows(), c.ragged),
        log_length(c.rows(), c.ragged),
        memory(c.rows(), c.ragged),
        sharpness(c.rows(), c.ragged),
        variance(c.rows(), c.ragged),
        finished(c.rows(), c.ragged),
        jumped(c.rows(), c.ragged) {}

  // What repeated choices must bring about too.
  template <class A, class B, class F>
  static void with_each_repeated(A& a, B& b, const F& f) {
    Chains<T>::with_each(a.chains, b.chains, f);
    f("roots", a.roots, b.roots);
    f("resamplings", a.resamplings, b.resamplings);
    f("rounds", a.rounds, b.rounds);
    f("transition", a.transition, b.transition);
    f("beta", a.beta, b.beta);
    f("sharpness", a.sharpness, b.sharpness);
    f("variance", a.variance, b.variance);
    f("finished", a.finished, b.finished);
    f("jumped", a.jumped, b.jumped);
  }
  template <class A, class B, class F>
  static void with_each(A& a, B& b, const F& f) {
    with_each_repeated(a, b, f);
    f("curvature", a.curvature, b.curvature);
    f("log_step", a.log_step, b.log_step);
    f("log_length", a.log_length, b.log_length);
    f("memory", a.memory, b.memory);
  }
};

template <class T>
struct AdaptiveHistory {
  int64_t steps;
  Array<bool> active, resampled;
  Array<double> kept, beta, step_size, stiff, effective_size, acceptance, energy_mean, energy_std;
  Array<T> inverse_mass, trace;
  Array<int64_t> moves, leapfrog_steps, hmc_steps, ancestors;

  AdaptiveHistory(const AdaptiveCase& c, int64_t count) : AdaptiveHistory(c, c.dense, count) {}

  Temperatures<T> pointers() {
    return {active.data(),         resampled.data(),   kept.data(),
            beta.data(),           step_size.data(),   inverse_mass.data(),
            stiff.data(),          moves.data(),       leapfrog_steps.data(),
            hmc_steps.data(),      effective_size.data(), acceptance.data(),
            energy_mean.data(),    energy_std.data(),  ancestors.data()};
  }

  template <class A, class B, class F>
  static void with_each_choice(A& a, B& b, const F& f) {
    f("active", a.active, b.active);
    f("resampled", a.resampled, b.resampled);
    f("kept", a.kept, b.kept);
    f("out beta", a.beta, b.beta);
    f("step_size", a.step_size, b.step_size);
    f("stiff", a.stiff, b.stiff);
    f("inverse_mass", a.inverse_mass, b.inverse_mass);
    f("moves", a.moves, b.moves);
    f("leapfrog_steps", a.leapfrog_steps, b.leapfrog_steps);
    f("hmc_steps", a.hmc_steps, b.hmc_steps);
  }
  template <class A, class B, class F>
  static void with_each(A& a, B& b, const F& f) {
    with_each_choice(a, b, f);
    f("effective_size", a.effective_size, b.effective_size);
    f("acceptance", a.acceptance, b.acceptance);
    f("energy_mean", a.energy_mean, b.energy_mean);
    f("energy_std", a.energy_std, b.energy_std);
    f("ancestors", a.ancestors, b.ancestors);
    f("trace", a.trace, b.trace);
  }

 private:
  AdaptiveHistory(const AdaptiveCase& c, const DenseCase& d, int64_t count)
      : steps(count),
        active(count * d.rows(), d.ragged),
        resampled(count * d.rows(), d.ragged),
        kept(count * d.rows(), d.ragged),
        beta(count * d.rows(), d.ragged),
        step_size(count * d.rows(), d.ragged),
        stiff(count * d.rows() * d.size() * c.directions(), d.ragged),
        effective_size(count * d.rows(), d.ragged),
        acceptance(count * d.rows(), d.ragged),
        energy_mean(count * d.rows(), d.ragged),
        energy_std(count * d.rows(), d.ragged),
        inverse_mass(count * d.rows() * d.size(), d.ragged),
        trace(count * d.rows() * d.chains * d.size(), d.ragged),
        moves(count * d.rows(), d.ragged),
        leapfrog_steps(count, d.ragged),
        hmc_steps(count, d.ragged),
        ancestors(count * d.rows() * d.chains, d.ragged) {}
};

// A problem, and where its run begins.
template <class T>
struct AdaptiveStart {
  explicit AdaptiveStart(const AdaptiveCase& adaptive_case)
      : c(adaptive_case),
        problem(c.dense),
        state(c.dense),
        observation(c.dense.rows(), c.dense.ragged),
        filler(c.dense.size() * c.directions(), c.dense.ragged) {
    Random random(c.dense.seed + 2);
    state.chains.start(problem, random);
    fill_uniform(filler, random, -2.0, 2.0);
    for (int64_t b = 0; b < c.dense.rows(); ++b) start_row(b, random);
  }

  // From `s` on, into `h`.
  AdaptiveRun<T> run_of(AdaptiveState<T>& s, AdaptiveHistory<T>& h, int64_t spent,
                        bool repeats) const;

  const AdaptiveCase& c;
  Problem<T> problem;
  AdaptiveState<T> state;
  Array<int64_t> observation;
  Array<double> filler;

 private:
  void start_row(int64_t b, Random& random);
};

template <class T>
void AdaptiveStart<T>::start_row(int64_t b, Random& random) {
  const int64_t chains = c.dense.chains, size = c.dense.size();
  const bool finished = (c.finished >> b & 1) != 0, begun = c.begun || finished;
  AdaptiveState<T>& s = state;
  const int64_t counters[] = {0, 7, kWordLimit - 1000};
  observation[b] = b == 1 ? kWordLimit : 5 * b;
  s.transition[b] = counters[(b + chains) % 3];
  s.beta[b] = finished ? 1.0 : begun ? 0.02 : 0.0;
  s.log_step[b] = c.log_step;
  s.log_length[b] = std::log(1.2);
  s.memory[b] = begun ? random.uniform(0.0, 1.0) : 0.0;
  s.sharpness[b] = begun ? random.uniform(0.1, 2.0) : 0.0;
  s.variance[b] = begun ? 0.1 : 0.0;
  s.resamplings[b] = begun ? 2 : 0;
  s.rounds[b] = finished ? c.plan.final_rounds : 0;
  s.finished[b] = finished;
  s.jumped[b] = begun && b % 2 == 0;
  for (int64_t n = 0; n < chains; ++n) {
    s.roots[b * chains + n] =
        begun ? static_cast<int64_t>(random.below(static_cast<uint64_t>(chains))) : n;
    if (!begun) s.chains.log_weights[b * chains + n] = 0.0;
  }
  std::sort(&s.roots[b * chains], &s.roots[b * chains] + chains);
  double* curvature = s.curvature.data() + b * size * size;
  std::fill_n(curvature, size * size, 0.0);
  // Of a rank that leaves directions unknown, or all of them.
  for (int64_t rank = 0; begun && rank < (b == 0 ? 1 : size); ++rank) {
    std::vector<double> g(static_cast<size_t>(size));
    for (double& each : g) each = random.uniform(-1.0, 1.0);
    for (int64_t i = 0; i < size * size; ++i) {
      curvature[i] += g[static_cast<size_t>(i / size)] * g[static_cast<size_t>(i % size)];
    }
  }
}

template <class T>
AdaptiveRun<T> AdaptiveStart<T>::run_of(AdaptiveState<T>& s, AdaptiveHistory<T>& h, int64_t spent,
                                   bool repeats) const {
  return {c.dense.shape(),
          problem.mlp(),
          problem.observed(),
          c.dense.each,
          c.dense.seed,
          observation.data(),
          s.chains.latents.data(),
          s.chains.energy.data(),
          s.chains.grad.data(),
          s.chains.log_weights.data(),
          s.roots.data(),
          s.chains.non_finite.data(),
          s.curvature.data(),
          filler.data(),
          {c.dense.rows(), s.beta.data(), s.log_step.data(), s.log_length.data(), s.memory.data(),
           s.sharpness.data(), s.variance.data(), s.resamplings.data(), s.rounds.data(),
           s.transition.data(), s.finished.data(), s.jumped.data()},
          c.plan,
          repeats,
          spent,
          h.steps,
          h.pointers(),
          c.trace ? h.trace.data() : nullptr};
}

class AdaptiveDealer {
 public:
  AdaptiveCase deal() {
    Random& random = dealer_.random();
    AdaptiveCase c{};
    c.dense = dealer_.deal();
    c.dense.extreme = extreme_.deal(random) != 0;
    AnnealingPlan& plan = c.plan;
    plan.kept = kept_.deal(random);
    plan.resample_below = resample_below_.deal(random);
    plan.leapfrog_steps = lengths_.deal(random);
    plan.hmc_steps = moves_.deal(random);
    plan.budget = budgets_.deal(random);
    plan.final_rounds = rounds_.deal(random);
    plan.mass = masses_.deal(random);
    plan.rule = {0.75, gains_.deal(random), 0.05, 0.2, jitters_.deal(random), 0.5, 3};
    c.steps = steps_.deal(random);
    c.spent = 1;
    c.log_step = log_steps_.deal(random);
    c.finished = finished_.deal(random);
    c.begun = begun_.deal(random) != 0;
    c.trace = trace_.deal(random) != 0;
    return c;
  }

 private:
  Dealer dealer_{2, {1, 2, 3}, {1, 1, 2}};
  Deck<double> kept_{{0.05, 0.5, 0.9}}, resample_below_{{0.3, 0.5, 0.99}}, gains_{{0.0, 0.5}};
  Deck<double> jitters_{{0.0, 0.1, 0.1}}, log_steps_{{-3.0, -3.0, -1.5, -0.5}};
  Deck<int64_t> lengths_{{0, 0, 1, 3}}, moves_{{0, 1, 1, 2}}, rounds_{{1, 2, 3}}, steps_{{4, 6}};
  Deck<int64_t> budgets_{{0, 0, 0, 0, 1, 2, 3, 5, 8, 13, 21, 40}};
  Deck<MassKind> masses_{{MassKind::identity, MassKind::diagonal, MassKind::low_rank,
                          MassKind::low_rank}};
  Deck<int> finished_{{0, 0, 0, 1, 2, 4, 6, 63}}, begun_{{0, 0, 1}}, trace_{{0, 1}};
  Deck<int> extreme_{{0, 0, 0, 0, 0, 0, 0, 1}};
};

}  // namespace driver
}  // namespace cogen
