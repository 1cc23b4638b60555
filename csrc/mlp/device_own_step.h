// The published run on a CUDA device where each chain has a step size of its own: what each thread
// of the first launch does. No thread waits for another block. A second launch, of describe_groups,
// computes the history.
#pragma once

#include "mlp/device_thread.h"

namespace cogen {
namespace COGEN_ISA {

// Each warp takes its chains through all temperatures and waits for no other warp.
template <class T, class Chain, class Machine>
class OwnStepThread : ChainThread<T, Chain, Machine> {
 public:
  COGEN_HD OwnStepThread(const DeviceRun<T>& device, const Machine& machine)
      : ChainThread<T, Chain, Machine>(device, machine) {}

  COGEN_HD_LARGE void run() const {
    this->load_layers();
    for (int64_t tile = machine_.block; tile < device_.tiles(); tile += machine_.blocks) {
      run_chain(tile / this->each_, this->chain_of(tile));
    }
  }

 private:
  using ChainThread<T, Chain, Machine>::device_;
  using ChainThread<T, Chain, Machine>::run_;
  using ChainThread<T, Chain, Machine>::machine_;

  // Takes a chain through all temperatures. A lane without a chain still takes part in the sums of
  // its warp.
  COGEN_HD_LARGE void run_chain(int64_t b, int64_t chain) const {
    const int64_t row = b * run_.shape.chains + chain;
    const bool present = chain < run_.shape.chains, counts = present && this->leads();
    StepState state{0.0, 0.0};
    if (present) state = {run_.step_size[row], run_.running[row]};
    for (int64_t t = 0; t < run_.steps; ++t) {
      GroupSums sums{};
      if (present) sums = run_temperature(b, chain, t, state);
      store_sums(b, chain, t, counts ? sums : GroupSums{});
    }
    if (!counts) return;
    run_.step_size[row] = state.step_size;
    run_.running[row] = state.running;
  }

  // Takes a chain through a temperature; returns what it adds to the sums of its group.
  COGEN_HD_LARGE GroupSums run_temperature(int64_t b, int64_t chain, int64_t t,
                                           StepState& state) const {
    const int64_t row = b * run_.shape.chains + chain;
    this->reweight(row, t);
    GroupSums sums{};
    for (int64_t m = 0; m < run_.hmc_steps; ++m) {
      const Outcome<1> outcome =
          this->transition(b, chain, t * run_.hmc_steps + m, state.step_size);
      // HUGE_VAL stands for a proposal that was not finite.
      if (this->leads() && outcome.change[0] == HUGE_VAL) ++run_.non_finite[row];
      sums.probability += outcome.probability[0];
      sums.step_size = state.step_size;
      if (device_.adapts) {
        adapt(&state.step_size, &state.running, outcome.probability[0], device_.rule);
      }
      if (Chain::kThreads > 1) machine_.sync_warp();  // the lanes have written a state
    }
    sums.energy = run_.energy[row];
    this->store_trace(row, t);
    return sums;
  }

  // Stores the sums over the chains of a warp, which are a group. `own` is what a lane adds to
  // them.
  COGEN_HD_LARGE void store_sums(int64_t b, int64_t chain, int64_t t, const GroupSums& own) const {
    const int64_t group = chain / device_.groups.size;
    const bool any = group < device_.groups.each();
    const double chains = any ? device_.groups.chains_in(group) : 1.0;
    GroupSums sums{machine_.warp_sum(own.probability), machine_.warp_sum(own.step_size),
                   machine_.warp_sum(own.energy), 0.0};
    const bool counts = chain < run_.shape.chains && this->leads();
    const double from_mean = counts ? own.energy - sums.energy / chains : 0.0;
    sums.spread = machine_.warp_sum(from_mean * from_mean);
    if (!any || machine_.thread % kWarp != 0) return;
    device_.group_sums[(t * run_.shape.observations + b) * device_.groups.each() + group] = sums;
  }
};

}  // namespace COGEN_ISA
}  // namespace cogen
