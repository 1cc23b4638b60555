// The published run for a generator of dense layers on a device of many threads: what each thread
// of one launch does. anneal_mlp_launch.h has it compiled for CUDA; tests/emulated gives it threads of
// its own.
//
// An observation's chains come in tiles, which a block makes at once: a chain for each thread, or
// for each warp. Where a tile holds all of them, its block makes the whole run by itself. Otherwise
// the blocks meet after each transition, and every block computes for itself, from what all left of
// their tiles, the step size that comes next: always the same sums in the same order, so always the
// same number, and one meeting is enough. What is left is kept for two transitions in turn, for
// some still read the one when others already write the next. per_chain_history_device.h has the
// run of chains whose step sizes are their own, which need not meet.
//
// A Machine says where a thread is (`thread` of `threads` in its block, `block` of `blocks`) and
// what `shared` memory its block has; `warp_meets`, `block_meets` and `grid_meets` wait for the
// others and let their writes be seen; `warp_sum` gives every lane the sum over its warp, in a
// fixed order.
#pragma once

#include "mlp/chain_in_warp.h"
#include "mlp/chains_in_lanes.h"
#include "mlp/mlp_known.h"
#include "mlp/per_chain_history.h"

namespace cogen {
namespace COGEN_ISA {

COGEN_HD int64_t lesser_of(int64_t a, int64_t b) { return a < b ? a : b; }

// What a tile's chains have in common after a transition. `spread` is the sum of squared
// differences from the tile's mean energy.
struct TileSums {
  double probability, energy, spread;
};

struct StepState {
  double step_size, running;
};

// `rule` and `adapts` stand for the pointer of the run; every address is the device's.
template <class T>
struct DeviceRun {
  MlpRun<T> run;
  StepRule rule;
  bool adapts;
  int64_t tile_chains;
  int first[kMostLayers + 1];  // where layers begin among the numbers of all; the end of the last
  TileSums* sums;              // (2, tiles)
  StepState* steps;            // (2, B)
  // Where chains have step sizes of their own, in place of these: (steps, B, groups).
  Groups groups;
  GroupSums* group_sums;

  COGEN_HD int64_t tiles_each() const {
    return (run.shape.chains + tile_chains - 1) / tile_chains;
  }
  COGEN_HD int64_t tiles() const { return run.shape.observations * tiles_each(); }
  // Where chains share a step size.
  COGEN_HD bool blocks_meet() const { return tiles_each() > 1; }
};

template <class T>
inline void place_layers(const Mlp<T>& net, int* first) {
  first[0] = 0;
  for (int k = 0; k < net.layers; ++k) {
    first[k + 1] = first[k] + layer_numbers(net.width[k], net.width[k + 1]);
  }
}

// Without a layout, and without memory for what tiles leave.
template <class T>
inline DeviceRun<T> device_run_of(const MlpRun<T>& run) {
  DeviceRun<T> device{};
  device.run = run;
  device.run.rule = nullptr;
  device.adapts = run.rule != nullptr;
  if (run.rule) device.rule = *run.rule;
  place_layers(run.net, device.first);
  return device;
}

// --- shared memory: sums of warps, then the layers, then the rooms of warps ----------------------

constexpr int kMostWarps = 32;

COGEN_HD constexpr int64_t bytes_of_sums() { return kMostWarps * sizeof(double); }

template <class T>
COGEN_HD T* shared_numbers(char* shared) {
  return reinterpret_cast<T*>(shared + bytes_of_sums());
}

template <class T, class Machine>
COGEN_HD void copy_numbers(const Machine& machine, const T* from, int count, T* to) {
  for (int i = machine.thread; i < count; i += machine.threads) to[i] = from[i];
}

// All layers, one after the other, to where they are read from.
template <class T, class Machine>
COGEN_HD_LARGE void copy_layers(const Machine& machine, const Mlp<T>& net, const int* first,
                                T* numbers) {
  for (int k = 0; k < net.layers; ++k) {
    const int in = net.width[k], out = net.width[k + 1];
    T* const to = numbers + first[k];
    copy_numbers(machine, net.weight[k], in * padded(out), to);
    copy_numbers(machine, net.bias[k], padded(out), to + in * padded(out));
    copy_numbers(machine, net.back[k], out * padded(in), to + (in + 1) * padded(out));
  }
  machine.block_meets();
}

// --- who makes a chain --------------------------------------------------------------------------

// Numbers of a thread's own for nets whose widths are not known: what fits is made by threads.
constexpr int kThreadRoom = 320;

template <class T>
COGEN_HD int64_t room_of_thread(const Mlp<T>& net) {
  return 3 * net.width[0] + workspace(net);
}

// The room has the tile's proposal, then what ChainsInLanes needs.
template <class T, int kRoom, class Net>
COGEN_HD_LARGE Outcome<1> transition_in_thread(const Net& net, const Observed<T>& observed,
                                               const NoiseStream& stream,
                                               const TransitionSettings<>& settings,
                                               const ChainTile<T>& state) {
  T room[kRoom];
  ChainTile<T> chain = state;
  chain.position = room;
  chain.momentum = room + latent_size(net);
  Outcome<1> outcome;
  ChainsInLanes<T>::transition(net, observed, stream, settings, chain,
                               room + 2 * latent_size(net), outcome);
  return outcome;
}

// A thread, a net of the kind Net: one of any widths, or one whose widths the compiler knows.
template <class T, class Net>
struct ChainOfThread;

template <class T>
struct ChainOfThread<T, Mlp<T>> {
  static constexpr bool kKeepsLayers = true;
  static constexpr int kThreads = 1;

