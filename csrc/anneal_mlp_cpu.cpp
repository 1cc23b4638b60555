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

// Fewer chains than these go one at a time: a tile takes as long for one chain as for all its lanes.
template <class T>
constexpr int64_t kFewChains = Lanes<T>::kCount / 3;

// How chains are cut into tiles of a layout, and where what belongs to a tile lies in the arena.
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
  int lanes(int64_t tile) const {
    return static_cast<int>(at_most(kLanes, chains - first_chain(tile)));
  }
  // In the (B, N) arrays.
  int64_t row(int64_t tile) const { return observation(tile) * chains + first_chain(tile); }
};

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Where everything lies in the memory of a run, in bytes from its start.
template <class T, class Layout>
struct Arena {
  int64_t entries;                   // numbers of a tile's latents
  int64_t lanes, state, room;        // bytes: of a number per lane, a tile's state, a thread's room
  int64_t states, rooms;             // starts
  char* memory;

  Arena(char* start, const Tiling<T, Layout>& tiling, const Mlp<T>& net)
      : entries(Layout::entries(net.width[0])),
        lanes(aligned(tiling.tiles * Layout::kLanes * sizeof(double))),
        state(aligned(2 * entries * sizeof(T))),
        room(aligned(Layout::room(net) * sizeof(T))),
        states(3 * lanes),
        rooms(states + tiling.tiles * state),
        memory(start) {}

  int64_t bytes(int threads) const { return rooms + threads * room; }
  double* energy() const { return reinterpret_cast<double*>(memory); }
  double* weights() const { return reinterpret_cast<double*>(memory + lanes); }
  // Probabilities of the last transition.
  double* probability() const { return reinterpret_cast<double*>(memory + 2 * lanes); }
  T* room_of(int thread) const { return reinterpret_cast<T*>(memory + rooms + thread * room); }
  Tile<T> tile(const Tiling<T, Layout>& tiling, int64_t index) const {
    T* latents = reinterpret_cast<T*>(memory + states + index * state);
    return {latents, latents + entries, energy() + index * Layout::kLanes,
            static_cast<uint32_t>(tiling.first_chain(index))};
  }
};

// One thread of the run, and where the others wait for it.
template <class T, class Layout>
class Worker {
 public:
  Worker(const MlpRun<T>& run, const Tiling<T, Layout>& tiling, const Arena<T, Layout>& arena,
         int id, int threads)
      : run_(run),
        tiling_(tiling),
        arena_(arena),
        id_(id),
        threads_(threads),
        first_(tiling.tiles * id / threads),
        last_(tiling.tiles * (id + 1) / threads),
        room_(arena.room_of(id)) {}

  void all() {
    for (int64_t index = first_; index < last_; ++index) load(index);
    wait();
    double before = run_.beta;
    for (int64_t t = 0; t < run_.steps; ++t) {
      weigh(run_.betas[t] - before);
      before = run_.betas[t];
      for (int64_t m = 0; m < run_.hmc_steps; ++m) transitions(t, m);
      describe(t);
    }
    for (int64_t index = first_; index < last_; ++index) store(index);
  }

 private:
  static constexpr int kLanes = Layout::kLanes;

  void load(int64_t index) const {
    const Tile<T> tile = arena_.tile(tiling_, index);
    for (int l = 0; l < kLanes; ++l) {
      // A lane that nobody asked for does as the first one of its tile.
      const int64_t from = tiling_.row(index) + (l < tiling_.lanes(index) ? l : 0);
      tile.energy[l] = run_.energy[from];
      arena_.weights()[index * kLanes + l] = run_.log_weights ? run_.log_weights[from] : 0.0;
      for (int64_t i = 0; i < tiling_.size; ++i) {
        tile.latents[i * kLanes + l] = run_.latents[from * tiling_.size + i];
        tile.grad[i * kLanes + l] = run_.grad[from * tiling_.size + i];
      }
    }
  }

  void store(int64_t index) const {
    const Tile<T> tile = arena_.tile(tiling_, index);
    store_entries(index, tile.latents, run_.latents);
    store_entries(index, tile.grad, run_.grad);
    for (int l = 0; l < tiling_.lanes(index); ++l) {
      const int64_t to = tiling_.row(index) + l;
      run_.energy[to] = tile.energy[l];
      if (run_.log_weights) run_.log_weights[to] = arena_.weights()[index * kLanes + l];
    }
  }

  void store_entries(int64_t index, const T* entries, T* out) const {
    for (int l = 0; l < tiling_.lanes(index); ++l) {
      T* row = out + (tiling_.row(index) + l) * tiling_.size;
      for (int64_t i = 0; i < tiling_.size; ++i) row[i] = entries[i * kLanes + l];
    }
  }

  void wait() const {
    if (threads_ > 1) {
#if defined(_OPENMP)
#pragma omp barrier
#endif
    }
  }

  void weigh(double increment) const {
    if (!run_.log_weights) return;
    for (int64_t n = first_ * kLanes; n < last_ * kLanes; ++n) {
      arena_.weights()[n] -= increment * arena_.energy()[n];
    }
  }

