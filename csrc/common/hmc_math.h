// The arithmetic of HMC for one chain: kick, drift, Hamiltonian, Metropolis test and the step-size
// rule, for CPU and CUDA. cogen_fast/ops/reference.py is the definition. T is float or double;
// energies and Hamiltonians are always double.
#pragma once

#include <float.h>

#include "common/kernels.h"
#include "common/philox.h"

// The compiler may vectorise sums over the dimensions, which changes their order. Results are still
// the same for any number of threads, because no chain is shared between threads.
#if defined(__CUDACC__)
#define COGEN_SIMD
#define COGEN_SIMD_SUM(...)
#else
#define COGEN_PRAGMA(text) _Pragma(#text)
#define COGEN_SIMD COGEN_PRAGMA(omp simd)
#define COGEN_SIMD_SUM(...) COGEN_PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#endif

namespace cogen {
namespace COGEN_ISA {

// What a kick multiplies its two forces by: beta and prior_weight, times the step or half of it.
template <class T>
struct KickSpans {
  T misfit, prior;
};

template <class T>
COGEN_HD KickSpans<T> kick_spans(double beta, double prior_weight, double span) {
  return {static_cast<T>(span * beta), static_cast<T>(span * prior_weight)};
}

template <class T>
COGEN_HD T kick(T momentum, T position, T grad, KickSpans<T> spans) {
  return momentum - spans.misfit * grad - spans.prior * position;
}

// Kicks, then drifts `size` neighbouring entries. Reads `position` and writes `next`, which may be
// the same memory. `inverse_mass` is null for the identity.
template <class T>
COGEN_HD void kick_and_drift(const T* position, T* next, T* momentum, const T* grad,
                             const T* inverse_mass, int64_t size, KickSpans<T> spans, T step) {
  if (inverse_mass) {
    COGEN_SIMD
    for (int64_t i = 0; i < size; ++i) {
      const T z = position[i], v = kick(momentum[i], z, grad[i], spans);
      momentum[i] = v;
      next[i] = z + step * (v * inverse_mass[i]);
    }
  } else {
    COGEN_SIMD
    for (int64_t i = 0; i < size; ++i) {
      const T z = position[i], v = kick(momentum[i], z, grad[i], spans);
      momentum[i] = v;
      next[i] = z + step * v;
    }
  }
}

// Turns v ~ N(0, 1) into v ~ N(0, M).
template <class T>
COGEN_HD void apply_mass(T* momentum, const T* inverse_mass, int64_t size) {
  COGEN_SIMD
  for (int64_t i = 0; i < size; ++i) momentum[i] = momentum[i] / square_root(inverse_mass[i]);
}

struct Potential {
  double beta, prior_weight;
};

COGEN_HD double hamiltonian_of(double energy, double prior, double kinetic, Potential potential) {
  return potential.beta * energy + potential.prior_weight * (0.5 * prior) + 0.5 * kinetic;
}

// beta E + prior_weight |z|^2 / 2 + v' M^-1 v / 2.
template <class T>
COGEN_HD double hamiltonian(const T* position, const T* momentum, const T* inverse_mass,
                            int64_t size, double energy, Potential potential) {
  double prior = 0.0, kinetic = 0.0;
  COGEN_SIMD_SUM(prior, kinetic)
  for (int64_t i = 0; i < size; ++i) {
    const double z = position[i], v = momentum[i];
    const double m = inverse_mass ? static_cast<double>(inverse_mass[i]) : 1.0;
    prior += z * z;
    kinetic += v * v * m;
  }
  return hamiltonian_of(energy, prior, kinetic, potential);
}

// The Hamiltonian after the last half kick, whose momentum is not stored because nothing else needs
// it.
template <class T>
COGEN_HD double final_hamiltonian(const T* position, const T* momentum, const T* grad,
                                  const T* inverse_mass, int64_t size, double energy,
                                  Potential potential, KickSpans<T> spans) {
  double prior = 0.0, kinetic = 0.0;
  COGEN_SIMD_SUM(prior, kinetic)
  for (int64_t i = 0; i < size; ++i) {
    const double z = position[i];
    const double v = kick(momentum[i], position[i], grad[i], spans);
    const double m = inverse_mass ? static_cast<double>(inverse_mass[i]) : 1.0;
    prior += z * z;
    kinetic += v * v * m;
  }
  return hamiltonian_of(energy, prior, kinetic, potential);
}

struct Verdict {
  double probability, change;
  bool accepted;
};

// The Metropolis test with min(1, exp(H_old - H_new)). A change that is not finite, whether because
// of position, gradient or energy (also an energy of -inf), is a rejection with probability 0.
COGEN_HD Verdict metropolis(double start, double end, double uniform) {
  const double change = end - start;
  if (!(fabs(change) <= DBL_MAX)) return {0.0, HUGE_VAL, false};
  const double probability = change > 0.0 ? exp(-change) : 1.0;
  return {probability, change, uniform < probability};
}

// The published step-size rule: the step follows the running acceptance rate *before* this
// transition is counted.
COGEN_HD void adapt(double* step_size, double* running, double mean, const StepRule& rule) {
  const double step = *step_size * (*running > rule.target ? rule.increase : rule.decrease);
  *step_size = step < rule.minimum ? rule.minimum : step > rule.maximum ? rule.maximum : step;
  *running = rule.decay * *running + (1.0 - rule.decay) * mean;
}

}  // namespace COGEN_ISA
}  // namespace cogen
