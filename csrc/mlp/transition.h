// One HMC transition of a tile of chains: momentum refresh, L leapfrog steps, Metropolis test and
// selection. CPU vectors and a device's threads and warps compile this one source;
// cogen_fast/ops/reference.py is the definition.
//
// A tile is a few neighbouring chains of an observation that are moved at once. A Mapping says how
// their chains and dimensions are laid over lanes and threads:
//
//   kLanes             how many chains are side by side in a pack
//   size()             how many dimensions a latent has
//   first(), stride()  which of them this thread updates
//   draw_momentum(stream, first_chain, v)
//   evaluate(q, energy, force)  this thread's part of the energies, and their gradient
//   sum(values)        replaces a value for each lane by its sum over the threads of the tile
//   wait()             returns once those threads see what all of them have written
//   leads()            whether this thread writes what belongs to a chain as a whole
#pragma once

#include "common/hmc_math.h"
#include "common/simd_pack.h"
#include "mlp/mlp.h"
#include "mlp/tile_noise.h"

namespace cogen {
namespace COGEN_ISA {

// The step sizes of a tile's chains where each has its own.
template <class T>
struct StepSizes {
  double of[Lanes<T>::kCount];
};

// What a transition is made with. Step is a double, or StepSizes<T>.
template <class Step = double>
struct TransitionSettings {
  Potential potential;
  Step step_size;
  int leapfrog_steps;
};

// The state of a tile's chains, and where their proposals go: the position at the end of the
// trajectory, and the momentum before the last half kick. Entry i of lane l is at i * lanes + l.
template <class T>
struct ChainTile {
  T *latents, *grad;
  T *position, *momentum;
  double* energy;  // (lanes)
  uint32_t first_chain;
};

// How a transition went for each lane.
template <int kLanes>
struct Outcome {
  double probability[kLanes], change[kLanes];
};

// The potential of temperature t of a run.
template <class T>
COGEN_HD Potential potential_of(const MlpRun<T>& run, int64_t t) {
  const double beta = run.betas[t];
  return {beta, run.paper_form ? 1.0 - beta : 1.0};
}

// The noise of transition number `made` of a run, for one observation.
template <class T>
COGEN_HD NoiseStream noise_of(const MlpRun<T>& run, int64_t observation, int64_t made) {
  return {run.noise.seed, static_cast<uint32_t>(run.noise.transition[observation] + made),
          static_cast<uint32_t>(run.noise.observation[observation])};
}

// What a kick over `part` of a step multiplies its forces by.
template <class T>
COGEN_HD KickSpans<T> spans_of(const Potential& at, double step, double part) {
  return kick_spans<T>(at.beta, at.prior_weight, part * step);
}

template <class T>
COGEN_HD KickSpans<Lanes<T>> spans_of(const Potential& at, const StepSizes<T>& step, double part) {
  T misfit[Lanes<T>::kCount], prior[Lanes<T>::kCount];
  for (int l = 0; l < Lanes<T>::kCount; ++l) {
    const KickSpans<T> spans = spans_of<T>(at, step.of[l], part);
    misfit[l] = spans.misfit;
    prior[l] = spans.prior;
  }
  return {Lanes<T>::load(misfit), Lanes<T>::load(prior)};
}

// What a drift multiplies the momentum by: a number, or one for each lane.
template <class T>
COGEN_HD T drift_of(double step) {
  return static_cast<T>(step);
}

template <class T>
COGEN_HD Lanes<T> drift_of(const StepSizes<T>& step) {
  T drift[Lanes<T>::kCount];
  for (int l = 0; l < Lanes<T>::kCount; ++l) drift[l] = static_cast<T>(step.of[l]);
  return Lanes<T>::load(drift);
}

// The momentum after a kick. Span is T, or Lanes<T>.
template <class T, class Span>
COGEN_HD Lanes<T> kicked(const Lanes<T>& momentum, const Lanes<T>& position, const Lanes<T>& grad,
                         const KickSpans<Span>& spans) {
  return momentum - grad * spans.misfit - position * spans.prior;
}

// Adds the squares of an entry, in double, to |z|^2 and |v|^2 of the lanes.
template <class T>
COGEN_HD_LARGE void add_squares(const Lanes<T>& z, const Lanes<T>& v,
                                double (&prior)[Lanes<T>::kCount],
                                double (&kinetic)[Lanes<T>::kCount]) {
  T position[Lanes<T>::kCount], momentum[Lanes<T>::kCount];
  z.store(position);
  v.store(momentum);
  COGEN_SIMD
  for (int l = 0; l < Lanes<T>::kCount; ++l) {
    const double q = position[l], p = momentum[l];
    prior[l] += q * q;
    kinetic[l] += p * p;
  }
}

// `force` has room for a latent's gradient.
template <class Mapping, class T, class Step>
COGEN_HD_LARGE void transition(const Mapping& mapping, const NoiseStream& stream,
                               const TransitionSettings<Step>& settings, const ChainTile<T>& tile,
                               Lanes<T>* force, Outcome<Mapping::kLanes>& out) {
  constexpr int kLanes = Mapping::kLanes;
  static_assert(kLanes == Lanes<T>::kCount, "a pack holds an entry of every chain of a tile");
  const int size = mapping.size(), first = mapping.first(), stride = mapping.stride();
  Lanes<T>* const z = reinterpret_cast<Lanes<T>*>(tile.latents);
  Lanes<T>* const grad = reinterpret_cast<Lanes<T>*>(tile.grad);
  Lanes<T>* const q = reinterpret_cast<Lanes<T>*>(tile.position);
  Lanes<T>* const v = reinterpret_cast<Lanes<T>*>(tile.momentum);
  const Potential& at = settings.potential;
  const auto step = drift_of<T>(settings.step_size);
  const auto half = spans_of<T>(at, settings.step_size, 0.5);
  const auto full = spans_of<T>(at, settings.step_size, 1.0);

  mapping.draw_momentum(stream, tile.first_chain, v);
  mapping.wait();
  double prior[kLanes] = {}, kinetic[kLanes] = {}, start[kLanes], energy[kLanes];
  for (int i = first; i < size; i += stride) {
    add_squares(z[i], v[i], prior, kinetic);
    v[i] = kicked(v[i], z[i], grad[i], half);
    q[i] = z[i] + v[i] * step;
  }
  mapping.sum(prior);
  mapping.sum(kinetic);
  for (int l = 0; l < kLanes; ++l) {
    start[l] = hamiltonian_of(tile.energy[l], prior[l], kinetic[l], at);
    prior[l] = kinetic[l] = 0.0;
  }

  for (int made = 0; made < settings.leapfrog_steps; ++made) {
    for (int i = first; i < size && made > 0; i += stride) {
      v[i] = kicked(v[i], q[i], force[i], full);
      q[i] = q[i] + v[i] * step;
    }
    mapping.wait();
    mapping.evaluate(q, energy, force);
  }
  for (int i = first; i < size; i += stride) {
    add_squares(q[i], kicked(v[i], q[i], force[i], half), prior, kinetic);
  }
  mapping.sum(prior);
  mapping.sum(kinetic);
  mapping.sum(energy);

  double uniform[kLanes];
  draw_uniforms<T>(stream, tile.first_chain, uniform);
  T keep[kLanes];
  bool any = false;
  for (int l = 0; l < kLanes; ++l) {
    const double end = hamiltonian_of(energy[l], prior[l], kinetic[l], at);
    const Verdict verdict = metropolis(start[l], end, uniform[l]);
    out.probability[l] = verdict.probability;
    out.change[l] = verdict.change;
    keep[l] = verdict.accepted ? T(1) : T(0);
    any = any || verdict.accepted;
    if (verdict.accepted && mapping.leads()) tile.energy[l] = energy[l];
  }
  if (!any) return;
  const Lanes<T> accepted = Lanes<T>::load(keep);
  for (int i = first; i < size; i += stride) {
    z[i] = where_positive(accepted, q[i], z[i]);
    grad[i] = where_positive(accepted, force[i], grad[i]);
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
