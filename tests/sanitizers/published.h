// The published run for generators of dense layers, for the programs that check it: cases, the
// arrays that a run reads and writes, and its start.
#pragma once

#include "dense.h"

namespace cogen {
namespace driver {

struct PublishedCase {
  DenseCase dense;
  std::vector<double> betas;  // the first is that at which the run starts
  int64_t hmc_steps, leapfrog_steps;
  bool weights, rule, paper, per_chain, trace, overflow;

  int64_t steps() const { return static_cast<int64_t>(betas.size()) - 1; }
  // The number of step sizes of an observation.
  int64_t steps_each() const { return per_chain ? dense.chains : 1; }
};

inline std::string describe(const PublishedCase& c) {
  std::string text = describe(c.dense) + " T=" + std::to_string(c.steps()) +
                     " M=" + std::to_string(c.hmc_steps) + " L=" + std::to_string(c.leapfrog_steps);
  if (c.weights) text += " weights";
  if (c.rule) text += " rule";
  if (c.paper) text += " paper";
  if (c.per_chain) text += " per_chain";
  if (c.trace) text += " trace";
  if (c.overflow) text += " overflow";
  return text;
}

template <class T>
struct PublishedState {
  Chains<T> chains;
  Array<double> step_size, running;
  Array<int64_t> transition, observation;

  explicit PublishedState(const PublishedCase& c)
      : chains(c.dense),
        step_size(c.dense.observations * c.steps_each(), c.dense.ragged),
        running(c.dense.observations * c.steps_each(), c.dense.ragged),
        transition(c.dense.observations, c.dense.ragged),
        observation(c.dense.observations, c.dense.ragged) {}

  template <class A, class B, class F>
  static void with_each(A& a, B& b, const F& f) {
    Chains<T>::with_each(a.chains, b.chains, f);
    f("step_size", a.step_size, b.step_size);
    f("running", a.running, b.running);
    f("transition", a.transition, b.transition);
    f("observation", a.observation, b.observation);
  }
};

template <class T>
struct PublishedHistory {
  Array<double> acceptance, step_used, energy_mean, energy_std;
  Array<T> trace;

  PublishedHistory(const DenseCase& c, int64_t steps)
      : acceptance(steps * c.observations, c.ragged),
        step_used(steps * c.observations, c.ragged),
        energy_mean(steps * c.observations, c.ragged),
        energy_std(steps * c.observations, c.ragged),
        trace(steps * c.observations * c.chains * c.size(), c.ragged) {}

  template <class A, class B, class F>
  static void with_each(A& a, B& b, const F& f) {
    f("acceptance", a.acceptance, b.acceptance);
    f("step_used", a.step_used, b.step_used);
    f("energy_mean", a.energy_mean, b.energy_mean);
    f("energy_std", a.energy_std, b.energy_std);
    f("trace", a.trace, b.trace);
  }
};

constexpr StepRule kRule{0.65, 0.8, 1.1, 0.8, 0.02, 0.3};

// The state at which a run begins.
template <class T>
void start(const PublishedCase& c, const Problem<T>& problem, PublishedState<T>& state) {
  Random random(c.dense.seed + 1);
  state.chains.start(problem, random);
  fill_uniform(state.step_size, random, 0.03, 0.25);
  fill_uniform(state.running, random, 0.4, 0.9);
  if (c.overflow) {
    const double huge = sizeof(T) == sizeof(double) ? 1e200 : 1e30;
    fill_uniform(state.step_size, random, huge, 2.0 * huge);
  }
  const int64_t counters[] = {0, 7, kWordLimit - c.steps() * c.hmc_steps};
  for (int64_t b = 0; b < c.dense.observations; ++b) {
    state.transition[b] = counters[(b + c.dense.chains) % 3];
    state.observation[b] = b == 1 ? kWordLimit : 5 * b;
  }
  // A Hamiltonian that is infinite at the start is another case that is not finite.
  if (c.dense.extreme) state.chains.energy[c.dense.chains - 1] = kInfinity;
}

template <class T>
MlpRun<T> run_of(const PublishedCase& c, const Problem<T>& problem, PublishedState<T>& s,
                 PublishedHistory<T>& h, double beta, const Array<double>& betas, int64_t hmc_steps,
                 bool weights) {
  return {c.dense.shape(),
          problem.mlp(),
          problem.observed(),
          {c.dense.seed, s.transition.data(), s.observation.data()},
          s.chains.latents.data(),
          s.chains.energy.data(),
          s.chains.grad.data(),
          weights ? s.chains.log_weights.data() : nullptr,
          s.step_size.data(),
          s.running.data(),
          s.chains.non_finite.data(),
          beta,
          betas.data(),
          betas.size(),
          hmc_steps,
          c.leapfrog_steps,
          c.paper,
          c.per_chain,
          c.rule ? &kRule : nullptr,
          h.acceptance.data(),
          h.step_used.data(),
          h.energy_mean.data(),
          h.energy_std.data(),
          c.trace ? h.trace.data() : nullptr};
}

class PublishedDealer {
 public:
  PublishedCase deal() {
    Random& random = dealer_.random();
    PublishedCase c{};
    c.dense = dealer_.deal();
    c.betas = betas_.deal(random);
    c.hmc_steps = moves_.deal(random);
    c.leapfrog_steps = lengths_.deal(random);
    c.weights = weights_.deal(random) != 0;
    c.rule = rule_.deal(random) != 0;
    c.paper = paper_.deal(random) != 0;
    c.per_chain = per_chain_.deal(random) != 0;
    c.trace = trace_.deal(random) != 0;
    c.dense.extreme = extreme_.deal(random) != 0;
    return c;
  }

 private:
  Dealer dealer_{1, {1, 2, 3, 4, 5, 6, 7, 8}};
  Deck<std::vector<double>> betas_{{{0.0, 0.1}, {0.2, 0.4, 0.4}, {0.01, 0.3, 0.9, 1.0}}};
  Deck<int64_t> moves_{{1, 2}}, lengths_{{1, 2, 3}};
  Deck<int> weights_{{0, 1}}, rule_{{0, 1, 1}}, paper_{{0, 0, 1}}, per_chain_{{0, 1}};
  Deck<int> trace_{{0, 1}};
  Deck<int> extreme_{{0, 0, 0, 0, 0, 1}};
};

}  // namespace driver
}  // namespace cogen
