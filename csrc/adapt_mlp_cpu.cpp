// The adaptive run for a generator of dense layers on CPU. Threads take tiles of chains for moves
// and observations for what is decided between them. Compiled once per instruction set; uses no
// inline function of the standard library.
#include "adapt_mlp.h"
#include "tiles.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

// A thread that decides alone. Temperatures and ancestors are the same for every instruction set.
struct Decider : Alone {
  double next_beta(const double* energy, const double* log_weights, int64_t count, double beta,
                   double kept) const {
    double found;
    cogen::next_beta(1, count, energy, log_weights, &beta, &kept, nullptr, &found);
    return found;
  }
  void systematic(const double* log_weights, int64_t count, double uniform, double* /* room */,
                  int64_t* out) const {
    cogen::systematic(1, count, log_weights, &uniform, nullptr, out);
  }
};

// Where everything lies in the memory of a run, in bytes from its start. Values of a lane lie one
// after the other, in the order of chains.
template <class T, class Layout>
struct Arena {
  int64_t lanes;      // values of a kind, one per lane
  int64_t entries;    // numbers of a tile's latents
  int64_t size, first_layer;
  char* memory;
  // Starts.
  int64_t energy, before, backup, log_weights, scratch;        // doubles, one per lane
  int64_t states, row;                                         // arrays of a tile's entries
  int64_t moved;                                               // bytes, one per lane
  int64_t basis, eigen, nets, came_from, acceptance;           // per observation
  int64_t rooms, room;
  int64_t end;

  static constexpr int64_t kArrays = 7;

  Arena(char* start, const Tiling<T, Layout>& tiling, const AdaptiveRun<T>& run, int threads)
      : lanes(tiling.tiles * Layout::kLanes),
        entries(Layout::entries(run.net.width[0])),
        size(run.net.width[0]),
        first_layer(size * padded(run.net.width[1]) + run.net.width[1] * padded(size)),
        memory(start),
        end(0) {
    const int64_t each = tiling.observations;
    energy = take(lanes * 8);
    before = take(lanes * 8);
    backup = take(lanes * 8);
    log_weights = take(lanes * 8);
    scratch = take(lanes * 8);
    row = aligned(kArrays * entries * sizeof(T));
    states = take(tiling.tiles * row);
    moved = take(lanes);
    basis = take(each * size * size * 8);
    eigen = take(each * room_of_eigen(size) * 8);
    nets = take(each * aligned(first_layer * sizeof(T)));
    came_from = take(each * 8);
    acceptance = take(each * 8);
    room = aligned(Layout::room(run.net) * sizeof(T));
    rooms = take(threads * room);
  }

  double* doubles(int64_t start) const { return reinterpret_cast<double*>(memory + start); }
  T* array(int64_t tile, int64_t which) const {
    return reinterpret_cast<T*>(memory + states + tile * row) + which * entries;
  }

 private:
  int64_t take(int64_t bytes) {
    const int64_t start = end;
    end += aligned(bytes);
    return start;
  }
};

// Where an observation's particles have their entries.
template <class T, class Layout>
struct TiledEntries {
  static constexpr int64_t kApart = Layout::kLanes;
  const Arena<T, Layout>& arena;
  int64_t first_tile;

  T* operator()(int64_t n, int64_t which) const {
    return arena.array(first_tile + n / kApart, which) + n % kApart;
  }
};

template <class T, class Layout>
class Worker {
 public:
  Worker(const AdaptiveRun<T>& run, const Tiling<T, Layout>& tiling, const Arena<T, Layout>& arena,
         Pace* pace, Progress* progress, const Member& member)
      : run_(run),
        out_(run.out),
        tiling_(tiling),
        arena_(arena),
        pace_(*pace),
        progress_(*progress),
        member_(member),
        first_(member.first(tiling.tiles)),
        last_(member.last(tiling.tiles)),
        room_(reinterpret_cast<T*>(arena.memory + arena.rooms + member.id * arena.room)) {}