  static COGEN_HD int64_t shared_room(const Mlp<T>&) { return 0; }

  template <class Machine>
  static COGEN_HD Outcome<1> transition(const Machine& machine, const Mlp<T>& given,
                                        const int* first, const Observed<T>& observed,
                                        const NoiseStream& stream,
                                        const TransitionSettings<>& settings,
                                        const ChainTile<T>& state) {
    Mlp<T> net = given;
    const LayersTogether<T> layers{given, shared_numbers<T>(machine.shared), first};
    for (int k = 0; k < net.layers; ++k) {
      const Layer<T> layer = layers(k);
      net.weight[k] = layer.weight;
      net.bias[k] = layer.bias;
      net.back[k] = layer.back;
    }
    return transition_in_thread<T, kThreadRoom>(net, observed, stream, settings, state);
  }
};

template <class T, int kLatent, int kHidden, int kDepth, int kOut, Activation kKind>
struct ChainOfThread<T, KnownMlp<T, kLatent, kHidden, kDepth, kOut, kKind>> {
  static constexpr bool kKeepsLayers = true;
  static constexpr int kThreads = 1;

  static COGEN_HD int64_t shared_room(const Mlp<T>&) { return 0; }

  template <class Machine>
  static COGEN_HD Outcome<1> transition(const Machine& machine, const Mlp<T>& given,
                                        const int* /* first */, const Observed<T>& observed,
                                        const NoiseStream& stream,
                                        const TransitionSettings<>& settings,
                                        const ChainTile<T>& state) {
    KnownMlp<T, kLatent, kHidden, kDepth, kOut, kKind> net;
    net.numbers = shared_numbers<T>(machine.shared);
    net.slope = given.slope;
    net.last = given.activation[kDepth];
    return transition_in_thread<T, 3 * kLatent>(net, observed, stream, settings, state);
  }
};

// A warp. kHidden is the width of all layers between latent and output, or 0.
template <class T, int kHidden, bool kInShared>
struct ChainOfWarp {
  static constexpr bool kKeepsLayers = kInShared;
  static constexpr int kThreads = kWarp;

  // Numbers of type T for each warp.
  static COGEN_HD int64_t shared_room(const Mlp<T>& net) {
    return 2 * padded(net.width[0]) + room_of_warp(net);
  }

