// A whole annealed run for a generator of dense layers: Algorithm 1 as published. One text for CPU
// and CUDA; cogen_fast/sampler and cogen_fast/ops/reference.py are the definition.
//
// Chains of an observation come in tiles: as many chains side by side as there are lanes, or a
// single one, whose units are side by side. What a tile needs between transitions lies together.
// Lanes beyond the last chain repeat the first chain of their tile; their results are discarded.
#pragma once

#include "mlp/mlp.h"
#include "mlp/mlp_small.h"
#include "common/step_math.h"

namespace cogen {
namespace COGEN_ISA {

// Whether widths that the compiler knows have code of their own, which is most of what there is to
// compile: not where another instruction set has it, which all but old machines use.
#if defined(COGEN_ANY_SIZE)
constexpr bool kKnowsSizes = false;
#else
constexpr bool kKnowsSizes = true;
#endif

constexpr uint32_t kMomentumPurpose = 1, kAcceptPurpose = 2;
constexpr int kPurposeBits = 24;

// Where one observation's noise stands.
struct Stream {
  uint64_t seed;
  uint32_t transition, observation;
};

// The step sizes of a tile's chains, where each has its own.
template <class T>
struct StepOfLane {
  double of[Lanes<T>::kCount];
};

// What one transition is made with. Step is a double, or StepOfLane<T>.
template <class T, class Step = double>
struct Move {
  Potential potential;
  Step step_size;
  const T* inverse_mass;  // (d) or null
  int leapfrog_steps;
};

// A tile's state, and where its proposal goes: the end of a trajectory, its momentum without the
// last half kick. Entry i of lane l is at i * lanes + l.
template <class T>
struct Tile {
  T *latents, *grad;
  T *position, *momentum;
  double* energy;  // (lanes)
  uint32_t first_chain;
};

template <class T>
COGEN_HD double mass_at(const T* inverse_mass, int i) {
  return inverse_mass ? static_cast<double>(inverse_mass[i]) : 1.0;
}

// Standard normals for four neighbouring dimensions of a tile's chains.
template <class T>
COGEN_HD_LARGE void normals_of(const Stream& stream, uint32_t purpose, uint32_t block,
                               uint32_t first_chain, T (&out)[4][Lanes<T>::kCount]) {
  constexpr int lanes = Lanes<T>::kCount;
  uint32_t words[4][lanes];
  COGEN_SIMD
  for (int l = 0; l < lanes; ++l) {
    const Words w = philox(stream.seed, (purpose << kPurposeBits) | block, stream.transition,
                           first_chain + static_cast<uint32_t>(l), stream.observation);
    words[0][l] = w.w[0];
    words[1][l] = w.w[1];
    words[2][l] = w.w[2];
    words[3][l] = w.w[3];
  }
  COGEN_SIMD
  for (int l = 0; l < lanes; ++l) {
    normal_pair(words[0][l], words[1][l], &out[0][l], &out[1][l]);
    normal_pair(words[2][l], words[3][l], &out[2][l], &out[3][l]);
  }
}

template <class T>
COGEN_HD_LARGE void draw_normals(const Stream& stream, uint32_t purpose, int size,
                                 uint32_t first_chain, Lanes<T>* out) {
  T four[4][Lanes<T>::kCount];
  for (int at = 0; at < size; at += 4) {
    normals_of(stream, purpose, static_cast<uint32_t>(at / 4), first_chain, four);
    for (int j = 0; j < 4 && at + j < size; ++j) out[at + j] = Lanes<T>::load(four[j]);
  }
}

template <class T>
COGEN_HD_LARGE void draw_uniforms(const Stream& stream, uint32_t purpose, uint32_t first_chain,
                                  double (&out)[Lanes<T>::kCount]) {
  COGEN_SIMD
  for (int l = 0; l < Lanes<T>::kCount; ++l) {
    const Words w = philox(stream.seed, purpose << kPurposeBits, stream.transition,
                           first_chain + static_cast<uint32_t>(l), stream.observation);
    out[l] = to_uniform<double>(w.w[0]);
  }
}

// Sums of squares over the dimensions, in double: |z|^2 and v' M^-1 v.
template <class T>
COGEN_HD_LARGE void add_squares(const Lanes<T>& z, const Lanes<T>& v, double inverse_mass,
                                double (&prior)[Lanes<T>::kCount],
                                double (&kinetic)[Lanes<T>::kCount]) {
  T position[Lanes<T>::kCount], momentum[Lanes<T>::kCount];
  z.store(position);
  v.store(momentum);
  COGEN_SIMD
  for (int l = 0; l < Lanes<T>::kCount; ++l) {
    const double q = position[l], p = momentum[l];
    prior[l] += q * q;
    kinetic[l] += p * p * inverse_mass;
  }
}

// What a kick over `part` of a step multiplies its forces by.
template <class T>
COGEN_HD KickSpans<T> spans_of(const Potential& at, double step, double part) {
  return kick_spans<T>(at.beta, at.prior_weight, part * step);
}

template <class T>
COGEN_HD KickSpans<Lanes<T>> spans_of(const Potential& at, const StepOfLane<T>& step, double part) {
  T misfit[Lanes<T>::kCount], prior[Lanes<T>::kCount];
  for (int l = 0; l < Lanes<T>::kCount; ++l) {
    const KickSpans<T> spans = spans_of<T>(at, step.of[l], part);
    misfit[l] = spans.misfit;
    prior[l] = spans.prior;
  }
  return {Lanes<T>::load(misfit), Lanes<T>::load(prior)};
}

// What a drift multiplies the velocity by.
template <class T>
COGEN_HD T drift_of(double step) {
  return static_cast<T>(step);
}

template <class T>
COGEN_HD Lanes<T> drift_of(const StepOfLane<T>& step) {
  T drift[Lanes<T>::kCount];
  for (int l = 0; l < Lanes<T>::kCount; ++l) drift[l] = static_cast<T>(step.of[l]);
  return Lanes<T>::load(drift);
}

// Span is T, or Lanes<T>.
template <class T, class Span>
COGEN_HD Lanes<T> kicked(const Lanes<T>& momentum, const Lanes<T>& position, const Lanes<T>& grad,
                         const KickSpans<Span>& spans) {
  return momentum - grad * spans.misfit - position * spans.prior;
}

// Many chains: one per lane.
template <class T>
struct ChainsInLanes {
  static constexpr int kLanes = Lanes<T>::kCount;

