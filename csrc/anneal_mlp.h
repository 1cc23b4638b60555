// A whole annealed run for a generator of dense layers: Algorithm 1 as published. One text for CPU
// and CUDA; cogen_fast/sampler and cogen_fast/ops/reference.py are the definition.
//
// Chains of an observation come in tiles of as many as there are lanes. What a tile needs between
// transitions lies together: latents (d), gradient (d), energies. Lanes beyond the last chain hold
// a chain that nobody asked for and that counts nowhere.
#pragma once

#include "mlp.h"
#include "step_math.h"

namespace cogen {
namespace COGEN_ISA {

constexpr uint32_t kMomentumPurpose = 1, kAcceptPurpose = 2;
constexpr int kPurposeBits = 24;

// Where one observation's noise stands.
struct Stream {
  uint64_t seed;
  uint32_t transition, observation;
};

// The step size of a tile's chains: one for all, or one for each lane.
template <class T>
struct CommonStep {
  double size;

  COGEN_HD KickSpans<T> spans(const Potential& at, double part) const {
    return kick_spans<T>(at.beta, at.prior_weight, part * size);
  }
  COGEN_HD T drift() const { return static_cast<T>(size); }
};

template <class T>
struct OwnStep {
  double size[Lanes<T>::kCount];

  COGEN_HD KickSpans<Lanes<T>> spans(const Potential& at, double part) const {
    KickSpans<Lanes<T>> all;
    for (int l = 0; l < Lanes<T>::kCount; ++l) {
      const KickSpans<T> one = kick_spans<T>(at.beta, at.prior_weight, part * size[l]);
      all.misfit.set(l, one.misfit);
      all.prior.set(l, one.prior);
    }
    return all;
  }
  COGEN_HD Lanes<T> drift() const {
    Lanes<T> all;
    for (int l = 0; l < Lanes<T>::kCount; ++l) all.set(l, static_cast<T>(size[l]));
    return all;
  }
};

// What one transition is made with; Step is one of the two above.
template <class T, class Step>
struct Move {
  Potential potential;
  Step step;
  const T* inverse_mass;  // (d) or null
  int leapfrog_steps;
};

template <class T>
struct Tile {
  Lanes<T>* latents;  // (d)
  Lanes<T>* grad;     // (d)
  double* energy;     // (lanes)
  uint32_t first_chain;
};

// What happened in a transition to each lane.
template <class T>
struct Outcome {
  double probability[Lanes<T>::kCount];
  double change[Lanes<T>::kCount];
};

// A thread's own memory: a proposal, and what evaluating the generator takes.
template <class T>
struct Room {
  Lanes<T>* position;  // (d)
  Lanes<T>* momentum;  // (d)
  Lanes<T>* grad;      // (d)
  Lanes<T>* work;      // workspace(net)
};

template <class T>
inline int64_t room_size(const Mlp<T>& net) {
  return 3 * static_cast<int64_t>(net.width[0]) + workspace(net);
}

template <class T>
inline Room<T> room_in(Lanes<T>* memory, int size) {
  return {memory, memory + size, memory + 2 * size, memory + 3 * size};
}

// Standard normals for four neighbouring dimensions of a tile's chains.
template <class T>
inline void normals_of(const Stream& stream, uint32_t purpose, uint32_t block, uint32_t first_chain,
                       T (&out)[4][Lanes<T>::kCount]) {
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
inline void draw_normals(const Stream& stream, uint32_t purpose, int size, uint32_t first_chain,
                         Lanes<T>* out) {
  T four[4][Lanes<T>::kCount];
  for (int at = 0; at < size; at += 4) {
    normals_of(stream, purpose, static_cast<uint32_t>(at / 4), first_chain, four);
    for (int j = 0; j < 4 && at + j < size; ++j) memcpy(&out[at + j], four[j], sizeof(Lanes<T>));
  }
}

template <class T>
inline void draw_uniforms(const Stream& stream, uint32_t purpose, uint32_t first_chain,
                          double (&out)[Lanes<T>::kCount]) {
  COGEN_SIMD
  for (int l = 0; l < Lanes<T>::kCount; ++l) {
    const Words w = philox(stream.seed, purpose << kPurposeBits, stream.transition,
                           first_chain + static_cast<uint32_t>(l), stream.observation);
    out[l] = to_uniform<double>(w.w[0]);
  }
}

template <class T, class S>
COGEN_HD Lanes<T> kicked(const Lanes<T>& momentum, const Lanes<T>& position, const Lanes<T>& grad,
                         const KickSpans<S>& spans) {
  return momentum - grad * spans.misfit - position * spans.prior;
}

// Sums of squares over the dimensions, in double: |z|^2 and v' M^-1 v.
template <class T>
inline void add_squares(const Lanes<T>& z, const Lanes<T>& v, double inverse_mass,
                        double (&prior)[Lanes<T>::kCount], double (&kinetic)[Lanes<T>::kCount]) {
  T position[Lanes<T>::kCount], momentum[Lanes<T>::kCount];
  memcpy(position, &z, sizeof position);
  memcpy(momentum, &v, sizeof momentum);
  COGEN_SIMD
  for (int l = 0; l < Lanes<T>::kCount; ++l) {
    const double q = position[l], p = momentum[l];
    prior[l] += q * q;
    kinetic[l] += p * p * inverse_mass;
  }
}

template <class T>
COGEN_HD double mass_at(const T* inverse_mass, int i) {
  return inverse_mass ? static_cast<double>(inverse_mass[i]) : 1.0;
}

// One transition of a tile: momentum refresh, L leapfrog steps, Metropolis test, selection.
template <class T, class Step>
inline void transition(const Mlp<T>& net, const Observed<T>& observed, const Stream& stream,
                       const Move<T, Step>& move, const Tile<T>& tile, const Room<T>& room,
                       Outcome<T>& out) {
  constexpr int lanes = Lanes<T>::kCount;
  const int size = net.width[0];
  Lanes<T>* const q = room.position;
  Lanes<T>* const v = room.momentum;
  const auto step = move.step.drift();
  const auto drift = [&](int i) {
    return move.inverse_mass ? v[i] * move.inverse_mass[i] * step : v[i] * step;
  };
  draw_normals(stream, kMomentumPurpose, size, tile.first_chain, v);
  if (move.inverse_mass) {
    for (int i = 0; i < size; ++i) v[i] = v[i] * (T(1) / square_root(move.inverse_mass[i]));
  }

  const auto half = move.step.spans(move.potential, 0.5);
  const auto full = move.step.spans(move.potential, 1.0);
  double prior[lanes] = {}, kinetic[lanes] = {}, start[lanes], energy[lanes];
  for (int i = 0; i < size; ++i) {
    add_squares(tile.latents[i], v[i], mass_at(move.inverse_mass, i), prior, kinetic);
    v[i] = kicked(v[i], tile.latents[i], tile.grad[i], half);
    q[i] = tile.latents[i] + drift(i);
  }
  for (int l = 0; l < lanes; ++l) {
    start[l] = hamiltonian_of(tile.energy[l], prior[l], kinetic[l], move.potential);
    prior[l] = kinetic[l] = 0.0;
  }

  energy_and_grad(net, observed, q, energy, room.grad, room.work);
  for (int made = 1; made < move.leapfrog_steps; ++made) {
    for (int i = 0; i < size; ++i) {
      v[i] = kicked(v[i], q[i], room.grad[i], full);
      q[i] = q[i] + drift(i);
    }
    energy_and_grad(net, observed, q, energy, room.grad, room.work);
  }

  for (int i = 0; i < size; ++i) {
    add_squares(q[i], kicked(v[i], q[i], room.grad[i], half),
                mass_at(move.inverse_mass, i), prior, kinetic);
  }
  double uniform[lanes];
  draw_uniforms<T>(stream, kAcceptPurpose, tile.first_chain, uniform);
  T keep[lanes];
  for (int l = 0; l < lanes; ++l) {
    const double end = hamiltonian_of(energy[l], prior[l], kinetic[l], move.potential);
    const Verdict verdict = metropolis(start[l], end, uniform[l]);
    out.probability[l] = verdict.probability;
    out.change[l] = verdict.change;
    keep[l] = verdict.accepted ? T(1) : T(0);
    if (verdict.accepted) tile.energy[l] = energy[l];
  }
  Lanes<T> accepted;
  memcpy(&accepted, keep, sizeof accepted);
  for (int i = 0; i < size; ++i) {
    tile.latents[i] = where_positive(accepted, q[i], tile.latents[i]);
    tile.grad[i] = where_positive(accepted, room.grad[i], tile.grad[i]);
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