  template <class Machine>
  static COGEN_HD Outcome<1> transition(const Machine& machine, const Mlp<T>& net,
                                        const int* first, const Observed<T>& observed,
                                        const NoiseStream& stream,
                                        const TransitionSettings<>& settings,
                                        const ChainTile<T>& state) {
    T* const numbers = shared_numbers<T>(machine.shared);
    T* const room = numbers + (kInShared ? first[net.layers] : 0) +
                    machine.thread / kWarp * shared_room(net);
    ChainTile<T> chain = state;
    chain.position = room;
    chain.momentum = room + padded(net.width[0]);
    T* const rest = room + 2 * padded(net.width[0]);
    if constexpr (kInShared) {
      const LayersTogether<T> layers{net, numbers, first};
      return transition_in_warp<kHidden>(machine, net, layers, observed, stream, settings, chain,
                                         rest);
    } else {
      return transition_in_warp<kHidden>(machine, net, LayersApart<T>{net}, observed, stream,
                                         settings, chain, rest);
    }
  }
};

// Of a block that makes so many chains at once.
template <class Chain, class T>
COGEN_HD int64_t shared_bytes_for(const Mlp<T>& net, const int* first, int64_t chains) {
  const int64_t layers = Chain::kKeepsLayers ? first[net.layers] : 0;
  return bytes_of_sums() +
         (layers + chains * Chain::shared_room(net)) * static_cast<int64_t>(sizeof(T));
}

template <class T, class Chain>
COGEN_HD int64_t shared_bytes(const DeviceRun<T>& device) {
  return shared_bytes_for<Chain>(device.run.net, device.first, device.tile_chains);
}

// The sum over a block, the same in all its threads: always in the same order.
template <class Machine>
COGEN_HD_CALLED double block_sum(const Machine machine, double value) {
  const double of_warp = machine.warp_sum(value);
  if (machine.threads == kWarp) return of_warp;
  double* const values = reinterpret_cast<double*>(machine.shared);
  machine.block_meets();  // nobody reads the last ones any more
  if (machine.thread % kWarp == 0) values[machine.thread / kWarp] = of_warp;
  machine.block_meets();
  double all = values[0];
  for (int w = 1; w < machine.threads / kWarp; ++w) all += values[w];
  return all;
}

// --- the run ------------------------------------------------------------------------------------

// A thread and its part of a chain.
template <class T, class Chain, class Machine>
class ChainThread {
 protected:
  COGEN_HD ChainThread(const DeviceRun<T>& device, const Machine& machine)
      : device_(device), run_(device.run), machine_(machine), each_(device.tiles_each()) {}

  COGEN_HD void share_layers() const {
    if (Chain::kKeepsLayers) {
      copy_layers(machine_, run_.net, device_.first, shared_numbers<T>(machine_.shared));
    }
  }

  COGEN_HD void weigh(int64_t row, int64_t t) const {
    if (!run_.log_weights || !leads()) return;
    const double before = t == 0 ? run_.beta : run_.betas[t - 1];
    run_.log_weights[row] -= (run_.betas[t] - before) * run_.energy[row];
  }

  // Transition number `made` of this call.
  COGEN_HD Outcome<1> moved(int64_t b, int64_t chain, int64_t made, double step) const {
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
    // A lane copies the dimensions that it wrote itself.
    for (int64_t i = machine_.thread % Chain::kThreads; i < size; i += Chain::kThreads) {
      out[row * size + i] = run_.latents[row * size + i];
    }
  }

  COGEN_HD bool leads() const { return machine_.thread % Chain::kThreads == 0; }
  COGEN_HD int64_t chain_of(int64_t tile) const {
    return tile % each_ * device_.tile_chains + machine_.thread / Chain::kThreads;
  }

  const DeviceRun<T>& device_;
  const MlpRun<T>& run_;
  const Machine& machine_;
  const int64_t each_;
};

// Where all chains of an observation share a step size.
template <class T, class Chain, class Machine>
class DeviceThread : ChainThread<T, Chain, Machine> {
 public:
  COGEN_HD DeviceThread(const DeviceRun<T>& device, const Machine& machine)
      : ChainThread<T, Chain, Machine>(device, machine) {}

  COGEN_HD_LARGE void all() const {
    this->share_layers();
    const int64_t tiles = device_.tiles();
    const bool together = device_.blocks_meet();
    int64_t tile = machine_.block;
    do {  // a block without a tile meets the others all the same
      stretch(tile, together ? tiles : lesser_of(tile + 1, tiles));
      tile += together ? tiles : machine_.blocks;
    } while (tile < tiles);
  }

 private:
  using ChainThread<T, Chain, Machine>::device_;
  using ChainThread<T, Chain, Machine>::run_;
  using ChainThread<T, Chain, Machine>::machine_;
  using ChainThread<T, Chain, Machine>::each_;
  using ChainThread<T, Chain, Machine>::leads;
  using ChainThread<T, Chain, Machine>::chain_of;

