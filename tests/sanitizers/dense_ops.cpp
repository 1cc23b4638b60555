// The published run for generators of dense layers. It is made in one call, with several numbers of
// threads, and again with a call for each transition, which is compared with plain loops in double.
// Both must end with the same bits, except for sums over several moves of chains that adapt by
// themselves.
#include "published.h"

namespace cogen {
namespace driver {
namespace {

template <class T>
class Published {
 public:
  Published(const PublishedOps<T>& ops, const PublishedCase& c)
      : ops_(ops), c_(c), problem_(c.dense), start_(c) {
    start(c, problem_, start_);
  }

  Outputs whole(int threads) const {
    PublishedState<T> state(c_);
    PublishedHistory<T> history(c_.dense, c_.steps());
    copy(state, start_);
    const Array<double> betas = betas_of(1, c_.steps());
    call(ops_,
         run_of(c_, problem_, state, history, c_.betas[0], betas, c_.hmc_steps, c_.weights),
         threads);
    advance(state, c_.steps() * c_.hmc_steps);
    return all_of(state, history);
  }

  // The run with one transition in each call.
  Outputs in_parts() const {
    PublishedState<T> state(c_);
    PublishedHistory<T> history(c_.dense, c_.steps());
    copy(state, start_);
    std::fill(history.acceptance.data(), history.acceptance.data() + history.acceptance.size(), 0);
    for (int64_t t = 0; t < c_.steps(); ++t) {
      for (int64_t m = 0; m < c_.hmc_steps; ++m) transition(t, m, state, history);
    }
    return all_of(state, history);
  }

 private:
  Array<double> betas_of(int64_t first, int64_t count) const {
    Array<double> betas(count, c_.dense.ragged);
    std::copy_n(c_.betas.begin() + first, count, betas.data());
    return betas;
  }

  static void advance(PublishedState<T>& state, int64_t made) {
    for (int64_t b = 0; b < state.transition.size(); ++b) state.transition[b] += made;
  }

  static Outputs all_of(const PublishedState<T>& state, const PublishedHistory<T>& history) {
    Outputs all = outputs_of(state);
    for (Output& each : outputs_of(history)) all.push_back(std::move(each));
    return all;
  }

  void transition(int64_t t, int64_t m, PublishedState<T>& state,
                  PublishedHistory<T>& history) const {
    PublishedState<T> before(c_);
    PublishedHistory<T> now(c_.dense, 1);
    copy(before, state);
    const double beta = c_.betas[static_cast<size_t>(t) + 1];
    const double from = m == 0 ? c_.betas[static_cast<size_t>(t)] : beta;
    // Only the first transition of a temperature adds to the log weights: for the others the factor
    // of the energy is 0, and 0 times an infinite energy would be NaN.
    const bool weighs = c_.weights && m == 0;
    call(ops_, run_of(c_, problem_, state, now, from, betas_of(t + 1, 1), 1, weighs), 1);
    const double increment = beta - from;
    check(before, state, now, beta, weighs ? &increment : nullptr);
    for (int64_t b = 0; b < c_.dense.observations; ++b) {
      const int64_t at = t * c_.dense.observations + b;
      history.acceptance[at] += now.acceptance[b] / static_cast<double>(c_.hmc_steps);
      history.step_used[at] = now.step_used[b];
      history.energy_mean[at] = now.energy_mean[b];
      history.energy_std[at] = now.energy_std[b];
    }
    std::copy(now.trace.begin(), now.trace.end(), history.trace.data() + t * now.trace.size());
    advance(state, 1);
  }

  void check(const PublishedState<T>& before, const PublishedState<T>& after,
             const PublishedHistory<T>& now, double beta, const double* increment) const {
    const int64_t chains = c_.dense.chains;
    for (int64_t n = 0; n < before.chains.energy.size(); ++n) {
      double weighed = before.chains.log_weights[n];
      if (increment) weighed -= *increment * before.chains.energy[n];
      expect_close({"log_weights", {after.chains.log_weights[n]}}, {weighed},
                   rounding_bound<double>());
    }
    for (int64_t b = 0; b < c_.dense.observations; ++b) {
      if (c_.overflow) {
        check_overflow(b, before, after, now);
      } else {
        check_transition(
            problem_, b, [&](int64_t n) { return before.chains.chain(b * chains + n); },
            values(before.chains.non_finite), after.chains,
            [&](int64_t n) { return move_of(before, b, n, beta); }, now.acceptance[b]);
      }
      if (c_.per_chain) {
        check_own_steps(b, before, after, now, beta);
      } else {
        check_shared_step(b, before, after, now);
      }
      const double* energy = after.chains.energy.data() + b * chains;
      expect_close({"energy_mean", {now.energy_mean[b]}}, {mean(energy, chains)},
                   rounding_bound<double>());
      expect_close({"energy_std", {now.energy_std[b]}}, {deviation(energy, chains)},
                   rounding_bound<double>());
    }
    if (c_.trace) {
      expect(memcmp(now.trace.data(), after.chains.latents.data(),
                    static_cast<size_t>(now.trace.size()) * sizeof(T)) == 0,
             "trace");
    }
  }

