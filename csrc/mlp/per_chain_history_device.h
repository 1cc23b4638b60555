// The published run of chains whose step sizes are their own, on a device of many threads: what
// each thread of a launch does that needs no meeting of blocks. Its history is told by a second
// launch, of describe_groups.
#pragma once

#include "mlp/anneal_mlp_device.h"

namespace cogen {
namespace COGEN_ISA {

// A warp takes its chains through all temperatures and waits for no other.
template <class T, class Chain, class Machine>
class ThreadApart : ChainThread<T, Chain, Machine> {
 public:
  COGEN_HD ThreadApart(const DeviceRun<T>& device, const Machine& machine)
      : ChainThread<T, Chain, Machine>(device, machine) {}

  COGEN_HD_LARGE void all() const {
    this->share_layers();
    for (int64_t tile = machine_.block; tile < device_.tiles(); tile += machine_.blocks) {
      through(tile / this->each_, this->chain_of(tile));
    }
  }

 private:
  using ChainThread<T, Chain, Machine>::device_;
  using ChainThread<T, Chain, Machine>::run_;
  using ChainThread<T, Chain, Machine>::machine_;

  // A lane without a chain has its part in the sums of its warp.
  COGEN_HD_LARGE void through(int64_t b, int64_t chain) const {
    const int64_t row = b * run_.shape.chains + chain;
    const bool present = chain < run_.shape.chains, counts = present && this->leads();
    StepState state{0.0, 0.0};
    if (present) state = {run_.step_size[row], run_.running[row]};
    for (int64_t t = 0; t < run_.steps; ++t) {
      GroupSums sums{};
      if (present) sums = moves(b, chain, t, state);
      leave(b, chain, t, counts ? sums : GroupSums{});
    }
    if (!counts) return;
    run_.step_size[row] = state.step_size;
    run_.running[row] = state.running;
  }

  // A chain through a temperature; what it adds to the sums.
  COGEN_HD_LARGE GroupSums moves(int64_t b, int64_t chain, int64_t t, StepState& state) const {
    const int64_t row = b * run_.shape.chains + chain;
    this->weigh(row, t);
    GroupSums sums{};
    for (int64_t m = 0; m < run_.hmc_steps; ++m) {
      const Outcome<1> outcome =
          this->moved(b, chain, t * run_.hmc_steps + m, state.step_size);
      // A rejection for not being finite; HUGE_VAL stands for it.
      if (this->leads() && outcome.change[0] == HUGE_VAL) ++run_.non_finite[row];
      sums.probability += outcome.probability[0];
      sums.step_size = state.step_size;
      if (device_.adapts) {
        adapt(&state.step_size, &state.running, outcome.probability[0], device_.rule);
      }
      if (Chain::kThreads > 1) machine_.warp_meets();  // the lanes have written a state
    }
    sums.energy = run_.energy[row];
    this->store_trace(row, t);
    return sums;
  }

  // The sums of a warp's chains, which are a group. `own` is what a lane adds to them.
  COGEN_HD_LARGE void leave(int64_t b, int64_t chain, int64_t t, const GroupSums& own) const {
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
