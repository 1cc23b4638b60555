// The published run for a generator of dense layers on the CPU. Each thread has some tiles of
// chains; the threads wait for one another after each transition where the chains of an observation
// share a step size, and only at the end where each chain has its own. Compiled once for each
// instruction set; uses no inline function of the standard library, see philox.h.
#include "mlp/chain_tiles.h"
#include "mlp/own_step_history.h"
#include "mlp/thread_team.h"
#include "mlp/transition_chains_in_lanes.h"
#include "mlp/transition_units_in_lanes.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

double mean_of(const double* values, int64_t count) {
  double sum = 0.0;
  for (int64_t n = 0; n < count; ++n) sum += values[n];
  return sum / static_cast<double>(count);
}

double deviation_of(const double* values, int64_t count, double mean) {
  double sum = 0.0;
  for (int64_t n = 0; n < count; ++n) sum += (values[n] - mean) * (values[n] - mean);
  return square_root(sum / static_cast<double>(count));
}

// The number of bytes, rounded up to whole lines of a cache.
inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// How the memory of a run is divided: first what each lane of all tiles has, then the states of the
// tiles, the sums of groups of chains, and what each thread needs for itself.
template <class T, class Layout>
struct Arena {
  int64_t entries;                // how many numbers the latents of a tile take
  int64_t lanes, state, room;     // bytes: a number for each lane, a tile's state, a thread's room
  int64_t states, groups, rooms;  // where these parts begin
  char* memory;

  Arena(char* start, const Tiling<T, Layout>& tiling, const MlpRun<T>& run)
      : entries(Layout::entries(run.net.width[0])),
        lanes(aligned(tiling.tiles * Layout::kLanes * sizeof(double))),
        state(aligned(2 * entries * sizeof(T))),
        room(aligned((2 * entries + Layout::room(run.net)) * sizeof(T))),
        states(3 * lanes),
        groups(states + tiling.tiles * state),
        rooms(groups +
              (run.step_per_chain ? aligned(run.steps * tiling.tiles * sizeof(GroupSums)) : 0)),
        memory(start) {}

  int64_t bytes(int threads) const { return rooms + threads * room; }
  double* energy() const { return reinterpret_cast<double*>(memory); }
  double* weights() const { return reinterpret_cast<double*>(memory + lanes); }
  // Acceptance probabilities of the last transition.
  double* probability() const { return reinterpret_cast<double*>(memory + 2 * lanes); }
  // Sums over the chains of each tile where these have step sizes of their own: (steps, B, tiles of
  // an observation).
  GroupSums* sums() const { return reinterpret_cast<GroupSums*>(memory + groups); }
  T* room_of(int thread) const { return reinterpret_cast<T*>(memory + rooms + thread * room); }
  // A tile whose proposal is at the start of `room`, the thread's own.
  ChainTile<T> tile(const Tiling<T, Layout>& tiling, int64_t index, T* room) const {
    T* latents = reinterpret_cast<T*>(memory + states + index * state);
    return {latents,        latents + entries,
            room,           room + entries,
            energy() + index * Layout::kLanes, static_cast<uint32_t>(tiling.first_chain(index))};
  }
};

// What one thread of the run does.
template <class T, class Layout>
class Worker {
 public:
  Worker(const MlpRun<T>& run, const Tiling<T, Layout>& tiling, const Arena<T, Layout>& arena,
         const TeamThread& thread)
      : run_(run),
        tiling_(tiling),
        arena_(arena),
        thread_(thread),
        first_(thread.first(tiling.tiles)),
        last_(thread.last(tiling.tiles)),
        room_(arena.room_of(thread.id)) {}

  void run() {
    for (int64_t index = first_; index < last_; ++index) load(index);
    thread_.wait();
    if (run_.step_per_chain) {
      run_with_own_steps();
    } else {
      run_with_shared_steps();
    }
    for (int64_t index = first_; index < last_; ++index) store(index);
  }

 private:
  static constexpr int kLanes = Layout::kLanes;

