// The adaptive run for generators of dense layers. It is made in one call, with several numbers of
// threads, and again with one temperature a call, of which everything is checked that must hold
// whatever the run chooses. Both ways must end with the same bits, and so must the run that repeats
// its choices.
#include <memory>

#include "dense.h"

namespace cogen {
namespace driver {
namespace {

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

std::string describe(const AdaptiveCase& c) {
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
    f("latents", a.chains.latents, b.chains.latents);
    f("grad", a.chains.grad, b.chains.grad);
    f("energy", a.chains.energy, b.chains.energy);
    f("log_weights", a.chains.log_weights, b.chains.log_weights);
    f("non_finite", a.chains.non_finite, b.chains.non_finite);
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

// The first `count` temperatures of `from`, from temperature `place` of `to` on.
template <class T>
void copy_part(AdaptiveHistory<T>& to, int64_t place, const AdaptiveHistory<T>& from,
               int64_t count) {
  AdaptiveHistory<T>::with_each(to, from, [&](const char*, auto& a, const auto& b) {
    const int64_t each = b.size() / from.steps;
    std::copy_n(b.data(), count * each, a.data() + place * each);
  });
}

double log_sum(const std::vector<double>& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0.0;
  for (const double each : x) sum += std::exp(each - top);
  return top + std::log(sum);
}

template <class T>
class Adaptive {
 public:
  Adaptive(const AdaptiveOps<T>& ops, const AdaptiveCase& c)
      : ops_(ops),
        c_(c),
        problem_(c.dense),
        start_(c.dense),
        observation_(c.dense.rows(), c.dense.ragged),
        filler_(c.dense.size() * c.directions(), c.dense.ragged) {
    Random random(c.dense.seed + 2);
    start_.chains.start(problem_, random);
    fill_uniform(filler_, random, -2.0, 2.0);
    for (int64_t b = 0; b < c.dense.rows(); ++b) start_row(b, random);
  }

  Outputs whole(int threads) const { return all_of(*made(threads)); }
  Outputs in_parts() const;
  // The whole run's choices once more.
  void check_repeats(int threads) const;

 private:
  struct Made {
    AdaptiveState<T> state;
    AdaptiveHistory<T> history;
    Progress progress;
  };

  void start_row(int64_t b, Random& random);
  AdaptiveRun<T> run_of(AdaptiveState<T>& state, AdaptiveHistory<T>& history, int64_t spent,
                        bool repeats) const;
  std::unique_ptr<Made> made(int threads) const;
  static Outputs all_of(const Made& made);

  bool over(const AdaptiveState<T>& state) const {
    return std::all_of(state.finished.begin(), state.finished.end(), [](bool is) { return is; });
  }

  void check_temperature(const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                         const AdaptiveHistory<T>& now) const;
  void check_finished(int64_t b, const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                      const AdaptiveHistory<T>& now) const;
  void check_weights(int64_t b, const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                     const AdaptiveHistory<T>& now) const;
  void check_ancestors(int64_t b, const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                       const AdaptiveHistory<T>& now, const std::vector<double>& weighed) const;
  void check_chains(int64_t b, const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                    const AdaptiveHistory<T>& now) const;
  void check_move(int64_t b, const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                  const AdaptiveHistory<T>& now) const;
  void check_mass(int64_t b, const AdaptiveState<T>& before, const AdaptiveHistory<T>& now) const;
  void check_curvature(int64_t b, const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                       const AdaptiveHistory<T>& now) const;
  void check_standing(int64_t b, const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                      const AdaptiveHistory<T>& now) const;

  const AdaptiveOps<T>& ops_;
  const AdaptiveCase& c_;
  Problem<T> problem_;
  AdaptiveState<T> start_;
  Array<int64_t> observation_;
  Array<double> filler_;
};

template <class T>
void Adaptive<T>::start_row(int64_t b, Random& random) {
  const int64_t chains = c_.dense.chains, size = c_.dense.size();
  const bool finished = (c_.finished >> b & 1) != 0, begun = c_.begun || finished;
  AdaptiveState<T>& s = start_;
  const int64_t counters[] = {0, 7, kWordLimit - 1000};
  observation_[b] = b == 1 ? kWordLimit : 5 * b;
  s.transition[b] = counters[(b + chains) % 3];
  s.beta[b] = finished ? 1.0 : begun ? 0.02 : 0.0;
  s.log_step[b] = c_.log_step;
  s.log_length[b] = std::log(1.2);
  s.memory[b] = begun ? random.uniform(0.0, 1.0) : 0.0;
  s.sharpness[b] = begun ? random.uniform(0.1, 2.0) : 0.0;
  s.variance[b] = begun ? 0.1 : 0.0;
  s.resamplings[b] = begun ? 2 : 0;
  s.rounds[b] = finished ? c_.plan.final_rounds : 0;
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
AdaptiveRun<T> Adaptive<T>::run_of(AdaptiveState<T>& s, AdaptiveHistory<T>& h, int64_t spent,
                                   bool repeats) const {
  return {c_.dense.shape(),
          problem_.mlp(),
          problem_.observed(),
          c_.dense.each,
          c_.dense.seed,
          observation_.data(),
          s.chains.latents.data(),
          s.chains.energy.data(),
          s.chains.grad.data(),
          s.chains.log_weights.data(),
          s.roots.data(),
          s.chains.non_finite.data(),
          s.curvature.data(),
          filler_.data(),
          {c_.dense.rows(), s.beta.data(), s.log_step.data(), s.log_length.data(), s.memory.data(),
           s.sharpness.data(), s.variance.data(), s.resamplings.data(), s.rounds.data(),
           s.transition.data(), s.finished.data(), s.jumped.data()},
          c_.plan,
          repeats,
          spent,
          h.steps,
          h.pointers(),
          c_.trace ? h.trace.data() : nullptr};
}

template <class T>
std::unique_ptr<typename Adaptive<T>::Made> Adaptive<T>::made(int threads) const {
  auto made = std::make_unique<Made>(
      Made{AdaptiveState<T>(c_.dense), AdaptiveHistory<T>(c_, c_.steps), {}});
  copy(made->state, start_);
  made->progress = call(ops_, run_of(made->state, made->history, c_.spent, false), threads);
  expect(made->progress.steps <= c_.steps, "more temperatures than asked for");
  expect(made->progress.steps == c_.steps || over(made->state), "ended too early");
  return made;
}

template <class T>
Outputs Adaptive<T>::all_of(const Made& made) {
  Outputs all = outputs_of(made.state);
  AdaptiveHistory<T>::with_each(
      made.history, made.history, [&](const char* name, const auto& a, const auto&) {
        // What is after the last temperature was not written.
        const auto end = a.data() + made.progress.steps * (a.size() / made.history.steps);
        all.push_back({name, {a.data(), end}, 0.0});
      });
  all.push_back({"progress",
                 {static_cast<double>(made.progress.steps),
                  static_cast<double>(made.progress.spent)},
                 0.0});
  return all;
}

// One temperature a call.
template <class T>
Outputs Adaptive<T>::in_parts() const {
  Made all{AdaptiveState<T>(c_.dense), AdaptiveHistory<T>(c_, c_.steps), {0, c_.spent}};
  copy(all.state, start_);
  while (all.progress.steps < c_.steps) {
    AdaptiveState<T> before(c_.dense);
    AdaptiveHistory<T> now(c_, 1);
    copy(before, all.state);
    const Progress progress =
        call(ops_, run_of(all.state, now, all.progress.spent, false), 1);
    if (progress.steps == 0) {
      expect(over(before), "ended too early");
      expect(progress.spent == all.progress.spent, "spent on nothing");
      break;
    }
    expect(progress.spent - all.progress.spent == now.leapfrog_steps[0] * now.hmc_steps[0],
           "spent");
    check_temperature(before, all.state, now);
    copy_part(all.history, all.progress.steps, now, 1);
    all.progress = {all.progress.steps + 1, progress.spent};
  }
  return all_of(all);
}

template <class T>
void Adaptive<T>::check_repeats(int threads) const {
  const std::unique_ptr<Made> first = made(1);
  const int64_t steps = first->progress.steps;
  if (steps == 0) return;
  AdaptiveState<T> state(c_.dense);
  AdaptiveHistory<T> history(c_, steps), choices(c_, steps);
  copy(state, start_);
  copy_part(choices, 0, first->history, steps);
  AdaptiveHistory<T>::with_each_choice(
      history, choices, [](const char*, auto& a, const auto& b) { a.copy_from(b); });
  const Progress progress = call(ops_, run_of(state, history, c_.spent, true), threads);
  expect(progress.steps == steps && progress.spent == first->progress.spent, "progress");
  // Nothing is learnt.
  expect_close({output("curvature", state.curvature), output("memory", state.memory),
                output("log_length", state.log_length)},
               {output("curvature", start_.curvature), output("memory", start_.memory),
                output("log_length", start_.log_length)},
               0.0);
  // A step size that is tuned between the moves of a temperature is told of the last one only, and
  // one above exp(-2) may lose its last bit on the way through a logarithm.
  const int64_t* hmc_steps = choices.hmc_steps.data();
  const double* step_sizes = choices.step_size.data();
  const bool tuned =
      c_.plan.rule.step_gain > 0.0 && *std::max_element(hmc_steps, hmc_steps + steps) > 1;
  if (tuned || *std::max_element(step_sizes, step_sizes + choices.step_size.size()) > 0.13) return;
  AdaptiveState<T>::with_each_repeated(
      state, first->state, [](const char* name, const auto& a, const auto& b) {
        expect_close(output(name, a), output(name, b).values, 0.0);
      });
  AdaptiveHistory<T>::with_each(history, choices,
                                [](const char* name, const auto& a, const auto& b) {
                                  expect_close(output(name, a), output(name, b).values, 0.0);
                                });
}

template <class T>
void Adaptive<T>::check_temperature(const AdaptiveState<T>& before, const AdaptiveState<T>& after,
                                    const AdaptiveHistory<T>& now) const {
  const int64_t* moves = now.moves.data();
  expect(now.hmc_steps[0] == *std::max_element(moves, moves + now.moves.size()), "hmc_steps");
  for (int64_t b = 0; b < c_.dense.rows(); ++b) {
    expect(now.active[b] == !before.finished[b], "active");
    if (before.finished[b]) {
      check_finished(b, before, after, now);
      continue;
    }
    check_weights(b, before, after, now);
    check_chains(b, before, after, now);
    check_move(b, before, after, now);
    check_mass(b, before, now);
    check_curvature(b, before, after, now);
    check_standing(b, before, after, now);
  }
  if (c_.trace) {
    expect(memcmp(now.trace.data(), after.chains.latents.data(),
                  static_cast<size_t>(now.trace.size()) * sizeof(T)) == 0,
           "trace");
  }
}

template <class T>
void Adaptive<T>::check_finished(int64_t b, const AdaptiveState<T>& before,
                                 const AdaptiveState<T>& after,
                                 const AdaptiveHistory<T>& now) const {
  AdaptiveState<T>::with_each(before, after, [&](const char* name, const auto& a, const auto& z) {
    const int64_t each = a.size() / c_.dense.rows();
    // By definition their weights change by 0 times their energies, which may not be finite.
    if (c_.dense.extreme && name == std::string("log_weights")) return;
    if (memcmp(a.data() + b * each, z.data() + b * each,
               static_cast<size_t>(each) * sizeof(*a.data())) != 0) {
      fail(std::string(name) + " of what was finished");
    }
  });
  expect(!now.resampled[b] && now.moves[b] == 0 && now.beta[b] == before.beta[b],
         "choices for what was finished");
  expect(std::isnan(now.acceptance[b]) && std::isnan(now.energy_mean[b]) &&
             std::isnan(now.energy_std[b]),
         "told of what was finished");
  for (int64_t n = 0; n < c_.dense.chains; ++n) {
    expect(now.ancestors[b * c_.dense.chains + n] == n, "ancestors of what was finished");
  }
}

template <class T>
void Adaptive<T>::check_weights(int64_t b, const AdaptiveState<T>& before,
                                const AdaptiveState<T>& after,
                                const AdaptiveHistory<T>& now) const {
  const int64_t chains = c_.dense.chains, first = b * chains;
  const double increment = now.beta[b] - before.beta[b];
  std::vector<double> weighed;
  for (int64_t n = first; n < first + chains; ++n) {
    weighed.push_back(before.chains.log_weights[n] - increment * before.chains.energy[n]);
  }
  const double total = log_sum(weighed);
  double squares = 0.0;
  for (const double each : weighed) squares += std::exp(2.0 * (each - total));
  expect_close({"effective_size", {now.effective_size[b]}}, {1.0 / squares}, 1e-9);
  const double even = total - std::log(static_cast<double>(chains));
  for (int64_t n = 0; n < chains; ++n) {
    const double expected = now.resampled[b] ? even : weighed[static_cast<size_t>(n)];
    expect_close({"log_weights", {after.chains.log_weights[first + n]}}, {expected}, 1e-12);
    if (now.resampled[b]) {
      expect(memcmp(&after.chains.log_weights[first + n], &after.chains.log_weights[first],
                    sizeof(double)) == 0,
             "log weights differ after resampling");
    }
  }
  check_ancestors(b, before, after, now, weighed);
}

template <class T>
void Adaptive<T>::check_ancestors(int64_t b, const AdaptiveState<T>& before,
                                  const AdaptiveState<T>& after, const AdaptiveHistory<T>& now,
                                  const std::vector<double>& weighed) const {
  const int64_t chains = c_.dense.chains, first = b * chains;
  std::vector<double> counts(weighed.size(), 0.0);
  for (int64_t n = 0; n < chains; ++n) {
    const int64_t ancestor = now.ancestors[first + n];
    if (ancestor < 0 || ancestor >= chains) return fail("ancestor out of range");
    expect(n == 0 || ancestor >= now.ancestors[first + n - 1], "ancestors are not sorted");
    expect(now.resampled[b] || ancestor == n, "ancestor of what was not resampled");
    expect(after.roots[first + n] == before.roots[first + ancestor], "roots");
    counts[static_cast<size_t>(ancestor)] += 1.0;
  }
  if (!now.resampled[b]) return;
  // Systematic resampling by this uniform: how many of the points lie below each sum of weights.
  const Words words = philox(c_.dense.seed, kResample << 24,
                             static_cast<uint32_t>(before.transition[b]), 0,
                             static_cast<uint32_t>(observation_[b]));
  const double uniform = to_uniform<double>(words.w[0]), total = log_sum(weighed);
  double upto = 0.0, below = 0.0;
  for (size_t n = 0; n + 1 < weighed.size(); ++n) {
    upto += std::exp(weighed[n] - total) * static_cast<double>(chains);
    below += counts[n];
    if (std::isnan(upto)) return;
    // Point k is k + uniform; rounding may take it to either side.
    expect(below >= std::ceil(upto - uniform - 1e-9) && below <= std::ceil(upto - uniform + 1e-9),
           "number of descendants");
  }
}

template <class T>
void Adaptive<T>::check_chains(int64_t b, const AdaptiveState<T>& before,
                               const AdaptiveState<T>& after,
                               const AdaptiveHistory<T>& now) const {
  const int64_t chains = c_.dense.chains;
  std::vector<double> energies, grads;
  Output energy{"energy", {}, 0.0}, grad{"grad", {}, 0.0};
  for (int64_t n = 0; n < chains; ++n) {
    const Chain chain = after.chains.chain(b * chains + n);
    const Chain start = before.chains.chain(b * chains + now.ancestors[b * chains + n]);
    // Whoever stayed keeps every bit, in turned coordinates too. Energies tell who it was, unless
    // they are flat.
    const bool alike = chain.energy == start.energy && largest_finite(start.grad) > 1e-2;
    const bool stays = now.moves[b] == 0 || alike;
    expect(!stays || same_bits(chain, start), "a chain that stayed has changed");
    const Evaluation found = problem_.evaluate(b / c_.dense.each, chain.latents);
    if (found.doubtful) continue;
    energy.values.push_back(chain.energy);
    energies.push_back(found.energy);
    grad.values.insert(grad.values.end(), chain.grad.begin(), chain.grad.end());
    grads.insert(grads.end(), found.grad.begin(), found.grad.end());
  }
  expect_close(energy, energies, kTolerance<T>);
  expect_close(grad, grads, kTolerance<T>);
  const double* all = after.chains.energy.data() + b * chains;
  expect_close({"energy_mean", {now.energy_mean[b]}}, {mean(all, chains)},
               rounding_bound<double>());
  expect_close({"energy_std", {now.energy_std[b]}}, {deviation(all, chains)},
               rounding_bound<double>());
}

// The transition of a temperature that has one, and is not made in turned coordinates.
template <class T>
void Adaptive<T>::check_move(int64_t b, const AdaptiveState<T>& before,
                             const AdaptiveState<T>& after, const AdaptiveHistory<T>& now) const {
  const int64_t chains = c_.dense.chains, size = c_.dense.size();
  if (now.moves[b] == 0) {
    expect(std::isnan(now.acceptance[b]), "acceptance without moves");
    return;
  }
  expect(now.acceptance[b] >= 0.0 && now.acceptance[b] <= 1.0, "acceptance");
  if (now.moves[b] != 1 || c_.turned()) return;
  MoveOf move{now.beta[b], 1.0, now.step_size[b], now.leapfrog_steps[0],
              std::vector<double>(static_cast<size_t>(size), 1.0), c_.dense.seed,
              static_cast<uint32_t>(before.transition[b]),
              static_cast<uint32_t>(observation_[b])};
  if (c_.plan.mass == MassKind::diagonal) {
    const T* mass = now.inverse_mass.data() + b * size;
    move.inverse_mass.assign(mass, mass + size);
  }
  const double turn = 2.0 * to_uniform<double>(move.words(kJitter, 0, 0).w[0]) - 1.0;
  move.step_size *= 1.0 + c_.plan.rule.jitter * turn;
  check_transition(
      problem_, b,
      [&](int64_t n) {
        return before.chains.chain(b * chains + now.ancestors[b * chains + n]);
      },
      values(before.chains.non_finite), after.chains, move, now.acceptance[b]);
}

template <class T>
void Adaptive<T>::check_mass(int64_t b, const AdaptiveState<T>& before,
                             const AdaptiveHistory<T>& now) const {
  const int64_t size = c_.dense.size(), directions = c_.directions();
  const T* mass = now.inverse_mass.data() + b * size;
  if (c_.dense.extreme) return;
  if (c_.plan.mass == MassKind::diagonal) {
    double logs = 0.0;
    for (int64_t i = 0; i < size; ++i) logs += std::log(static_cast<double>(mass[i]));
    expect(std::fabs(logs) <= 1e-6 * static_cast<double>(size), "geometric mean of the masses");
  }
  const double* curvature = before.curvature.data() + b * size * size;
  const double* stiff = now.stiff.data() + b * size * directions;
  for (int64_t j = 0; j < directions; ++j) {
    expect(mass[j] > 0.0 && mass[j] <= T(1) && (j == 0 || mass[j] >= mass[j - 1]), "masses");
    // A direction is a filler or an eigenvector.
    std::vector<double> image;
    double value = 0.0, length = 0.0, apart = 0.0, trace = 0.0;
    bool filler = true;
    for (int64_t i = 0; i < size; ++i) {
      const double entry = stiff[i * directions + j];
      double sum = 0.0;
      for (int64_t r = 0; r < size; ++r) sum += curvature[i * size + r] * stiff[r * directions + j];
      image.push_back(sum);
      value += entry * sum;
      length += entry * entry;
      trace += curvature[i * size + i];
      filler &= entry == filler_[i * directions + j];
    }
    for (int64_t i = 0; i < size; ++i) {
      apart = std::fmax(apart, std::fabs(image[static_cast<size_t>(i)] -
                                         value * stiff[i * directions + j]));
    }
    expect(filler || (std::fabs(length - 1.0) <= 1e-9 && apart <= 1e-9 * trace), "stiff");
  }
}

// What a temperature of one move teaches of the curvature.
template <class T>
void Adaptive<T>::check_curvature(int64_t b, const AdaptiveState<T>& before,
                                  const AdaptiveState<T>& after,
                                  const AdaptiveHistory<T>& now) const {
  const int64_t size = c_.dense.size(), chains = c_.dense.chains, first = b * size * size;
  if (c_.turned() && now.moves[b] > 1) return;
  const bool learns = c_.turned() && now.moves[b] == 1;
  double trace = 0.0;
  for (int64_t i = 0; i < size; ++i) trace += before.curvature[first + i * (size + 1)];
  const double gain = !learns ? 0.0 : trace > 0.0 ? 0.1 : 1.0;
  std::vector<double> expected;
  for (int64_t i = 0; i < size * size; ++i) {
    double seen = 0.0;
    for (int64_t n = b * chains; learns && n < (b + 1) * chains; ++n) {
      const T* grad = after.chains.grad.data() + n * size;
      seen += static_cast<double>(grad[i / size]) * static_cast<double>(grad[i % size]);
    }
    seen *= now.beta[b] / static_cast<double>(chains);
    expected.push_back((1.0 - gain) * before.curvature[first + i] + gain * seen);
  }
  const double* found = after.curvature.data() + first;
  // Coordinates that are turned and turned back round a little.
  expect_close({"curvature", {found, found + size * size}}, expected,
               c_.turned() ? kTolerance<T> : 0.0);
}

template <class T>
void Adaptive<T>::check_standing(int64_t b, const AdaptiveState<T>& before,
                                 const AdaptiveState<T>& after,
                                 const AdaptiveHistory<T>& now) const {
  expect(now.beta[b] >= before.beta[b] && now.beta[b] <= 1.0, "beta");
  expect(after.beta[b] == now.beta[b], "beta of the state");
  expect(!after.finished[b] || after.beta[b] == 1.0, "finished before the end");
  expect(after.rounds[b] == before.rounds[b] + (after.beta[b] == 1.0), "rounds");
  expect(after.rounds[b] < c_.plan.final_rounds || after.finished[b], "not finished at the end");
  expect(after.jumped[b] >= before.jumped[b], "jumped");
  expect(after.resamplings[b] == before.resamplings[b] + now.resampled[b], "resamplings");
  expect(after.transition[b] == before.transition[b] + now.moves[b], "transition");
  for (int64_t n = b * c_.dense.chains; n < (b + 1) * c_.dense.chains; ++n) {
    const int64_t counted = after.chains.non_finite[n] - before.chains.non_finite[n];
    expect(counted >= 0 && counted <= now.moves[b], "non_finite");
  }
}

template <class T>
void run_adaptive(const AdaptiveCase& c) {
  for (const Isa<T>& isa : usable_isas<T>()) {
    const std::string name =
        std::string("adaptive ") + type_name<T>() + " " + isa.name + " " + describe(c);
    const Adaptive<T> run(*isa.ops.adaptive, c);
    const Outputs whole =
        across_threads(name, kThreads, [&](int threads) { return run.whole(threads); });
    begin_case(name + " in parts");
    expect_close(run.in_parts(), whole, 0.0);
    begin_case(name + " repeated");
    run.check_repeats(2);
  }
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

}  // namespace

void check_adaptive() {
  AdaptiveDealer dealer;
  for (int k = 0; k < 72; ++k) {
    const AdaptiveCase c = dealer.deal();
    run_adaptive<float>(c);
    run_adaptive<double>(c);
  }
}

}  // namespace driver
}  // namespace cogen