  void all() {
    for (int64_t tile = first_; tile < last_; ++tile) load(tile);
    for (int64_t t = 0; t < run_.steps; ++t) {
      member_.wait();
      if (finished()) break;
      member_.wait();
      if (member_.id == 0) set_pace(t);
      member_.wait();
      each_observation([&](int64_t b) { row(b).choose(t); });
      for (int64_t tile = first_; tile < last_; ++tile) back_up(tile);
      member_.wait();
      for (int64_t tile = first_; tile < last_; ++tile) resample(t, tile);
      member_.wait();
      for (int64_t made = 0; made < pace_.hmc_steps; ++made) move(t, made);
      for (int64_t tile = first_; tile < last_; ++tile) turn_back(t, tile);
      member_.wait();
      each_observation([&](int64_t b) { row(b).close(t, progress_.spent); });
      if (member_.id == 0) progress_.steps = t + 1;
    }
    member_.wait();
    for (int64_t tile = first_; tile < last_; ++tile) store(tile);
  }

 private:
  static constexpr int kLanes = Layout::kLanes;
  typedef TiledEntries<T, Layout> Entries;
  typedef AdaptiveRow<T, Entries, Decider> Row;

  template <class Body>
  void each_observation(const Body& body) const {
    for (int64_t b = member_.id; b < tiling_.observations; b += member_.threads) body(b);
  }

  // The first chain of an observation among the values per lane.
  int64_t first_of(int64_t b) const { return b * tiling_.per_observation * kLanes; }
  double* values(int64_t start, int64_t b) const { return arena_.doubles(start) + first_of(b); }

  Entries entries(int64_t b) const { return {arena_, b * tiling_.per_observation}; }

  Row row(int64_t b) const {
    const int64_t d = tiling_.size;
    T* const weight = reinterpret_cast<T*>(arena_.memory + arena_.nets +
                                           b * aligned(arena_.first_layer * sizeof(T)));
    const RowRoom<T> room{values(arena_.energy, b),
                          values(arena_.before, b),
                          values(arena_.log_weights, b),
                          values(arena_.scratch, b),
                          arena_.doubles(arena_.basis) + b * d * d,
                          arena_.doubles(arena_.eigen) + b * room_of_eigen(d),
                          weight,
                          weight + d * padded(run_.net.width[1]),
                          arena_.doubles(arena_.came_from) + b,
                          arena_.doubles(arena_.acceptance) + b};
    return Row(run_, b, room, entries(b), Decider{});
  }

  bool finished() const {
    if (run_.repeats) return false;
    for (int64_t b = 0; b < tiling_.observations; ++b) {
      if (!run_.at.finished[b]) return false;
    }
    return true;
  }

  void load(int64_t tile) const {
    for (int l = 0; l < kLanes; ++l) {
      // A lane that nobody asked for does as the first one of its tile.
      const int64_t from = tiling_.row(tile) + (l < tiling_.lanes(tile) ? l : 0);
      arena_.doubles(arena_.energy)[tile * kLanes + l] = run_.energy[from];
      arena_.doubles(arena_.log_weights)[tile * kLanes + l] = run_.log_weights[from];
      for (int64_t i = 0; i < tiling_.size; ++i) {
        arena_.array(tile, kLatents)[i * kLanes + l] = run_.latents[from * tiling_.size + i];
        arena_.array(tile, kGrad)[i * kLanes + l] = run_.grad[from * tiling_.size + i];
      }
    }
  }

  void store(int64_t tile) const {
    store_entries(tile, arena_.array(tile, kLatents), run_.latents);
    store_entries(tile, arena_.array(tile, kGrad), run_.grad);
    for (int l = 0; l < tiling_.lanes(tile); ++l) {
      const int64_t to = tiling_.row(tile) + l;
      run_.energy[to] = arena_.doubles(arena_.energy)[tile * kLanes + l];
      run_.log_weights[to] = arena_.doubles(arena_.log_weights)[tile * kLanes + l];
    }
  }

