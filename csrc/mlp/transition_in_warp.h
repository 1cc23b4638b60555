// Transitions of a chain by a warp: lane l updates the dimensions l, l + 32, ... of the latent.
#pragma once

#include "mlp/mlp_in_warp.h"
#include "mlp/transition.h"

namespace cogen {
namespace COGEN_ISA {

// A Mapping of transition.h. Lanes read one another's numbers from the warp's part of shared
// memory. kHidden is the width of all hidden layers if there is code compiled for it, or 0; Layers
// says where the layers are.
template <int kHidden, class T, class Machine, class Layers>
struct WarpMapping {
  static constexpr int kLanes = 1;

  const Machine& machine;
  const Mlp<T>& net;
  const Layers& layers;
  const Observed<T>& observed;
  T* work;  // room for an evaluation

  COGEN_HD int size() const { return net.width[0]; }
  COGEN_HD int first() const { return machine.thread % kWarp; }
  COGEN_HD int stride() const { return kWarp; }
  COGEN_HD bool leads() const { return first() == 0; }
  COGEN_HD void wait() const { machine.sync_warp(); }
  COGEN_HD void sum(double (&value)[1]) const { value[0] = machine.warp_sum(value[0]); }

  // Lanes take four neighbouring dimensions each.
  COGEN_HD void draw_momentum(const NoiseStream& stream, uint32_t chain, Lanes<T>* v) const {
    for (int at = 4 * first(); at < size(); at += 4 * kWarp) {
      T four[4][1];
      normals_of<T>(stream, kMomentumPurpose, static_cast<uint32_t>(at / 4), chain, four);
      for (int j = 0; j < 4 && at + j < size(); ++j) v[at + j] = Lanes<T>::load(four[j]);
    }
  }

  COGEN_HD void evaluate(const Lanes<T>* q, double (&energy)[1], Lanes<T>* force) const {
    energy[0] = energy_and_grad_in_warp<kHidden>(machine, net, layers, observed,
                                                 reinterpret_cast<const T*>(q),
                                                 reinterpret_cast<T*>(force), work);
  }
};

// How many numbers of type T a warp is given beside the position and momentum of its chain.
template <class T>
COGEN_HD int64_t room_of_warp(const Mlp<T>& net) {
  return 3 * padded(net.width[0]) + workspace_of_warp(net);
}

template <int kHidden, class T, class Machine, class Layers>
COGEN_HD_LARGE Outcome<1> transition_in_warp(const Machine& machine, const Mlp<T>& net,
                                             const Layers& layers, const Observed<T>& observed,
                                             const NoiseStream& stream,
                                             const TransitionSettings<>& settings,
                                             const ChainTile<T>& chain, T* room) {
  const WarpMapping<kHidden, T, Machine, Layers> mapping{machine, net, layers, observed,
                                                         room + padded(net.width[0])};
  Outcome<1> outcome;
  transition(mapping, stream, settings, chain, reinterpret_cast<Lanes<T>*>(room), outcome);
  return outcome;
}

}  // namespace COGEN_ISA
}  // namespace cogen