  // Of every so many-th tile from `first` on.
  COGEN_HD_LARGE void stretch(int64_t first, int64_t end) const {
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
      if (device_.blocks_meet()) {
        machine_.grid_meets();
      } else {
        machine_.block_meets();
      }
    }
  }

  // Transition number `made` of this call, of a tile's chains.
  COGEN_HD_LARGE void transitions(int64_t tile, int64_t made, double step) const {
    const int64_t b = tile / each_, chain = chain_of(tile), t = made / run_.hmc_steps;
    const int64_t row = b * run_.shape.chains + chain;
    const bool present = chain < run_.shape.chains;
    double probability = 0.0;
    if (present) {
      if (made % run_.hmc_steps == 0) this->weigh(row, t);
      const Outcome<1> outcome = this->moved(b, chain, made, step);
      if (leads()) {
        probability = outcome.probability[0];
        // A rejection for not being finite; HUGE_VAL stands for it.
        if (outcome.change[0] == HUGE_VAL) ++run_.non_finite[row];
      }
    }
    TileSums sums{block_sum(machine_, probability), 0.0, 0.0};
    if (ends_temperature(made)) describe(tile, row, present, t, sums);
    if (machine_.thread == 0) sums_after(made)[tile] = sums;
  }

  // Energies of a tile at the end of a temperature, and its latents.
  COGEN_HD_LARGE void describe(int64_t tile, int64_t row, bool present, int64_t t,
                               TileSums& sums) const {
    const bool counts = present && leads();
    const double energy = counts ? run_.energy[row] : 0.0;
    sums.energy = block_sum(machine_, energy);
    const double from_mean = counts ? energy - sums.energy / chains_in(tile) : 0.0;
    sums.spread = block_sum(machine_, from_mean * from_mean);
    if (present) this->store_trace(row, t);
  }

  // What transition `made` of a tile's observation is made with, by how the one before it went. The
  // block of the observation's first tile writes it down for the next time, with the history.
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

  // The same in all threads of the block.
  template <class Value>
  COGEN_HD double sum_over_tiles(const Value& value) const {
    if (each_ == 1) return value(0);
    double sum = 0.0;
    for (int64_t i = machine_.thread; i < each_; i += machine_.threads) sum += value(i);
    return block_sum(machine_, sum);
  }
};

// --- how a run is laid out ----------------------------------------------------------------------

enum class ChainBy { thread, warp };

// Chains of a warp.
COGEN_HD int64_t group_size(ChainBy by) { return by == ChainBy::thread ? kWarp : 1; }

struct Layout {
  ChainBy by;
  int64_t tile_chains;
};

// A thread makes a gradient more slowly than a warp, but up to so many warps on a multiprocessor
// take as long as one for each chain: beyond, its shared memory is what they wait for. Estimated
// from instruction counts, not measured.
constexpr int64_t kWarpsWorthwhile = 8;
constexpr int64_t kMostThreadsInBlock = 128, kMostWarpsInBlock = 16, kFewWarps = 4;

COGEN_HD int64_t power_of_two_from(int64_t least, int64_t low, int64_t high) {
  int64_t power = low;
  while (power < least && power < high) power *= 2;
  return power;
}

// Chains go round the multiprocessors before they share one: blocks are as small as that allows,
// and no larger than an observation.
inline Layout choose_layout(const Shape& shape, int64_t multiprocessors, bool fits_a_thread) {
  const int64_t all = shape.observations * shape.chains;
  const int64_t each = (all + multiprocessors - 1) / multiprocessors;
  const int64_t least = lesser_of(each, shape.chains);
  if (fits_a_thread && each > kWarpsWorthwhile) {
    return {ChainBy::thread, power_of_two_from(least, kWarp, kMostThreadsInBlock)};
  }
  // A few warps do not hinder one another, and an observation in one block needs no other.
  if (shape.chains <= kFewWarps) return {ChainBy::warp, shape.chains};
  return {ChainBy::warp, lesser_of(power_of_two_from(least, 1, kMostWarpsInBlock), shape.chains)};
}

}  // namespace COGEN_ISA
}  // namespace cogen