  void store_entries(int64_t tile, const T* entries, T* out) const {
    for (int l = 0; l < tiling_.lanes(tile); ++l) {
      T* row = out + (tiling_.row(tile) + l) * tiling_.size;
      for (int64_t i = 0; i < tiling_.size; ++i) row[i] = entries[i * kLanes + l];
    }
  }

  // --- between moves ----------------------------------------------------------------------------

  void set_pace(int64_t t) const {
    if (run_.repeats) {
      pace_ = {out_.leapfrog_steps[t], out_.hmc_steps[t]};
      return;
    }
    const auto told = [&](int64_t b) { return progressing(run_.at, b, tiling_.size); };
    const int64_t all = tiling_.observations;
    const Fit fit = common_fit(Alone{}, run_.plan, all, told, progress_.spent);
    pace_ = common_pace(Alone{}, run_.plan, fit, all, told);
    for (int64_t b = 0; b < all; ++b) {
      const OwnPace own = own_pace(run_.plan, fit, told(b));
      out_.moves[t * all + b] = own.moves;
      out_.kept[t * all + b] = own.kept;
    }
    out_.leapfrog_steps[t] = pace_.leapfrog_steps;
    out_.hmc_steps[t] = pace_.hmc_steps;
  }

  void back_up(int64_t tile) const {
    memcpy(arena_.array(tile, kLatentsBackup), arena_.array(tile, kLatents),
           2 * arena_.entries * sizeof(T));
    memcpy(arena_.doubles(arena_.backup) + tile * kLanes,
           arena_.doubles(arena_.energy) + tile * kLanes, kLanes * sizeof(double));
  }

  // Each chain in the place of its ancestor, in the turned coordinates.
  void resample(int64_t t, int64_t tile) const {
    const int64_t b = tiling_.observation(tile);
    const Row row = this->row(b);
    for (int l = 0; l < kLanes; ++l) {
      const int64_t from = row.ancestor(t, chain_of(tile, l));
      arena_.doubles(arena_.energy)[tile * kLanes + l] = values(arena_.backup, b)[from];
      arena_.memory[arena_.moved + tile * kLanes + l] = 0;
      turn(row, entries(b)(from, kLatentsBackup), arena_.array(tile, kLatents) + l, false);
      turn(row, entries(b)(from, kGradBackup), arena_.array(tile, kGrad) + l, false);
    }
  }

  // A lane that nobody asked for does as the first one of its tile.
  int64_t chain_of(int64_t tile, int lane) const {
    return tiling_.first_chain(tile) + (lane < tiling_.lanes(tile) ? lane : 0);
  }

  void turn(const Row& row, const T* from, T* to, bool back) const {
    if (row.turned()) {
      for (int64_t j = 0; j < tiling_.size; ++j) to[j * kLanes] = row.turned_entry(from, j, back);
    } else {
      for (int64_t i = 0; i < tiling_.size; ++i) to[i * kLanes] = from[i * kLanes];
    }
  }

  // Out of the turned coordinates; chains that stand where they stood keep every bit.
  void turn_back(int64_t t, int64_t tile) const {
    const int64_t b = tiling_.observation(tile), d = tiling_.size;
    const Row row = this->row(b);
    for (int l = 0; l < kLanes && row.turned(); ++l) {
      const int64_t from = row.ancestor(t, chain_of(tile, l));
      const bool moved = arena_.memory[arena_.moved + tile * kLanes + l] != 0;
      T* const room = arena_.array(tile, kStart) + l;
      restore(row, arena_.array(tile, kLatents) + l, room, entries(b)(from, kLatentsBackup), moved);
      restore(row, arena_.array(tile, kGrad) + l, room, entries(b)(from, kGradBackup), moved);
    }
    if (run_.trace) {
      store_entries(tile, arena_.array(tile, kLatents),
                    run_.trace + t * tiling_.observations * tiling_.chains * d);
    }
  }

