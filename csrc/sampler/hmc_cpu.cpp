// The parts of a transition of many chains on the CPU. Compiled once for each instruction set
// (COGEN_ISA); uses no inline function of the standard library, whose code the linker could take
// from the object file of another instruction set.
#include "common/hmc_math.h"
#include "common/kernels.h"
#include "common/parallel.h"
#include "common/purposes.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

// How many blocks of four words are computed side by side: each word of theirs fills two AVX2
// registers.
constexpr int kLanes = 16;
// How many entries one unit of work has: enough to outweigh its start, few enough for the L1 cache.
constexpr int64_t kUnitEntries = 2048;

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Neighbouring chains of one observation, which are a unit of work.
struct Unit {
  int64_t observation, first_chain, chains;
};

// How the chains of each observation are cut into units, by the shape alone.
struct Partition {
  int64_t chains, chains_per_unit, units_per_observation, units;

  explicit Partition(const Shape& shape) : chains(shape.chains) {
    const int64_t fitting = kUnitEntries / shape.size;
    chains_per_unit = fitting < 1 ? 1 : fitting;
    units_per_observation = (chains + chains_per_unit - 1) / chains_per_unit;
    units = shape.observations * units_per_observation;
  }

  Unit operator[](int64_t index) const {
    const int64_t first = index % units_per_observation * chains_per_unit;
    return {index / units_per_observation, first, at_most(chains_per_unit, chains - first)};
  }
};

inline int64_t entries(const Shape& shape) {
  return shape.observations * shape.chains * shape.size;
}

// The noise of kLanes neighbouring (chain, block) pairs: words 0 and 2 of their counters, in which
// they differ, and the words drawn.
struct NoiseTile {
  uint32_t c0[kLanes], c2[kLanes];
  uint32_t w0[kLanes], w1[kLanes], w2[kLanes], w3[kLanes];
};

// Goes through (chain, block) pairs in the order of memory, without a division for each pair.
struct PairWalk {
  int64_t chain, block, blocks;

  void next() {
    if (++block == blocks) {
      block = 0;
      ++chain;
    }
  }
};

// Draws the words of the next kLanes pairs. Pairs after the last one that is wanted are drawn too,
// so that the vector code has no special case; their words are not read.
inline void fill_words(NoiseTile& tile, PairWalk& walk, uint64_t seed, uint32_t purpose,
                       uint32_t transition, uint32_t observation) {
  for (int i = 0; i < kLanes; ++i) {
    tile.c0[i] = (purpose << kPurposeShift) | static_cast<uint32_t>(walk.block);
    tile.c2[i] = static_cast<uint32_t>(walk.chain);
    walk.next();
  }
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const Words words = philox(seed, tile.c0[i], transition, tile.c2[i], observation);
    tile.w0[i] = words.w[0];
    tile.w1[i] = words.w[1];
    tile.w2[i] = words.w[2];
    tile.w3[i] = words.w[3];
  }
}

template <class T>
inline void tile_normals(const NoiseTile& tile, T (&normal)[4][kLanes]) {
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    normal_pair(tile.w0[i], tile.w1[i], &normal[0][i], &normal[1][i]);
    normal_pair(tile.w2[i], tile.w3[i], &normal[2][i], &normal[3][i]);
  }
}

// Draws normals for the chains of one unit into `out`, (unit.chains, size).
template <class T>
void unit_normals(const Unit& unit, int64_t size, const Noise& noise, uint32_t purpose, T* out) {
  const uint32_t transition = static_cast<uint32_t>(noise.transition[unit.observation]);
  const uint32_t observation = static_cast<uint32_t>(noise.observation[unit.observation]);
  const int64_t blocks = (size + 3) / 4, pairs = unit.chains * blocks;
  PairWalk walk{unit.first_chain, 0, blocks}, written = walk;
  NoiseTile tile;
  T normal[4][kLanes];
  for (int64_t first = 0; first < pairs; first += kLanes) {
    fill_words(tile, walk, noise.seed, purpose, transition, observation);
    tile_normals(tile, normal);
    const int lanes = static_cast<int>(at_most(kLanes, pairs - first));
    for (int i = 0; i < lanes; ++i) {
      T* four = out + (written.chain - unit.first_chain) * size + 4 * written.block;
      const int64_t left = size - 4 * written.block;
      if (left >= 4) {
        for (int j = 0; j < 4; ++j) four[j] = normal[j][i];
      } else {
        for (int64_t j = 0; j < left; ++j) four[j] = normal[j][i];
      }
      written.next();
    }
  }
}

