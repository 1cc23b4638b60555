// How the chains of a run on the CPU are cut into tiles.
#pragma once

#include "common/kernels.h"
#include "common/simd_pack.h"

namespace cogen {
namespace COGEN_ISA {

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Observations with fewer chains than this have tiles of a single chain: a tile whose lanes have a
// chain each takes as long for one chain as for all its lanes.
template <class T>
constexpr int64_t kFewChains = Lanes<T>::kCount / 3;

// The tiles of a run. Layout is ChainsInLanes or UnitsInLanes.
template <class T, class Layout>
struct Tiling {
  static constexpr int kLanes = Layout::kLanes;
  int64_t observations, chains, size, per_observation, tiles;

  explicit Tiling(const Shape& shape)
      : observations(shape.observations),
        chains(shape.chains),
        size(shape.size),
        per_observation((chains + kLanes - 1) / kLanes),
        tiles(observations * per_observation) {}

  int64_t observation(int64_t tile) const { return tile / per_observation; }
  int64_t first_chain(int64_t tile) const { return tile % per_observation * kLanes; }
  // How many lanes of a tile have a chain of their own.
  int lanes(int64_t tile) const {
    return static_cast<int>(at_most(kLanes, chains - first_chain(tile)));
  }
  // How many threads are of use: more than one for each tile would only wait for the others.
  int team(int threads) const { return static_cast<int>(at_most(threads, tiles)); }
  // The row of a tile's first chain in the (B, N) arrays.
  int64_t row(int64_t tile) const { return observation(tile) * chains + first_chain(tile); }
};

}  // namespace COGEN_ISA
}  // namespace cogen
