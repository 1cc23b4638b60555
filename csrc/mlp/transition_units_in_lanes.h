// Transitions of a single chain on the CPU: the units of a layer are side by side in vectors.
//
// This does not use the source of transition.h: its sums over the dimensions are vectorised, so
// they have another order than those of a Mapping, which add one dimension after the other. And a
// gradient waits for the one before it, so small nets keep the trajectory in registers, where a
// Mapping has arrays. Kick, drift, Hamiltonian and Metropolis test are those of the other CPU
// kernels.
#pragma once

#include "mlp/mlp_small.h"
#include "mlp/mlp_units_in_lanes.h"
#include "mlp/transition.h"

namespace cogen {
namespace COGEN_ISA {

// Whether there is code for some widths of hidden layers that are known at compile time. That is
// most of what there is to compile, so it is left out for the instruction set that only old
// machines use.
#if defined(COGEN_NO_STATIC_WIDTHS)
constexpr bool kHasStaticWidths = false;
#else
constexpr bool kHasStaticWidths = true;
#endif

// Tiles of one chain.
template <class T>
struct UnitsInLanes {
  static constexpr int kLanes = 1;

  // As those of ChainsInLanes.
  static int64_t room(const Mlp<T>& net) {
    return padded(net.width[0]) + workspace_of_one(net);
  }
  static int64_t entries(int size) { return padded(size); }
  static double own_steps(const double* steps) { return *steps; }

  static void transition(const Mlp<T>& net, const Observed<T>& observed,
                         const NoiseStream& stream, const TransitionSettings<>& settings,
                         const ChainTile<T>& tile, T* room, Outcome<1>& out) {
    if constexpr (kHasStaticWidths) {
      switch (static_hidden_width(net)) {
        case 16:
          return transition_of<16>(net, observed, stream, settings, tile, room, out);
        case 20:
          return transition_of<20>(net, observed, stream, settings, tile, room, out);
        case 32:
          return transition_of<32>(net, observed, stream, settings, tile, room, out);
      }
    }
    transition_of<0>(net, observed, stream, settings, tile, room, out);
  }

 private:
  static constexpr const T* kUnitMass = nullptr;

  // kHidden is the width of all hidden layers if there is code compiled for it, or 0.
  template <int kHidden>
  static void transition_of(const Mlp<T>& net, const Observed<T>& observed,
                            const NoiseStream& stream, const TransitionSettings<>& settings,
                            const ChainTile<T>& tile, T* force, Outcome<1>& out) {
    const int size = net.width[0];
    const Potential& at = settings.potential;
    draw_momentum(stream, size, tile.first_chain, tile.momentum);
    const double start =
        hamiltonian(tile.latents, tile.momentum, kUnitMass, size, tile.energy[0], at);
    const double energy = proposal<kHidden>(net, observed, settings, tile, force);
    const double end = final_hamiltonian(tile.position, tile.momentum, force, kUnitMass, size,
                                         energy, at, kick_over(settings, 0.5));
    const Words words = philox(stream.seed, kAcceptPurpose << kPurposeShift, stream.transition,
                               tile.first_chain, stream.observation);
    const Verdict verdict = metropolis(start, end, to_uniform<double>(words.w[0]));
    out.probability[0] = verdict.probability;
    out.change[0] = verdict.change;
    if (!verdict.accepted) return;
    tile.energy[0] = energy;
    for (int i = 0; i < size; ++i) {
      tile.latents[i] = tile.position[i];
      tile.grad[i] = force[i];
    }
  }

  static KickSpans<T> kick_over(const TransitionSettings<>& settings, double part) {
    return spans_of<T>(settings.potential, settings.step_size, part);
  }

  // Goes from a tile's latents to its position and momentum, without the last half kick. Returns
  // the energy there; `force` gets its gradient, and room for an evaluation comes after it.
  template <int kHidden>
  static double proposal(const Mlp<T>& net, const Observed<T>& observed,
                         const TransitionSettings<>& settings, const ChainTile<T>& tile,
                         T* force) {
    if constexpr (kHidden > 0) {
      typedef SmallMlp<T, kHidden, Activation::relu> Relu;
      typedef SmallMlp<T, kHidden, Activation::leaky_relu> Leaky;
      if (Relu::fits(net)) {
        return trajectory_in_registers(Relu(net, observed), observed, settings, tile, force);
      }
      if (Leaky::fits(net)) {
        return trajectory_in_registers(Leaky(net, observed), observed, settings, tile, force);
      }
    }
    return trajectory<kHidden>(net, observed, settings, tile, force);
  }

  template <int kHidden>
  static double trajectory(const Mlp<T>& net, const Observed<T>& observed,
                           const TransitionSettings<>& settings, const ChainTile<T>& tile,
                           T* force) {
    const int size = net.width[0];
    T *const q = tile.position, *const v = tile.momentum, *const work = force + padded(size);
    const T step = static_cast<T>(settings.step_size);
    const KickSpans<T> full = kick_over(settings, 1.0);
    kick_and_drift(tile.latents, q, v, tile.grad, kUnitMass, size, kick_over(settings, 0.5), step);
    double energy = energy_and_grad<kHidden>(net, observed, q, force, work);
    for (int made = 1; made < settings.leapfrog_steps; ++made) {
      kick_and_drift(q, q, v, force, kUnitMass, size, full, step);
      energy = energy_and_grad<kHidden>(net, observed, q, force, work);
    }
    return energy;
  }

  // The same in registers; Small is a SmallMlp.
  template <class Small>
  static double trajectory_in_registers(const Small& net, const Observed<T>& observed,
                                        const TransitionSettings<>& settings,
                                        const ChainTile<T>& tile, T* force) {
    const Units<T> step = Units<T>::of(static_cast<T>(settings.step_size));
    Units<T> q = few(tile.latents), v = few(tile.momentum), g = few(tile.grad), outputs{};
    KickSpans<T> spans = kick_over(settings, 0.5);
    for (int made = 0; made < settings.leapfrog_steps; ++made) {
      v = v - q * spans.prior - g * spans.misfit;  // the gradient comes last, as it is known last
      q = q + v * step;
      g = net.grad(q, &outputs);
      spans = kick_over(settings, 1.0);
    }
    q.store(tile.position);
    v.store(tile.momentum);
    g.store(force);
    T last[kUnits];
    outputs.store(last);
    return misfit_in_place(observed, 2, last);
  }

  // Two numbers, and zeros in the other places of a pack.
  static Units<T> few(const T* numbers) {
    T all[kUnits] = {numbers[0], numbers[1]};
    return Units<T>::load(all);
  }

  static void draw_momentum(const NoiseStream& stream, int size, uint32_t chain, T* out) {
    for (int at = 0; at < size; at += 4) {
      const Words words =
          philox(stream.seed, (kMomentumPurpose << kPurposeShift) | static_cast<uint32_t>(at / 4),
                 stream.transition, chain, stream.observation);
      T four[4];
      normal_pair(words.w[0], words.w[1], &four[0], &four[1]);
      normal_pair(words.w[2], words.w[3], &four[2], &four[3]);
      for (int j = 0; j < 4 && at + j < size; ++j) out[at + j] = four[j];
    }
  }
};

}  // namespace COGEN_ISA
}  // namespace cogen