// Draws the words of block 0 of kLanes chains from first_chain on; uniforms need the first of them.
inline void chain_words(NoiseTile& tile, int64_t first_chain, int64_t observation,
                        const Noise& noise, uint32_t purpose) {
  PairWalk walk{first_chain, 0, 1};
  fill_words(tile, walk, noise.seed, purpose, static_cast<uint32_t>(noise.transition[observation]),
             static_cast<uint32_t>(noise.observation[observation]));
}

void words(const Shape& shape, const Noise& noise, uint32_t purpose, uint32_t* out) {
  const int64_t blocks = (shape.size + 3) / 4, pairs = shape.chains * blocks;
  NoiseTile tile;
  for (int64_t b = 0; b < shape.observations; ++b) {
    PairWalk walk{0, 0, blocks};
    for (int64_t first = 0; first < pairs; first += kLanes) {
      fill_words(tile, walk, noise.seed, purpose, static_cast<uint32_t>(noise.transition[b]),
                 static_cast<uint32_t>(noise.observation[b]));
      const int lanes = static_cast<int>(at_most(kLanes, pairs - first));
      for (int i = 0; i < lanes; ++i, out += 4) {
        out[0] = tile.w0[i];
        out[1] = tile.w1[i];
        out[2] = tile.w2[i];
        out[3] = tile.w3[i];
      }
    }
  }
}

template <class T>
void uniforms(const Shape& shape, const Noise& noise, uint32_t purpose, T* out) {
  NoiseTile tile;
  for (int64_t b = 0; b < shape.observations; ++b) {
    for (int64_t first = 0; first < shape.chains; first += kLanes) {
      chain_words(tile, first, b, noise, purpose);
      const int lanes = static_cast<int>(at_most(kLanes, shape.chains - first));
      for (int i = 0; i < lanes; ++i) *out++ = to_uniform<T>(tile.w0[i]);
    }
  }
}

template <class T>
void normals(const Shape& shape, const Noise& noise, uint32_t purpose, T* out, int threads) {
  const Partition partition(shape);
  for_each_unit(partition.units, threads_for(entries(shape), partition.units, threads),
                [&](int64_t index) {
                  const Unit unit = partition[index];
                  const int64_t first = unit.observation * shape.chains + unit.first_chain;
                  unit_normals(unit, shape.size, noise, purpose, out + first * shape.size);
                });
}

template <class T>
inline const T* mass_of(const Settings<T>& settings, int64_t observation, int64_t size) {
  return settings.inverse_mass ? settings.inverse_mass + observation * size : nullptr;
}

template <class T>
inline double step_of(const Settings<T>& settings, int64_t observation, int64_t chain) {
  return settings.step_size[settings.steps_each == 1 ? observation
                                                     : observation * settings.steps_each + chain];
}

// Kicks and drifts all chains of a unit. If neither the mass nor the step size differs between
// entries, the chains are treated as one long array: short chains would leave lanes of vectors
// unused.
template <class T>
void kick_and_drift_unit(const Unit& unit, int64_t size, const Settings<T>& settings, double part,
                         const T* position, T* next, T* momentum, const T* grad) {
  const int64_t b = unit.observation;
  const T* mass = mass_of(settings, b, size);
  const bool by_chain = mass || settings.steps_each > 1;
  const int64_t rows = by_chain ? unit.chains : 1, row = by_chain ? size : unit.chains * size;
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t at = n * row;
    const double step = step_of(settings, b, unit.first_chain + n);
    const KickSpans<T> spans =
        kick_spans<T>(settings.beta[b], settings.prior_weight[b], part * step);
    kick_and_drift(position + at, next + at, momentum + at, grad + at, mass, row, spans,
                   static_cast<T>(step));
  }
}

template <class T>
void begin_unit(const Unit& unit, const Shape& shape, const Noise& noise,
                const Settings<T>& settings, const State<T>& state, const Proposal<T>& out) {
  const int64_t b = unit.observation, size = shape.size;
  const int64_t first = b * shape.chains + unit.first_chain;
  const T* position = state.latents + first * size;
  T* momentum = out.momentum + first * size;
  const T* mass = mass_of(settings, b, size);
  const Potential potential{settings.beta[b], settings.prior_weight[b]};
  unit_normals(unit, size, noise, kMomentumPurpose, momentum);
  for (int64_t n = 0; n < unit.chains; ++n) {
    T* v = momentum + n * size;
    if (mass) apply_mass(v, mass, size);
    out.hamiltonian[first + n] =
        hamiltonian(position + n * size, v, mass, size, state.energy[first + n], potential);
  }
  kick_and_drift_unit(unit, size, settings, 0.5, position, out.position + first * size, momentum,
                      state.grad + first * size);
}

