// Transitions of many chains: each lane of a thread's packs has a chain of its own.
#pragma once

#include "mlp/mlp_chains_in_lanes.h"
#include "mlp/transition.h"

namespace cogen {
namespace COGEN_ISA {

// A Mapping of transition.h: a thread updates all dimensions of its chains and waits for no other.
// Net is Mlp<T>, or a StaticMlp.
template <class T, class Net>
struct LaneMapping {
  static constexpr int kLanes = Lanes<T>::kCount;

  const Net& net;
  const Observed<T>& observed;
  Lanes<T>* work;  // room for an evaluation

  COGEN_HD int size() const { return latent_size(net); }
  COGEN_HD int first() const { return 0; }
  COGEN_HD int stride() const { return 1; }
  COGEN_HD bool leads() const { return true; }
  COGEN_HD void wait() const {}
  COGEN_HD void sum(double (&)[kLanes]) const {}

  COGEN_HD_LARGE void draw_momentum(const NoiseStream& stream, uint32_t first_chain,
                                    Lanes<T>* v) const {
    const int dimensions = size();
    T four[4][kLanes];
    for (int at = 0; at < dimensions; at += 4) {
      normals_of(stream, kMomentumPurpose, static_cast<uint32_t>(at / 4), first_chain, four);
      for (int j = 0; j < 4 && at + j < dimensions; ++j) v[at + j] = Lanes<T>::load(four[j]);
    }
  }

  COGEN_HD void evaluate(const Lanes<T>* q, double (&energy)[kLanes], Lanes<T>* force) const {
    energy_and_grad(net, observed, q, energy, force, work);
  }
};

// Tiles of as many chains as there are lanes. Lanes beyond the last chain of an observation repeat
// the first chain of their tile; their results are discarded.
template <class T>
struct ChainsInLanes {
  static constexpr int kLanes = Lanes<T>::kCount;

  // How many numbers of type T a thread needs beside its tile.
  static COGEN_HD_LARGE int64_t room(const Mlp<T>& net) {
    return kLanes * (net.width[0] + workspace(net));
  }
  // How many numbers of type T the latents of a tile take.
  static COGEN_HD_LARGE int64_t entries(int size) { return static_cast<int64_t>(size) * kLanes; }

  // The settings' step sizes, from those of the tile's lanes.
  static COGEN_HD StepSizes<T> own_steps(const double* steps) {
    StepSizes<T> own;
    for (int l = 0; l < kLanes; ++l) own.of[l] = steps[l];
    return own;
  }

  template <class Net, class Step>
  static COGEN_HD_LARGE void transition(const Net& net, const Observed<T>& observed,
                                        const NoiseStream& stream,
                                        const TransitionSettings<Step>& settings,
                                        const ChainTile<T>& tile, T* room, Outcome<kLanes>& out) {
    Lanes<T>* const force = reinterpret_cast<Lanes<T>*>(room);
    const LaneMapping<T, Net> mapping{net, observed, force + latent_size(net)};
    COGEN_ISA::transition(mapping, stream, settings, tile, force, out);
  }
};

}  // namespace COGEN_ISA
}  // namespace cogen