  void load(int64_t index) const {
    const ChainTile<T> tile = arena_.tile(tiling_, index, room_);
    for (int l = 0; l < kLanes; ++l) {
      // Lanes beyond the last chain repeat the first chain of the tile; their results are
      // discarded.
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
    const ChainTile<T> tile = arena_.tile(tiling_, index, room_);
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

  void store_trace(int64_t t, int64_t index) const {
    if (!run_.trace) return;
    store_entries(index, arena_.tile(tiling_, index, room_).latents,
                  run_.trace + t * tiling_.observations * tiling_.chains * tiling_.size);
  }

  // Updates the log weights of the tiles from `first` to `end` - 1 before the moves of temperature
  // t.
  void reweight(int64_t t, int64_t first, int64_t end) const {
    if (!run_.log_weights) return;
    const double increment = run_.betas[t] - (t == 0 ? run_.beta : run_.betas[t - 1]);
    for (int64_t n = first * kLanes; n < end * kLanes; ++n) {
      arena_.weights()[n] -= increment * arena_.energy()[n];
    }
  }

  // Moves a tile for transition m of temperature t. Step is a double, or what Layout::own_steps
  // gives.
  template <class Step>
  void transition(int64_t index, int64_t t, int64_t m, const Step& step,
                  Outcome<kLanes>& outcome) const {
    const int64_t b = tiling_.observation(index);
    const TransitionSettings<Step> settings{potential_of(run_, t), step,
                                            static_cast<int>(run_.leapfrog_steps)};
    Layout::transition(run_.net, observed_of(run_.observed, b, measured_size(run_.net)),
                       noise_of(run_, b, t * run_.hmc_steps + m), settings,
                       arena_.tile(tiling_, index, room_), room_ + 2 * arena_.entries, outcome);
    for (int l = 0; l < tiling_.lanes(index); ++l) {
      // HUGE_VAL stands for a proposal that was not finite.
      if (outcome.change[l] == HUGE_VAL) ++run_.non_finite[tiling_.row(index) + l];
    }
  }

  void adapt_to(double probability, double* step, double* running) const {
    if (run_.rule) adapt(step, running, probability, *run_.rule);
  }

  // --- all chains of an observation share a step size --------------------------------------------

  void run_with_shared_steps() const {
    for (int64_t t = 0; t < run_.steps; ++t) {
      reweight(t, first_, last_);
      for (int64_t m = 0; m < run_.hmc_steps; ++m) transitions(t, m);
      record_energies(t);
    }
  }

  // Moves all tiles of this thread, then adapts step sizes by what all threads have done.

  void transitions(int64_t t, int64_t m) const {
    Outcome<kLanes> outcome;
    for (int64_t index = first_; index < last_; ++index) {
      transition(index, t, m, run_.step_size[tiling_.observation(index)], outcome);
      for (int l = 0; l < tiling_.lanes(index); ++l) {
        arena_.probability()[index * kLanes + l] = outcome.probability[l];
      }
    }
    thread_.wait();
    for (int64_t b = thread_.id; b < tiling_.observations; b += thread_.threads) {
      adapt_step(t, m, b);
    }
    thread_.wait();
  }

  void adapt_step(int64_t t, int64_t m, int64_t b) const {
    const double mean = mean_of(arena_.probability() + first_of(b), tiling_.chains);
    const int64_t place = t * tiling_.observations + b;
    run_.step_used[place] = run_.step_size[b];
    run_.acceptance[place] =
        (m == 0 ? 0.0 : run_.acceptance[place]) + mean / static_cast<double>(run_.hmc_steps);
    adapt_to(mean, &run_.step_size[b], &run_.running[b]);
  }

  // Writes the history of the energies of temperature t, and the latents.
  void record_energies(int64_t t) const {
    for (int64_t b = thread_.id; b < tiling_.observations; b += thread_.threads) {
      const double* energy = arena_.energy() + first_of(b);
      const double mean = mean_of(energy, tiling_.chains);
      const double deviation = deviation_of(energy, tiling_.chains, mean);
      run_.energy_mean[t * tiling_.observations + b] = mean;
      run_.energy_std[t * tiling_.observations + b] = deviation;
    }
    for (int64_t index = first_; index < last_; ++index) store_trace(t, index);
    thread_.wait();  // no thread may change an energy before all have read them
  }

  // The place of an observation's first chain among the numbers for each lane.
  int64_t first_of(int64_t b) const { return b * tiling_.per_observation * kLanes; }

  // --- each chain has a step size of its own -----------------------------------------------------

  void run_with_own_steps() const {
    for (int64_t index = first_; index < last_; ++index) run_tile(index);
    thread_.wait();
    const Groups groups{tiling_.chains, kLanes};
    const int64_t places = run_.steps * tiling_.observations;
    for (int64_t place = thread_.id; place < places; place += thread_.threads) {
      describe_groups(run_, groups, arena_.sums(), place);
    }
  }

  // Takes one tile through all temperatures.
  void run_tile(int64_t index) const {
    const int64_t row = tiling_.row(index);
    double step[kLanes], running[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int64_t from = row + (l < tiling_.lanes(index) ? l : 0);
      step[l] = run_.step_size[from];
      running[l] = run_.running[from];
    }
    for (int64_t t = 0; t < run_.steps; ++t) {
      reweight(t, index, index + 1);
      arena_.sums()[t * tiling_.tiles + index] = run_temperature(index, t, step, running);
      store_trace(t, index);
    }
    for (int l = 0; l < tiling_.lanes(index); ++l) {
      run_.step_size[row + l] = step[l];
      run_.running[row + l] = running[l];
    }
  }

  // Takes one tile through a temperature; returns the sums over its chains.
  GroupSums run_temperature(int64_t index, int64_t t, double* step, double* running) const {
    const int lanes = tiling_.lanes(index);
    GroupSums sums{};
    Outcome<kLanes> outcome;
    for (int64_t m = 0; m < run_.hmc_steps; ++m) {
      transition(index, t, m, Layout::own_steps(step), outcome);
      sums.step_size = 0.0;
      for (int l = 0; l < lanes; ++l) {
        sums.probability += outcome.probability[l];
        sums.step_size += step[l];
      }
      for (int l = 0; l < kLanes; ++l) adapt_to(outcome.probability[l], &step[l], &running[l]);
    }
    const double* energy = arena_.energy() + index * kLanes;
    for (int l = 0; l < lanes; ++l) sums.energy += energy[l];
    for (int l = 0; l < lanes; ++l) {
      const double from_mean = energy[l] - sums.energy / lanes;
      sums.spread += from_mean * from_mean;
    }
    return sums;
  }

  const MlpRun<T>& run_;
  const Tiling<T, Layout>& tiling_;
  const Arena<T, Layout>& arena_;
  const TeamThread thread_;
  const int64_t first_, last_;
  T* const room_;
};

template <class T, class Layout>
int64_t bytes_in(const MlpRun<T>& run, int threads) {
  return Arena<T, Layout>(nullptr, Tiling<T, Layout>(run.shape), run).bytes(threads);
}

template <class T>
int64_t arena_bytes(const MlpRun<T>& run, int threads) {
  return run.shape.chains < kFewChains<T> ? bytes_in<T, UnitsInLanes<T>>(run, threads)
                                          : bytes_in<T, ChainsInLanes<T>>(run, threads);
}

template <class T, class Layout>
void anneal_in(const MlpRun<T>& run, char* memory, int threads) {
  const Tiling<T, Layout> tiling(run.shape);
  const Arena<T, Layout> arena(memory, tiling, run);
  run_team(tiling.team(threads), [&](const TeamThread& thread) {
    Worker<T, Layout>(run, tiling, arena, thread).run();
  });
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

extern const PublishedOps<float> published_float{arena_bytes<float>, anneal<float>};
extern const PublishedOps<double> published_double{arena_bytes<double>, anneal<double>};

}  // namespace COGEN_ISA
}  // namespace cogen
