// The published run for a generator of dense layers on CPU: threads over tiles of chains, which
// meet where an observation's chains share a step size. Compiled once per instruction set; uses no
// inline function of the standard library.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "anneal_mlp.h"
#include "kernels.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// How chains are cut into tiles, and where what belongs to a tile lies in the arena.
template <class T>
struct Tiling {
  static constexpr int kLanes = Lanes<T>::kCount;
  int64_t observations, chains, size, per_observation, tiles;

  explicit Tiling(const Shape& shape)
      : observations(shape.observations),
        chains(shape.chains),
        size(shape.size),
        per_observation((chains + kLanes - 1) / kLanes),
        tiles(observations * per_observation) {}

  int64_t observation(int64_t tile) const { return tile / per_observation; }
  int64_t first_chain(int64_t tile) const { return tile % per_observation * kLanes; }
  int lanes(int64_t tile) const {
    return static_cast<int>(at_most(kLanes, chains - first_chain(tile)));
  }
  // In the (B, N) arrays.
  int64_t row(int64_t tile) const { return observation(tile) * chains + first_chain(tile); }
};

// The memory of all tiles and threads; 64-byte aligned.
template <class T>
struct Arena {
  Lanes<T>* lanes;   // tiles x 2 d
  double* energy;    // tiles x lanes
  double* weights;   // tiles x lanes
  double* mean;      // tiles x lanes: probabilities of the last transition
  Lanes<T>* rooms;   // threads x room
  int64_t room;

  static int64_t bytes(const Tiling<T>& tiling, const Mlp<T>& net, int threads) {
    return sizeof(Lanes<T>) * (tiling.tiles * 2 * tiling.size + threads * room_size(net)) +
           sizeof(double) * 3 * tiling.tiles * Tiling<T>::kLanes;
  }

  Arena(void* memory, const Tiling<T>& tiling, const Mlp<T>& net) : room(room_size(net)) {
    const int64_t entries = tiling.tiles * Tiling<T>::kLanes;
    energy = static_cast<double*>(memory);
    weights = energy + entries;
    mean = weights + entries;
    lanes = reinterpret_cast<Lanes<T>*>(mean + entries);
    rooms = lanes + tiling.tiles * 2 * tiling.size;
  }

  Tile<T> tile(const Tiling<T>& tiling, int64_t index) const {
    Lanes<T>* mine = lanes + index * 2 * tiling.size;
    return {mine, mine + tiling.size, energy + index * Tiling<T>::kLanes,
            static_cast<uint32_t>(tiling.first_chain(index))};
  }
};

template <class T>
void load(const Tiling<T>& tiling, const MlpRun<T>& run, int64_t index, const Arena<T>& arena) {
  const Tile<T> tile = arena.tile(tiling, index);
  const int64_t row = tiling.row(index);
  double* weights = arena.weights + index * Tiling<T>::kLanes;
  for (int l = 0; l < Tiling<T>::kLanes; ++l) {
    // A lane that nobody asked for does as the first one of its tile.
    const int64_t from = row + (l < tiling.lanes(index) ? l : 0);
    tile.energy[l] = run.energy[from];
    weights[l] = run.log_weights ? run.log_weights[from] : 0.0;
    for (int64_t i = 0; i < tiling.size; ++i) {
      tile.latents[i].set(l, run.latents[from * tiling.size + i]);
      tile.grad[i].set(l, run.grad[from * tiling.size + i]);
    }
  }
}

template <class T>
void store_latents(const Tiling<T>& tiling, const Arena<T>& arena, int64_t index, T* out) {
  const Tile<T> tile = arena.tile(tiling, index);
  for (int l = 0; l < tiling.lanes(index); ++l) {
    T* row = out + (tiling.row(index) + l) * tiling.size;
    for (int64_t i = 0; i < tiling.size; ++i) row[i] = tile.latents[i].get(l);
  }
}

template <class T>
void store(const Tiling<T>& tiling, const MlpRun<T>& run, int64_t index, const Arena<T>& arena) {
  const Tile<T> tile = arena.tile(tiling, index);
  const double* weights = arena.weights + index * Tiling<T>::kLanes;
  store_latents(tiling, arena, index, run.latents);
  for (int l = 0; l < tiling.lanes(index); ++l) {
    const int64_t to = tiling.row(index) + l;
    run.energy[to] = tile.energy[l];
    if (run.log_weights) run.log_weights[to] = weights[l];
    for (int64_t i = 0; i < tiling.size; ++i) {
      run.grad[to * tiling.size + i] = tile.grad[i].get(l);
    }
  }
}

// Mean over an observation's chains of a value per lane, always in the same order.
template <class T>
double mean_of(const Tiling<T>& tiling, int64_t observation, const double* values) {
  const double* first = values + observation * tiling.per_observation * Tiling<T>::kLanes;
  double sum = 0.0;
  for (int64_t n = 0; n < tiling.chains; ++n) sum += first[n];
  return sum / static_cast<double>(tiling.chains);
}

template <class T>
double deviation_of(const Tiling<T>& tiling, int64_t observation, const double* values,
                    double mean) {
  const double* first = values + observation * tiling.per_observation * Tiling<T>::kLanes;
  double sum = 0.0;
  for (int64_t n = 0; n < tiling.chains; ++n) sum += (first[n] - mean) * (first[n] - mean);
  return square_root(sum / static_cast<double>(tiling.chains));
}

