// The published run on a CUDA device where all chains of an observation share a step size: what
// each thread of the one launch does.
//
// The chains of an observation are cut into tiles, and a block moves all chains of a tile at once.
// If one tile holds them all, its block makes the whole run by itself. Otherwise the blocks
// synchronise after each transition, and every block computes the next step size for itself from
// the sums of all tiles: they are added in the same order, so all blocks get the same number, and
// one synchronisation is enough. The sums are kept for two transitions in turn, because some blocks
// still read one set when others already write the next.
#pragma once

#include "mlp/device_thread.h"

namespace cogen {
namespace COGEN_ISA {

template <class T, class Chain, class Machine>
class SharedStepThread : ChainThread<T, Chain, Machine> {
 public:
  COGEN_HD SharedStepThread(const DeviceRun<T>& device, const Machine& machine)
      : ChainThread<T, Chain, Machine>(device, machine) {}

  COGEN_HD_LARGE void run() const {
    this->load_layers();
    const int64_t tiles = device_.tiles();
    const bool synchronised = device_.needs_grid_sync();
    int64_t tile = machine_.block;
    do {  // a block without a tile synchronises with the others all the same
      run_tiles(tile, synchronised ? tiles : lesser_of(tile + 1, tiles));
      tile += synchronised ? tiles : machine_.blocks;
    } while (tile < tiles);
  }

 private:
  using ChainThread<T, Chain, Machine>::device_;
  using ChainThread<T, Chain, Machine>::run_;
  using ChainThread<T, Chain, Machine>::machine_;
  using ChainThread<T, Chain, Machine>::each_;
  using ChainThread<T, Chain, Machine>::leads;
  using ChainThread<T, Chain, Machine>::chain_of;

  // Takes the tiles first, first + blocks, ... before `end` through all transitions.
  COGEN_HD_LARGE void run_tiles(int64_t first, int64_t end) const {
    const int64_t all = run_.steps * run_.hmc_steps;
    for (int64_t made = 0; made <= all; ++made) {
      for (int64_t tile = first; tile < end; tile += machine_.blocks) {
        const StepState state = step_before(tile, made);
        if (made < all) {
          transitions(tile, made, state.step_size);
        } else if (tile % each_ == 0 && machine_.thread == 0) {
          run_.step_size[tile / each_] = state.step_size;
          run_.running[tile / each_] = state.running;
        }
      }
      if (made == all) return;
      if (device_.needs_grid_sync()) {
        machine_.sync_grid();
      } else {
        machine_.sync_block();
      }
    }
  }

  // Makes transition number `made` of this call for the chains of a tile.
  COGEN_HD_LARGE void transitions(int64_t tile, int64_t made, double step) const {
    const int64_t b = tile / each_, chain = chain_of(tile), t = made / run_.hmc_steps;
    const int64_t row = b * run_.shape.chains + chain;
    const bool present = chain < run_.shape.chains;
    double probability = 0.0;
    if (present) {
      if (made % run_.hmc_steps == 0) this->reweight(row, t);
      const Outcome<1> outcome = this->transition(b, chain, made, step);
      if (leads()) {
        probability = outcome.probability[0];
        // HUGE_VAL stands for a proposal that was not finite.
        if (outcome.change[0] == HUGE_VAL) ++run_.non_finite[row];
      }
    }
    TileSums sums{block_sum(machine_, probability), 0.0, 0.0};
    if (ends_temperature(made)) end_temperature(tile, row, present, t, sums);
    if (machine_.thread == 0) sums_after(made)[tile] = sums;
  }

  // Sums the energies of a tile at the end of a temperature, and stores its latents.
  COGEN_HD_LARGE void end_temperature(int64_t tile, int64_t row, bool present, int64_t t,
                                      TileSums& sums) const {
    const bool counts = present && leads();
    const double energy = counts ? run_.energy[row] : 0.0;
    sums.energy = block_sum(machine_, energy);
    const double from_mean = counts ? energy - sums.energy / chains_in(tile) : 0.0;
    sums.spread = block_sum(machine_, from_mean * from_mean);
    if (present) this->store_trace(row, t);
  }

  // The step size of transition `made` of a tile's observation, by how the transition before it
  // went. The block of the observation's first tile stores it for the transition after, and the
  // history.
  COGEN_HD_LARGE StepState step_before(int64_t tile, int64_t made) const {
    const int64_t b = tile / each_;
    const bool writes = tile % each_ == 0;
    StepState state{run_.step_size[b], run_.running[b]};
    if (made > 0) {
      if (made > 1) state = steps_of(made - 1)[b];
      const double mean = mean_probability(b, made - 1);
      if (writes) record(b, made - 1, state.step_size, mean);
      if (device_.adapts) adapt(&state.step_size, &state.running, mean, device_.rule);
    }
    if (writes && machine_.thread == 0) steps_of(made)[b] = state;
    return state;
  }

  COGEN_HD double mean_probability(int64_t b, int64_t made) const {
    const TileSums* const sums = sums_after(made) + b * each_;
    return sum_over_tiles([&](int64_t i) { return sums[i].probability; }) /
           static_cast<double>(run_.shape.chains);
  }

  // Writes the history of transition `made` of an observation.
  COGEN_HD_LARGE void record(int64_t b, int64_t made, double step, double mean) const {
    const int64_t t = made / run_.hmc_steps, place = t * run_.shape.observations + b;
    double energy = 0.0, variance = 0.0;
    if (ends_temperature(made)) {
      const double count = static_cast<double>(run_.shape.chains);
      const TileSums* const sums = sums_after(made) + b * each_;
      energy = sum_over_tiles([&](int64_t i) { return sums[i].energy; }) / count;
      variance = sum_over_tiles([&](int64_t i) {
        const double chains = chains_in(b * each_ + i), shift = sums[i].energy / chains - energy;
        return sums[i].spread + chains * shift * shift;
      }) / count;
    }
    if (machine_.thread != 0) return;
    run_.step_used[place] = step;
    run_.acceptance[place] = (made % run_.hmc_steps == 0 ? 0.0 : run_.acceptance[place]) +
                             mean / static_cast<double>(run_.hmc_steps);
    if (!ends_temperature(made)) return;
    run_.energy_mean[place] = energy;
    run_.energy_std[place] = square_root(variance);
  }

  COGEN_HD double chains_in(int64_t tile) const {
    const int64_t left = run_.shape.chains - tile % each_ * device_.tile_chains;
    return static_cast<double>(lesser_of(left, device_.tile_chains));
  }
  COGEN_HD bool ends_temperature(int64_t made) const {
    return made % run_.hmc_steps == run_.hmc_steps - 1;
  }
  COGEN_HD TileSums* sums_after(int64_t made) const {
    return device_.sums + made % 2 * device_.tiles();
  }
  COGEN_HD StepState* steps_of(int64_t made) const {
    return device_.steps + made % 2 * run_.shape.observations;
  }

  // The sum of value(i) over the tiles i of an observation; all threads of the block get it.
  template <class Value>
  COGEN_HD double sum_over_tiles(const Value& value) const {
    if (each_ == 1) return value(0);
    double sum = 0.0;
    for (int64_t i = machine_.thread; i < each_; i += machine_.threads) sum += value(i);
    return block_sum(machine_, sum);
  }
};

}  // namespace COGEN_ISA
}  // namespace cogen