template <class T>
void begin_trajectory(const Shape& shape, const Noise& noise, const Settings<T>& settings,
                      const State<T>& state, const Proposal<T>& out, int threads) {
  const Partition partition(shape);
  for_each_unit(partition.units, threads_for(entries(shape), partition.units, threads),
                [&](int64_t index) {
                  begin_unit(partition[index], shape, noise, settings, state, out);
                });
}

template <class T>
void continue_trajectory(const Shape& shape, const Settings<T>& settings,
                         const Proposal<T>& proposal, const T* grad, int threads) {
  const Partition partition(shape);
  for_each_unit(partition.units, threads_for(entries(shape), partition.units, threads),
                [&](int64_t index) {
                  const Unit unit = partition[index];
                  const int64_t at =
                      (unit.observation * shape.chains + unit.first_chain) * shape.size;
                  T* position = proposal.position + at;
                  kick_and_drift_unit(unit, shape.size, settings, 1.0, position, position,
                                      proposal.momentum + at, grad + at);
                });
}

template <class T>
inline void copy_row(T* out, const T* row, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = row[i];
}

template <class T>
void accept_chain(int64_t chain, int64_t observation, int64_t size, double step, double uniform,
                  const Settings<T>& settings, const State<T>& current,
                  const Proposal<T>& proposal, const State<T>& proposed, const Selected<T>& out) {
  const double beta = settings.beta[observation];
  const double prior_weight = settings.prior_weight[observation];
  const int64_t at = chain * size;
  const double end = final_hamiltonian(
      proposal.position + at, proposal.momentum + at, proposed.grad + at,
      mass_of(settings, observation, size), size, proposed.energy[chain], {beta, prior_weight},
      kick_spans<T>(beta, prior_weight, 0.5 * step));
  Verdict verdict = metropolis(proposal.hamiltonian[chain], end, uniform);
  if (settings.active && !settings.active[observation]) verdict = {0.0, 0.0, false};
  const State<T>& kept = verdict.accepted ? proposed : current;
  copy_row(out.latents + at, kept.latents + at, size);
  copy_row(out.grad + at, kept.grad + at, size);
  out.energy[chain] = kept.energy[chain];
  out.probability[chain] = verdict.probability;
  out.accepted[chain] = verdict.accepted;
  out.change[chain] = verdict.change;
}

template <class T>
void accept_select(const Shape& shape, const Noise& noise, const Settings<T>& settings,
                   const State<T>& current, const Proposal<T>& proposal, const State<T>& proposed,
                   const Selected<T>& out, int threads) {
  const Partition partition(shape);
  for_each_unit(
      partition.units, threads_for(entries(shape), partition.units, threads), [&](int64_t index) {
        const Unit unit = partition[index];
        const int64_t first = unit.observation * shape.chains + unit.first_chain;
        NoiseTile tile;
        for (int64_t n = 0; n < unit.chains; ++n) {
          const int64_t lane = n % kLanes;
          if (lane == 0) {
            chain_words(tile, unit.first_chain + n, unit.observation, noise, kAcceptPurpose);
          }
          accept_chain(first + n, unit.observation, shape.size,
                       step_of(settings, unit.observation, unit.first_chain + n),
                       to_uniform<double>(tile.w0[lane]), settings, current, proposal, proposed,
                       out);
        }
      });
}

void adapt_step_size(int64_t observations, int64_t chains, const Adaptation& a) {
  for (int64_t b = 0; b < observations; ++b) {
    double step = a.step_size[b], running = a.running[b];
    if (!a.active || a.active[b]) {
      double sum = 0.0;
      for (int64_t n = 0; n < chains; ++n) sum += a.probability[b * chains + n];
      adapt(&step, &running, sum / static_cast<double>(chains), a.rule);
    }
    a.new_step_size[b] = step;
    a.new_running[b] = running;
  }
}

}  // namespace

extern const HmcOps<float> hmc_float{words,
                                     uniforms<float>,
                                     normals<float>,
                                     begin_trajectory<float>,
                                     continue_trajectory<float>,
                                     accept_select<float>,
                                     adapt_step_size};
extern const HmcOps<double> hmc_double{words,
                                       uniforms<double>,
                                       normals<double>,
                                       begin_trajectory<double>,
                                       continue_trajectory<double>,
                                       accept_select<double>,
                                       adapt_step_size};

}  // namespace COGEN_ISA
}  // namespace cogen