  // What happened in a transition.
  struct Outcome {
    double probability[kLanes], change[kLanes];
  };

  // Numbers of type T that a thread needs for itself.
  static COGEN_HD_LARGE int64_t room(const Mlp<T>& net) {
    return kLanes * (net.width[0] + workspace(net));
  }
  static COGEN_HD_LARGE int64_t entries(int size) { return static_cast<int64_t>(size) * kLanes; }

  // Those of a tile's lanes, for a move.
  static COGEN_HD StepOfLane<T> own_steps(const double* steps) {
    StepOfLane<T> own;
    for (int l = 0; l < kLanes; ++l) own.of[l] = steps[l];
    return own;
  }

  // Momentum refresh, L leapfrog steps, Metropolis test, selection. Net is Mlp<T>, or one whose
  // widths the compiler knows.
  template <class Net, class Step>
  static COGEN_HD_LARGE void transition(const Net& net, const Observed<T>& observed,
                                        const Stream& stream, const Move<T, Step>& move,
                                        const Tile<T>& tile, T* room, Outcome& out) {
    const int size = latent_size(net);
    Lanes<T>* const z = reinterpret_cast<Lanes<T>*>(tile.latents);
    Lanes<T>* const grad = reinterpret_cast<Lanes<T>*>(tile.grad);
    Lanes<T>* const q = reinterpret_cast<Lanes<T>*>(tile.position);
    Lanes<T>* const v = reinterpret_cast<Lanes<T>*>(tile.momentum);
    Lanes<T>* const force = reinterpret_cast<Lanes<T>*>(room);
    Lanes<T>* const work = force + size;
    const T* mass = move.inverse_mass;
    const Potential& at = move.potential;
    const auto step = drift_of<T>(move.step_size);
    const auto half = spans_of<T>(at, move.step_size, 0.5);
    const auto full = spans_of<T>(at, move.step_size, 1.0);
    const auto drifted = [&](int i, const Lanes<T>& position) {
      return position + (mass ? v[i] * mass[i] : v[i]) * step;
    };

    draw_normals(stream, kMomentumPurpose, size, tile.first_chain, v);
    double prior[kLanes] = {}, kinetic[kLanes] = {}, start[kLanes], energy[kLanes];
    for (int i = 0; i < size; ++i) {
      if (mass) v[i] = v[i] * (T(1) / square_root(mass[i]));
      add_squares(z[i], v[i], mass_at(mass, i), prior, kinetic);
      v[i] = kicked(v[i], z[i], grad[i], half);
      q[i] = drifted(i, z[i]);
    }
    for (int l = 0; l < kLanes; ++l) {
      start[l] = hamiltonian_of(tile.energy[l], prior[l], kinetic[l], at);
      prior[l] = kinetic[l] = 0.0;
    }
    energy_and_grad(net, observed, q, energy, force, work);
    for (int made = 1; made < move.leapfrog_steps; ++made) {
      for (int i = 0; i < size; ++i) {
        v[i] = kicked(v[i], q[i], force[i], full);
        q[i] = drifted(i, q[i]);
      }
      energy_and_grad(net, observed, q, energy, force, work);
    }
    for (int i = 0; i < size; ++i) {
      add_squares(q[i], kicked(v[i], q[i], force[i], half), mass_at(mass, i), prior, kinetic);
    }

    double uniform[kLanes];
    draw_uniforms<T>(stream, kAcceptPurpose, tile.first_chain, uniform);
    T keep[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const double end = hamiltonian_of(energy[l], prior[l], kinetic[l], at);
      const Verdict verdict = metropolis(start[l], end, uniform[l]);
      out.probability[l] = verdict.probability;
      out.change[l] = verdict.change;
      keep[l] = verdict.accepted ? T(1) : T(0);
      if (verdict.accepted) tile.energy[l] = energy[l];
    }
    const Lanes<T> accepted = Lanes<T>::load(keep);
    for (int i = 0; i < size; ++i) {
      z[i] = where_positive(accepted, q[i], z[i]);
      grad[i] = where_positive(accepted, force[i], grad[i]);
    }
  }
};

// Few chains: one at a time, the units of its layers side by side.
template <class T>
struct UnitsInLanes {
  static constexpr int kLanes = 1;