// One thread of the run, and where the others wait for it.
template <class T>
class Worker {
 public:
  Worker(const MlpRun<T>& run, const Tiling<T>& tiling, const Arena<T>& arena, int id, int threads)
      : run_(run),
        tiling_(tiling),
        arena_(arena),
        id_(id),
        threads_(threads),
        first_(tiling.tiles * id / threads),
        last_(tiling.tiles * (id + 1) / threads),
        room_(room_in(arena.rooms + id * arena.room, static_cast<int>(tiling.size))) {}

  void all() {
    for (int64_t tile = first_; tile < last_; ++tile) load(tiling_, run_, tile, arena_);
    wait();
    double before = run_.beta;
    for (int64_t t = 0; t < run_.steps; ++t) {
      weigh(run_.betas[t] - before);
      before = run_.betas[t];
      for (int64_t m = 0; m < run_.hmc_steps; ++m) transitions(t, m);
      describe(t);
    }
    for (int64_t tile = first_; tile < last_; ++tile) store(tiling_, run_, tile, arena_);
  }

 private:
  void wait() const {
    if (threads_ > 1) {
#if defined(_OPENMP)
#pragma omp barrier
#endif
    }
  }

  void weigh(double increment) const {
    if (!run_.log_weights) return;
    for (int64_t n = first_ * Tiling<T>::kLanes; n < last_ * Tiling<T>::kLanes; ++n) {
      arena_.weights[n] -= increment * arena_.energy[n];
    }
  }

  void transitions(int64_t t, int64_t m) const {
    const double beta = run_.betas[t];
    const Potential potential{beta, run_.paper_form ? 1.0 - beta : 1.0};
    Outcome<T> outcome;
    for (int64_t index = first_; index < last_; ++index) {
      const int64_t b = tiling_.observation(index);
      const Move<T, CommonStep<T>> move{
          potential, {run_.step_size[b]}, nullptr, static_cast<int>(run_.leapfrog_steps)};
      const Stream stream{run_.noise.seed,
                          static_cast<uint32_t>(run_.noise.transition[b] + t * run_.hmc_steps + m),
                          static_cast<uint32_t>(run_.noise.observation[b])};
      transition(run_.net, observed_of(run_.observed, b, run_.net.width[run_.net.layers]), stream,
                 move, arena_.tile(tiling_, index), room_, outcome);
      for (int l = 0; l < tiling_.lanes(index); ++l) {
        arena_.mean[index * Tiling<T>::kLanes + l] = outcome.probability[l];
        // A rejection for not being finite; HUGE_VAL stands for it.
        if (outcome.change[l] == HUGE_VAL) ++run_.non_finite[tiling_.row(index) + l];
      }
    }
    wait();
    for (int64_t b = id_; b < tiling_.observations; b += threads_) {
      const double mean = mean_of(tiling_, b, arena_.mean);
      const int64_t place = t * tiling_.observations + b;
      run_.step_used[place] = run_.step_size[b];
      run_.acceptance[place] =
          (m == 0 ? 0.0 : run_.acceptance[place]) + mean / static_cast<double>(run_.hmc_steps);
      if (run_.rule) adapt(&run_.step_size[b], &run_.running[b], mean, rule());
    }
    wait();
  }

  AdaptationRule rule() const {
    const StepRule& r = *run_.rule;
    return {r.target, r.decay, r.increase, r.decrease, r.minimum, r.maximum};
  }

  // The energies of a temperature, which nobody changes before the next meeting.
  void describe(int64_t t) const {
    for (int64_t b = id_; b < tiling_.observations; b += threads_) {
      const double mean = mean_of(tiling_, b, arena_.energy);
      run_.energy_mean[t * tiling_.observations + b] = mean;
      run_.energy_std[t * tiling_.observations + b] =
          deviation_of(tiling_, b, arena_.energy, mean);
    }
    if (run_.trace) {
      T* out = run_.trace + t * tiling_.observations * tiling_.chains * tiling_.size;
      for (int64_t tile = first_; tile < last_; ++tile) store_latents(tiling_, arena_, tile, out);
    }
    wait();
  }

  const MlpRun<T>& run_;
  const Tiling<T>& tiling_;
  const Arena<T>& arena_;
  const int id_, threads_;
  const int64_t first_, last_;
  const Room<T> room_;
};

template <class T>
int64_t arena_bytes(const MlpRun<T>& run, int threads) {
  return Arena<T>::bytes(Tiling<T>(run.shape), run.net, threads);
}

template <class T>
void anneal(const MlpRun<T>& run, void* memory, int threads) {
  const Tiling<T> tiling(run.shape);
  const Arena<T> arena(memory, tiling, run.net);
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  Worker<T>(run, tiling, arena, omp_get_thread_num(), omp_get_num_threads()).all();
#else
  (void)threads;
  Worker<T>(run, tiling, arena, 0, 1).all();
#endif
}

}  // namespace

extern const MlpOps<float> mlp_float{arena_bytes<float>, anneal<float>};
extern const MlpOps<double> mlp_double{arena_bytes<double>, anneal<double>};

}  // namespace COGEN_ISA
}  // namespace cogen