  void transitions(int64_t t, int64_t m) const {
    const double beta = run_.betas[t];
    const Potential potential{beta, run_.paper_form ? 1.0 - beta : 1.0};
    typename Layout::Outcome outcome;
    for (int64_t index = first_; index < last_; ++index) {
      const int64_t b = tiling_.observation(index);
      const Move<T> move{potential, run_.step_size + b, false, nullptr,
                         static_cast<int>(run_.leapfrog_steps)};
      const Stream stream{run_.noise.seed,
                          static_cast<uint32_t>(run_.noise.transition[b] + t * run_.hmc_steps + m),
                          static_cast<uint32_t>(run_.noise.observation[b])};
      const int measured = run_.net.width[run_.net.layers];
      Layout::transition(run_.net, observed_of(run_.observed, b, measured), stream, move,
                         arena_.tile(tiling_, index), room_, outcome);
      for (int l = 0; l < tiling_.lanes(index); ++l) {
        arena_.probability()[index * kLanes + l] = outcome.probability[l];
        // A rejection for not being finite; HUGE_VAL stands for it.
        if (outcome.change[l] == HUGE_VAL) ++run_.non_finite[tiling_.row(index) + l];
      }
    }
    wait();
    for (int64_t b = id_; b < tiling_.observations; b += threads_) adapted(t, m, b);
    wait();
  }

  void adapted(int64_t t, int64_t m, int64_t b) const {
    const double mean = mean_of(b, arena_.probability());
    const int64_t place = t * tiling_.observations + b;
    run_.step_used[place] = run_.step_size[b];
    run_.acceptance[place] =
        (m == 0 ? 0.0 : run_.acceptance[place]) + mean / static_cast<double>(run_.hmc_steps);
    if (!run_.rule) return;
    const StepRule& r = *run_.rule;
    adapt(&run_.step_size[b], &run_.running[b], mean,
          {r.target, r.decay, r.increase, r.decrease, r.minimum, r.maximum});
  }

  // The energies of a temperature, and the latents.
  void describe(int64_t t) const {
    for (int64_t b = id_; b < tiling_.observations; b += threads_) {
      const double mean = mean_of(b, arena_.energy());
      run_.energy_mean[t * tiling_.observations + b] = mean;
      run_.energy_std[t * tiling_.observations + b] = deviation_of(b, arena_.energy(), mean);
    }
    if (run_.trace) {
      T* out = run_.trace + t * tiling_.observations * tiling_.chains * tiling_.size;
      for (int64_t index = first_; index < last_; ++index) {
        store_entries(index, arena_.tile(tiling_, index).latents, out);
      }
    }
    wait();  // before anybody changes an energy
  }

  // Mean over an observation's chains of a value per lane, always in the same order.
  double mean_of(int64_t b, const double* values) const {
    const double* first = values + b * tiling_.per_observation * kLanes;
    double sum = 0.0;
    for (int64_t n = 0; n < tiling_.chains; ++n) sum += first[n];
    return sum / static_cast<double>(tiling_.chains);
  }

  double deviation_of(int64_t b, const double* values, double mean) const {
    const double* first = values + b * tiling_.per_observation * kLanes;
    double sum = 0.0;
    for (int64_t n = 0; n < tiling_.chains; ++n) sum += (first[n] - mean) * (first[n] - mean);
    return square_root(sum / static_cast<double>(tiling_.chains));
  }

  const MlpRun<T>& run_;
  const Tiling<T, Layout>& tiling_;
  const Arena<T, Layout>& arena_;
  const int id_, threads_;
  const int64_t first_, last_;
  T* const room_;
};

template <class T, class Layout>
int64_t bytes_in(const MlpRun<T>& run, int threads) {
  return Arena<T, Layout>(nullptr, Tiling<T, Layout>(run.shape), run.net).bytes(threads);
}

template <class T>
int64_t arena_bytes(const MlpRun<T>& run, int threads) {
  return run.shape.chains < kFewChains<T> ? bytes_in<T, UnitsInLanes<T>>(run, threads)
                                          : bytes_in<T, ChainsInLanes<T>>(run, threads);
}

template <class T, class Layout>
void anneal_in(const MlpRun<T>& run, char* memory, int threads) {
  const Tiling<T, Layout> tiling(run.shape);
  const Arena<T, Layout> arena(memory, tiling, run.net);
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  Worker<T, Layout>(run, tiling, arena, omp_get_thread_num(), omp_get_num_threads()).all();
#else
  (void)threads;
  Worker<T, Layout>(run, tiling, arena, 0, 1).all();
#endif
}

template <class T>
void anneal(const MlpRun<T>& run, char* memory, int threads) {
  if (run.shape.chains < kFewChains<T>) {
    anneal_in<T, UnitsInLanes<T>>(run, memory, threads);
  } else {
    anneal_in<T, ChainsInLanes<T>>(run, memory, threads);
  }
}

}  // namespace

extern const MlpOps<float> mlp_float{arena_bytes<float>, anneal<float>};
extern const MlpOps<double> mlp_double{arena_bytes<double>, anneal<double>};

}  // namespace COGEN_ISA
}  // namespace cogen