  struct Outcome {
    double probability[1], change[1];
  };

  static int64_t room(const Mlp<T>& net) {
    return padded(net.width[0]) + workspace_of_one(net);
  }
  static int64_t entries(int size) { return padded(size); }

  static double own_steps(const double* steps) { return *steps; }

  static void transition(const Mlp<T>& net, const Observed<T>& observed, const Stream& stream,
                         const Move<T>& move, const Tile<T>& tile, T* room, Outcome& out) {
    if constexpr (kKnowsSizes) {
      switch (known_hidden(net)) {
        case 16:
          return moved<16>(net, observed, stream, move, tile, room, out);
        case 20:
          return moved<20>(net, observed, stream, move, tile, room, out);
        case 32:
          return moved<32>(net, observed, stream, move, tile, room, out);
      }
    }
    moved<0>(net, observed, stream, move, tile, room, out);
  }

 private:
  template <int kHidden>
  static void moved(const Mlp<T>& net, const Observed<T>& observed, const Stream& stream,
                    const Move<T>& move, const Tile<T>& tile, T* room, Outcome& out) {
    const int size = net.width[0];
    T* const force = room;
    const T* mass = move.inverse_mass;
    const Potential& at = move.potential;

    normals_of_one(stream, size, tile.first_chain, tile.momentum);
    if (mass) apply_mass(tile.momentum, mass, size);
    const double start =
        hamiltonian(tile.latents, tile.momentum, mass, size, tile.energy[0], at);
    const double energy = proposal<kHidden>(net, observed, move, tile, force);
    const double end = final_hamiltonian(tile.position, tile.momentum, force, mass, size, energy,
                                         at, kick_over(move, 0.5));
    const Words words = philox(stream.seed, kAcceptPurpose << kPurposeBits, stream.transition,
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

  static KickSpans<T> kick_over(const Move<T>& move, double part) {
    return spans_of<T>(move.potential, move.step_size, part);
  }

  // From a tile's latents to its position and momentum, without the last half kick: the energy
  // there; its gradient is `force`, and room for the rest comes after.
  template <int kHidden>
  static double proposal(const Mlp<T>& net, const Observed<T>& observed, const Move<T>& move,
                         const Tile<T>& tile, T* force) {
    if constexpr (kHidden > 0) {
      typedef SmallMlp<T, kHidden, Activation::relu> Relu;
      typedef SmallMlp<T, kHidden, Activation::leaky_relu> Leaky;
      if (Relu::fits(net)) return trajectory_of(Relu(net, observed), observed, move, tile, force);
      if (Leaky::fits(net)) return trajectory_of(Leaky(net, observed), observed, move, tile, force);
    }
    return trajectory<kHidden>(net, observed, move, tile, force);
  }

  template <int kHidden>
  static double trajectory(const Mlp<T>& net, const Observed<T>& observed, const Move<T>& move,
                           const Tile<T>& tile, T* force) {
    const int size = net.width[0];
    T *const q = tile.position, *const v = tile.momentum, *const work = force + padded(size);
    const T* mass = move.inverse_mass;
    const T step = static_cast<T>(move.step_size);
    const KickSpans<T> full = kick_over(move, 1.0);
    kick_and_drift(tile.latents, q, v, tile.grad, mass, size, kick_over(move, 0.5), step);
    double energy = energy_and_grad<kHidden>(net, observed, q, force, work);
    for (int made = 1; made < move.leapfrog_steps; ++made) {
      kick_and_drift(q, q, v, force, mass, size, full, step);
      energy = energy_and_grad<kHidden>(net, observed, q, force, work);
    }
    return energy;
  }

  // The same in registers; Small is a SmallMlp.
  template <class Small>
  static double trajectory_of(const Small& net, const Observed<T>& observed, const Move<T>& move,
                              const Tile<T>& tile, T* force) {
    const T step = static_cast<T>(move.step_size);
    const Units<T> drift =
        move.inverse_mass ? few(move.inverse_mass) * step : Units<T>::of(step);
    Units<T> q = few(tile.latents), v = few(tile.momentum), g = few(tile.grad), outputs{};
    KickSpans<T> spans = kick_over(move, 0.5);
    for (int made = 0; made < move.leapfrog_steps; ++made) {
      v = v - q * spans.prior - g * spans.misfit;  // in this order: the gradient comes last
      q = q + v * drift;
      g = net.grad(q, &outputs);
      spans = kick_over(move, 1.0);
    }
    q.store(tile.position);
    v.store(tile.momentum);
    g.store(force);
    T last[kUnits];
    outputs.store(last);
    return misfit_in_place(observed, 2, last);
  }

  // Two numbers and zeros.
  static Units<T> few(const T* numbers) {
    T all[kUnits] = {numbers[0], numbers[1]};
    return Units<T>::load(all);
  }

  static void normals_of_one(const Stream& stream, int size, uint32_t chain, T* out) {
    for (int at = 0; at < size; at += 4) {
      const Words words =
          philox(stream.seed, (kMomentumPurpose << kPurposeBits) | static_cast<uint32_t>(at / 4),
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
