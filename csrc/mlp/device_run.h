// The published run on a CUDA device: its arguments, and the sums that its threads share.
#pragma once

#include "mlp/mlp_layers.h"
#include "mlp/own_step_history.h"

namespace cogen {
namespace COGEN_ISA {

COGEN_HD int64_t lesser_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Sums over the chains of a tile after a transition. `spread` is the sum of squared differences
// from the tile's mean energy.
struct TileSums {
  double probability, energy, spread;
};

struct StepState {
  double step_size, running;
};

// A run as kernels get it. All pointers are to the memory of the device; `rule` and `adapts`
// replace the run's pointer to its rule, which is to the memory of the host.
template <class T>
struct DeviceRun {
  MlpRun<T> run;
  StepRule rule;
  bool adapts;
  int64_t tile_chains;         // chains that a block moves at once
  int first[kMostLayers + 1];  // where each layer begins among the packed ones
  // Shared where chains share a step size, for two transitions in turn.
  TileSums* sums;    // (2, tiles)
  StepState* steps;  // (2, B)
  // Shared where each chain has a step size of its own.
  Groups groups;
  GroupSums* group_sums;  // (steps, B, groups)

  COGEN_HD int64_t tiles_each() const {
    return (run.shape.chains + tile_chains - 1) / tile_chains;
  }
  COGEN_HD int64_t tiles() const { return run.shape.observations * tiles_each(); }
  // Whether the chains of an observation, which share a step size, are in several blocks.
  COGEN_HD bool needs_grid_sync() const { return tiles_each() > 1; }
};

// A run as kernels get it, but without a layout and without memory for what threads share.
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

}  // namespace COGEN_ISA
}  // namespace cogen
