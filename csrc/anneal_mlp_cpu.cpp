// The published run for a generator of dense layers on CPU: threads over tiles of chains, which
// meet where an observation's chains share a step size. Compiled once per instruction set; uses no
// inline function of the standard library.
#include "tiles.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

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
        room(aligned((2 * entries + Layout::room(net)) * sizeof(T))),
        states(3 * lanes),
        rooms(states + tiling.tiles * state),
        memory(start) {}

  int64_t bytes(int threads) const { return rooms + threads * room; }
  double* energy() const { return reinterpret_cast<double*>(memory); }
  double* weights() const { return reinterpret_cast<double*>(memory + lanes); }
  // Probabilities of the last transition.
  double* probability() const { return reinterpret_cast<double*>(memory + 2 * lanes); }
  T* room_of(int thread) const { return reinterpret_cast<T*>(memory + rooms + thread * room); }
  // `room` is the thread's, whose start holds the proposal.
  Tile<T> tile(const Tiling<T, Layout>& tiling, int64_t index, T* room) const {
    T* latents = reinterpret_cast<T*>(memory + states + index * state);
    return {latents,        latents + entries,
            room,           room + entries,
            energy() + index * Layout::kLanes, static_cast<uint32_t>(tiling.first_chain(index))};
  }
};

// One thread of the run, and where the others wait for it.
template <class T, class Layout>
class Worker {
 public:
  Worker(const MlpRun<T>& run, const Tiling<T, Layout>& tiling, const Arena<T, Layout>& arena,
         const Member& member)
      : run_(run),
        tiling_(tiling),
        arena_(arena),
        member_(member),
        first_(member.first(tiling.tiles)),
        last_(member.last(tiling.tiles)),
        room_(arena.room_of(member.id)) {}

  void all() {
    for (int64_t index = first_; index < last_; ++index) load(index);
    member_.wait();
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
    const Tile<T> tile = arena_.tile(tiling_, index, room_);
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
    const Tile<T> tile = arena_.tile(tiling_, index, room_);
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
      const Move<T> move{potential, run_.step_size[b], nullptr,
                         static_cast<int>(run_.leapfrog_steps)};
      const Stream stream{run_.noise.seed,
                          static_cast<uint32_t>(run_.noise.transition[b] + t * run_.hmc_steps + m),
                          static_cast<uint32_t>(run_.noise.observation[b])};
      const int measured = run_.net.width[run_.net.layers];
      Layout::transition(run_.net, observed_of(run_.observed, b, measured), stream, move,
                         arena_.tile(tiling_, index, room_), room_ + 2 * arena_.entries, outcome);
      for (int l = 0; l < tiling_.lanes(index); ++l) {
        arena_.probability()[index * kLanes + l] = outcome.probability[l];
        // A rejection for not being finite; HUGE_VAL stands for it.
        if (outcome.change[l] == HUGE_VAL) ++run_.non_finite[tiling_.row(index) + l];
      }
    }
    member_.wait();
    for (int64_t b = member_.id; b < tiling_.observations; b += member_.threads) adapted(t, m, b);
    member_.wait();
  }

  void adapted(int64_t t, int64_t m, int64_t b) const {
    const double mean = mean_of(Alone{}, arena_.probability() + first_of(b), tiling_.chains);
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
    for (int64_t b = member_.id; b < tiling_.observations; b += member_.threads) {
      const double* energy = arena_.energy() + first_of(b);
      const double mean = mean_of(Alone{}, energy, tiling_.chains);
      const double deviation = deviation_of(Alone{}, energy, tiling_.chains, mean);
      run_.energy_mean[t * tiling_.observations + b] = mean;
      run_.energy_std[t * tiling_.observations + b] = deviation;
    }
    if (run_.trace) {
      T* out = run_.trace + t * tiling_.observations * tiling_.chains * tiling_.size;
      for (int64_t index = first_; index < last_; ++index) {
        store_entries(index, arena_.tile(tiling_, index, room_).latents, out);
      }
    }
    member_.wait();  // before anybody changes an energy
  }

  // The first chain of an observation among the values per lane, which lie one after the other.
  int64_t first_of(int64_t b) const { return b * tiling_.per_observation * kLanes; }

  const MlpRun<T>& run_;
  const Tiling<T, Layout>& tiling_;
  const Arena<T, Layout>& arena_;
  const Member member_;
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
  together(tiling.team(threads), [&](const Member& member) {
    Worker<T, Layout>(run, tiling, arena, member).all();
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
