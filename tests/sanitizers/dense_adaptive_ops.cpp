// The adaptive run for generators of dense layers. It is made in one call, with several numbers of
// threads, and again with one temperature a call, of which everything is checked that must hold
// whatever the run chooses. Both ways must end with the same bits, and so must the run that repeats
// its choices.
#include <memory>

#include "adaptive.h"

namespace cogen {
namespace driver {
namespace {

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
      : ops_(ops), c_(c), from_(c) {}

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
  const AdaptiveStart<T> from_;
};

template <class T>
std::unique_ptr<typename Adaptive<T>::Made> Adaptive<T>::made(int threads) const {
  auto made = std::make_unique<Made>(
      Made{AdaptiveState<T>(c_.dense), AdaptiveHistory<T>(c_, c_.steps), {}});
  copy(made->state, from_.state);
  made->progress = call(ops_, from_.run_of(made->state, made->history, c_.spent, false), threads);
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
  copy(all.state, from_.state);
  while (all.progress.steps < c_.steps) {
    AdaptiveState<T> before(c_.dense);
    AdaptiveHistory<T> now(c_, 1);
    copy(before, all.state);
    const Progress progress =
        call(ops_, from_.run_of(all.state, now, all.progress.spent, false), 1);
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
  copy(state, from_.state);
  copy_part(choices, 0, first->history, steps);
  AdaptiveHistory<T>::with_each_choice(
      history, choices, [](const char*, auto& a, const auto& b) { a.copy_from(b); });
  const Progress progress = call(ops_, from_.run_of(state, history, c_.spent, true), threads);
  expect(progress.steps == steps && progress.spent == first->progress.spent, "progress");
  // Nothing is learnt.
  expect_close({output("curvature", state.curvature), output("memory", state.memory),
                output("log_length", state.log_length)},
               {output("curvature", from_.state.curvature), output("memory", from_.state.memory),
                output("log_length", from_.state.log_length)},
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
                             static_cast<uint32_t>(from_.observation[b]));
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
    const Evaluation found = from_.problem.evaluate(b / c_.dense.each, chain.latents);
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
              static_cast<uint32_t>(from_.observation[b])};
  if (c_.plan.mass == MassKind::diagonal) {
    const T* mass = now.inverse_mass.data() + b * size;
    move.inverse_mass.assign(mass, mass + size);
  }
  const double turn = 2.0 * to_uniform<double>(move.words(kJitter, 0, 0).w[0]) - 1.0;
  move.step_size *= 1.0 + c_.plan.rule.jitter * turn;
  check_transition(
      from_.problem, b,
      [&](int64_t n) {
        return before.chains.chain(b * chains + now.ancestors[b * chains + n]);
      },
      values(before.chains.non_finite), after.chains, [&](int64_t) { return move; },
      now.acceptance[b]);
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
      filler &= entry == from_.filler[i * directions + j];
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
