// What a thread of the published run does for its chain on a CUDA device, whether the chain shares
// its step size or has its own.
//
// A Machine says where a thread is (`thread` of `threads` in its block, `block` of `blocks`) and
// what `shared` memory its block has. `sync_warp`, `sync_block` and `sync_grid` wait for the other
// threads and make their writes visible. `warp_sum` gives every lane the sum over its warp, in a
// fixed order.
#pragma once

#include "mlp/device_chain.h"

namespace cogen {
namespace COGEN_ISA {

// The sum over a block, in a fixed order; all its threads get it.
template <class Machine>
COGEN_HD_CALLED double block_sum(const Machine machine, double value) {
  const double of_warp = machine.warp_sum(value);
  if (machine.threads == kWarp) return of_warp;
  double* const values = reinterpret_cast<double*>(machine.shared);
  machine.sync_block();  // all threads have read the sums of the call before
  if (machine.thread % kWarp == 0) values[machine.thread / kWarp] = of_warp;
  machine.sync_block();
  double all = values[0];
  for (int w = 1; w < machine.threads / kWarp; ++w) all += values[w];
  return all;
}

// One thread, which has a chain, or a part of one.
template <class T, class Chain, class Machine>
class ChainThread {
 protected:
  COGEN_HD ChainThread(const DeviceRun<T>& device, const Machine& machine)
      : device_(device), run_(device.run), machine_(machine), each_(device.tiles_each()) {}

  COGEN_HD void load_layers() const {
    if (Chain::kKeepsLayers) {
      copy_layers(machine_, run_.net, device_.first, shared_numbers<T>(machine_.shared));
    }
  }

  // Updates the log weight of a chain before the moves of temperature t.
  COGEN_HD void reweight(int64_t row, int64_t t) const {
    if (!run_.log_weights || !leads()) return;
    const double before = t == 0 ? run_.beta : run_.betas[t - 1];
    run_.log_weights[row] -= (run_.betas[t] - before) * run_.energy[row];
  }

  // Makes transition number `made` of this call.
  COGEN_HD Outcome<1> transition(int64_t b, int64_t chain, int64_t made, double step) const {
    const TransitionSettings<> settings{potential_of(run_, made / run_.hmc_steps), step,
                                        static_cast<int>(run_.leapfrog_steps)};
    const int64_t row = b * run_.shape.chains + chain;
    const ChainTile<T> state{run_.latents + row * run_.shape.size,
                             run_.grad + row * run_.shape.size,
                             nullptr,
                             nullptr,
                             run_.energy + row,
                             static_cast<uint32_t>(chain)};
    return Chain::transition(machine_, run_.net, device_.first,
                             observed_of(run_.observed, b, measured_size(run_.net)),
                             noise_of(run_, b, made), settings, state);
  }

  COGEN_HD void store_trace(int64_t row, int64_t t) const {
    if (!run_.trace) return;
    const int64_t size = run_.shape.size;
    T* const out = run_.trace + t * run_.shape.observations * run_.shape.chains * size;
    // Each lane copies the dimensions that it has written itself.
    for (int64_t i = machine_.thread % Chain::kThreads; i < size; i += Chain::kThreads) {
      out[row * size + i] = run_.latents[row * size + i];
    }
  }

  // Whether this thread writes what belongs to the chain as a whole.
  COGEN_HD bool leads() const { return machine_.thread % Chain::kThreads == 0; }
  // The number of this thread's chain in its observation; beyond the last one there is no chain.
  COGEN_HD int64_t chain_of(int64_t tile) const {
    return tile % each_ * device_.tile_chains + machine_.thread / Chain::kThreads;
  }

  const DeviceRun<T>& device_;
  const MlpRun<T>& run_;
  const Machine& machine_;
  const int64_t each_;
};

}  // namespace COGEN_ISA
}  // namespace cogen