  void restore(const Row& row, T* here, T* room, const T* kept, bool moved) const {
    for (int64_t i = 0; i < tiling_.size; ++i) {
      room[i * kLanes] = moved ? here[i * kLanes] : kept[i * kLanes];
    }
    if (moved) {
      turn(row, room, here, true);
    } else {
      for (int64_t i = 0; i < tiling_.size; ++i) here[i * kLanes] = room[i * kLanes];
    }
  }

  // --- moves ------------------------------------------------------------------------------------

  void move(int64_t t, int64_t made) const {
    for (int64_t tile = first_; tile < last_; ++tile) {
      const Row row = this->row(tiling_.observation(tile));
      if (row.moves(t, made)) transition(row, t, tile);
    }
    member_.wait();
    each_observation([&](int64_t b) {
      const Row row = this->row(b);
      if (row.moves(t, made)) row.learn(t, pace_.leapfrog_steps);
    });
    if (member_.id == 0) progress_.spent += pace_.leapfrog_steps;
    member_.wait();
  }

  void transition(const Row& row, int64_t t, int64_t tile) const {
    const int64_t b = tiling_.observation(tile);
    const Tile<T> here{arena_.array(tile, kLatents),
                       arena_.array(tile, kGrad),
                       arena_.array(tile, kPosition),
                       arena_.array(tile, kMomenta),
                       arena_.doubles(arena_.energy) + tile * kLanes,
                       static_cast<uint32_t>(tiling_.first_chain(tile))};
    double* before = arena_.doubles(arena_.before) + tile * kLanes;
    memcpy(arena_.array(tile, kStart), here.latents, arena_.entries * sizeof(T));
    memcpy(before, here.energy, kLanes * sizeof(double));
    typename Layout::Outcome outcome;
    const Mlp<T> net = row.net();
    Layout::transition(net, observed_of(run_.observed, b / run_.each, net.width[net.layers]),
                       row.stream(), row.move_of(t, pace_.leapfrog_steps), here, room_, outcome);
    for (int l = 0; l < tiling_.lanes(tile); ++l) {
      arena_.doubles(arena_.scratch)[tile * kLanes + l] = outcome.probability[l];
      if (outcome.accepted[l]) arena_.memory[arena_.moved + tile * kLanes + l] = 1;
      // A rejection for not being finite; HUGE_VAL stands for it.
      if (outcome.change[l] == HUGE_VAL) ++run_.non_finite[tiling_.row(tile) + l];
    }
  }

  const AdaptiveRun<T>& run_;
  const Temperatures<T>& out_;
  const Tiling<T, Layout>& tiling_;
  const Arena<T, Layout>& arena_;
  Pace& pace_;
  Progress& progress_;
  const Member member_;
  const int64_t first_, last_;
  T* const room_;
};

template <class T, class Layout>
int64_t bytes_in(const AdaptiveRun<T>& run, int threads) {
  const Tiling<T, Layout> tiling(run.shape);
  return Arena<T, Layout>(nullptr, tiling, run, threads).end;
}

// A population has sixteen particles or more: always enough for lanes.
template <class T>
int64_t arena_bytes(const AdaptiveRun<T>& run, int threads) {
  return bytes_in<T, ChainsInLanes<T>>(run, threads);
}

template <class T>
Progress anneal(const AdaptiveRun<T>& run, char* memory, int threads) {
  typedef ChainsInLanes<T> Layout;
  const Tiling<T, Layout> tiling(run.shape);
  const Arena<T, Layout> arena(memory, tiling, run, threads);
  Pace pace{};
  Progress progress{0, run.spent};
  together(tiling.team(threads), [&](const Member& member) {
    Worker<T, Layout>(run, tiling, arena, &pace, &progress, member).all();
  });
  return progress;
}

}  // namespace

extern const AdaptiveOps<float> adaptive_float{arena_bytes<float>, anneal<float>};
extern const AdaptiveOps<double> adaptive_double{arena_bytes<double>, anneal<double>};

}  // namespace COGEN_ISA
}  // namespace cogen