  MoveOf move_of(const PublishedState<T>& before, int64_t b, int64_t n, double beta) const {
    return {beta,
            c_.paper ? 1.0 - beta : 1.0,
            before.step_size[c_.per_chain ? b * c_.dense.chains + n : b],
            c_.leapfrog_steps,
            c_.dense.seed,
            static_cast<uint32_t>(before.transition[b]),
            static_cast<uint32_t>(before.observation[b])};
  }

  void check_overflow(int64_t b, const PublishedState<T>& before, const PublishedState<T>& after,
                      const PublishedHistory<T>& now) const {
    const int64_t chains = c_.dense.chains;
    for (int64_t n = b * chains; n < (b + 1) * chains; ++n) {
      expect(same_bits(before.chains.chain(n), after.chains.chain(n)), "moved without bounds");
      expect(after.chains.non_finite[n] == before.chains.non_finite[n] + 1, "non_finite");
    }
    expect(now.acceptance[b] == 0.0, "acceptance");
  }

  void check_shared_step(int64_t b, const PublishedState<T>& before, const PublishedState<T>& after,
                         const PublishedHistory<T>& now) const {
    expect(now.step_used[b] == before.step_size[b], "step_used");
    check_step(before, after, b);
    double running = before.running[b];
    if (c_.rule) running = kRule.decay * running + (1.0 - kRule.decay) * now.acceptance[b];
    expect_close({"running", {after.running[b]}}, {running}, rounding_bound<double>());
  }

  // The step size of each chain follows its own acceptance, whose probability the plain loops give.
  void check_own_steps(int64_t b, const PublishedState<T>& before, const PublishedState<T>& after,
                       const PublishedHistory<T>& now, double beta) const {
    const int64_t chains = c_.dense.chains;
    expect_close({"step_used", {now.step_used[b]}},
                 {mean(before.step_size.data() + b * chains, chains)}, rounding_bound<double>());
    for (int64_t row = b * chains; row < (b + 1) * chains; ++row) {
      check_step(before, after, row);
      const double kept = c_.rule ? kRule.decay : 1.0;
      const Proposed made = propose(problem_, b, row - b * chains, before.chains.chain(row),
                                    move_of(before, b, row - b * chains, beta));
      if (made.doubtful) continue;
      const double running = kept * before.running[row] + (1.0 - kept) * made.probability;
      expect(std::fabs(after.running[row] - running) <= (1.0 - kept) * kProbabilitySlack<T> + 1e-12,
             "a chain's acceptance");
    }
  }

  // Checks step size number `at`.
  void check_step(const PublishedState<T>& before, const PublishedState<T>& after,
                  int64_t at) const {
    double step = before.step_size[at];
    if (c_.rule) {
      step *= before.running[at] > kRule.target ? kRule.increase : kRule.decrease;
      step = std::fmin(std::fmax(step, kRule.minimum), kRule.maximum);
    }
    expect_close({"step_size", {after.step_size[at]}}, {step}, rounding_bound<double>());
  }

  const PublishedOps<T>& ops_;
  const PublishedCase& c_;
  Problem<T> problem_;
  PublishedState<T> start_;
};

template <class T>
void run_published(const PublishedCase& c) {
  for (const Isa<T>& isa : usable_isas<T>()) {
    const std::string name =
        std::string("published ") + type_name<T>() + " " + isa.name + " " + describe(c);
    const Published<T> run(*isa.ops.published, c);
    const Outputs whole =
        across_threads(name, kThreads, [&](int threads) { return run.whole(threads); });
    begin_case(name + " in parts");
    const bool reordered = c.per_chain && c.hmc_steps > 1;
    expect_close(run.in_parts(), whole, reordered ? rounding_bound<double>() : 0.0);
  }
}

void run_both_types(const PublishedCase& c) {
  run_published<float>(c);
  run_published<double>(c);
}

}  // namespace

void check_dense() {
  PublishedDealer dealer;
  for (int k = 0; k < 48; ++k) run_both_types(dealer.deal());
  // The hidden widths for which the compiler knows the sizes, with one chain at a time.
  for (const int hidden : {16, 20, 32}) {
    for (const int layers : {2, 3, 5}) {
      PublishedCase c = dealer.deal();
      c.dense.chains = 1;
      c.dense.widths.assign(static_cast<size_t>(layers) + 1, hidden);
      c.dense.widths.front() = 1 + layers % 4 * 3;
      c.dense.widths.back() = 33 - 8 * layers / 2;
      c.dense.activations.resize(static_cast<size_t>(layers), Activation::softplus);
      run_both_types(c);
    }
  }
  // The same for independent chains, whose numbers stay in registers.
  for (const int hidden : {16, 20, 32}) {
    for (const Activation kind : {Activation::relu, Activation::leaky_relu}) {
      PublishedCase c = dealer.deal();
      c.dense.chains = 1;
      c.dense.widths = {2, hidden, hidden, 2};
      c.dense.activations = {kind, kind, Activation::identity};
      run_both_types(c);
    }
  }
  // Cases whose trajectories overflow.
  for (const int64_t chains : {1, 5}) {
    PublishedCase c = dealer.deal();
    c.dense.chains = chains;
    c.dense.extreme = false;
    c.dense.mask = 0;
    c.dense.activations.assign(c.dense.activations.size(), Activation::identity);
    c.betas = {0.5, 1.0};
    c.leapfrog_steps = 3;
    c.rule = false;
    c.overflow = true;
    run_both_types(c);
  }
}

}  // namespace driver
}  // namespace cogen
