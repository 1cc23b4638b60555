// The adaptive run for a generator of dense layers on CPU. Threads take tiles of chains for moves
// and observations for what is decided between them. Compiled once per instruction set; uses no
// inline function of the standard library.
#include "population.h"
#include "tiles.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

constexpr uint32_t kResamplePurpose = 3, kJitterPurpose = 4;

// Where everything lies in the memory of a run, in bytes from its start. Values of a lane lie one
// after the other, in the order of chains.
template <class T, class Layout>
struct Arena {
  int64_t lanes;      // values of a kind, one per lane
  int64_t entries;    // numbers of a tile's latents
  int64_t size, first_layer, directions;
  char* memory;
  // Starts.
  int64_t energy, before, backup, log_weights, scratch;        // doubles, one per lane
  int64_t states, row;                                         // arrays of a tile's entries
  int64_t moved;                                               // bytes, one per lane
  int64_t basis, eigen, nets, kept, acceptance;                // per observation
  int64_t rooms, room;
  int64_t end;

  static constexpr int64_t kArrays = 7;

  Arena(char* start, const Tiling<T, Layout>& tiling, const AdaptiveRun<T>& run, int threads)
      : lanes(tiling.tiles * Layout::kLanes),
        entries(Layout::entries(run.net.width[0])),
        size(run.net.width[0]),
        first_layer(size * padded(run.net.width[1]) + run.net.width[1] * padded(size)),
        directions(directions_of(size)),
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
    eigen = take(each * (2 * size * size + size * (directions + 1)) * 8);
    nets = take(each * aligned(first_layer * sizeof(T)));
    kept = take(each * 8);
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

// A tile's arrays.
enum { kLatents, kGrad, kStart, kPosition, kMomentum, kLatentsBackup, kGradBackup };

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
      each_observation([&](int64_t b) { choose(t, b); });
      for (int64_t tile = first_; tile < last_; ++tile) back_up(tile);
      member_.wait();
      for (int64_t tile = first_; tile < last_; ++tile) resample(t, tile);
      member_.wait();
      for (int64_t made = 0; made < pace_.hmc_steps; ++made) move(t, made);
      for (int64_t tile = first_; tile < last_; ++tile) turn_back(t, tile);
      member_.wait();
      each_observation([&](int64_t b) { close(t, b); });
      if (member_.id == 0) progress_.steps = t + 1;
    }
    member_.wait();
    for (int64_t tile = first_; tile < last_; ++tile) store(tile);
  }

 private:
  static constexpr int kLanes = Layout::kLanes;

  template <class Body>
  void each_observation(const Body& body) const {
    for (int64_t b = member_.id; b < tiling_.observations; b += member_.threads) body(b);
  }

  // The first chain of an observation among the values per lane.
  int64_t first_of(int64_t b) const { return b * tiling_.per_observation * kLanes; }
  double* values(int64_t start, int64_t b) const { return arena_.doubles(start) + first_of(b); }
  int64_t place(int64_t t, int64_t b) const { return t * tiling_.observations + b; }

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
    pace_ = choose_pace(run_.plan, tiling_.size, run_.at, progress_.spent,
                        out_.moves + place(t, 0), out_.kept + place(t, 0));
    out_.leapfrog_steps[t] = pace_.leapfrog_steps;
    out_.hmc_steps[t] = pace_.hmc_steps;
  }

  // What one observation does at temperature t: to which, whether it resamples, with what mass.
  void choose(int64_t t, int64_t b) const {
    const int64_t at = place(t, b), chains = tiling_.chains;
    const Standing& s = run_.at;
    double* energy = values(arena_.energy, b);
    double* log_weights = values(arena_.log_weights, b);
    double* scratch = values(arena_.scratch, b);
    const int64_t* roots = run_.roots + b * chains;
    const double beta = s.beta[b];
    if (!run_.repeats) {
      out_.active[at] = !s.finished[b];
      double target = beta;
      if (out_.active[at]) {
        next_beta(1, chains, energy, log_weights, &beta, out_.kept + at, nullptr, &target);
      }
      if (out_.kept[at] > 0.0 && collapsed(energy, roots, chains, scratch)) {
        target = lesser(target, kBlind * beta);
        out_.kept[at] = NAN;
      }
      out_.beta[at] = target;
    }
    weigh(at, b, energy, log_weights, roots, scratch);
    const double effective = effective_size(log_weights, chains);
    out_.effective_size[at] = effective;
    if (!run_.repeats) {
      const double share = effective / static_cast<double>(chains);
      const bool arrived = out_.beta[at] >= 1.0 && beta < 1.0;
      const bool uneven = arrived || share < run_.plan.resample_below + kTie;
      out_.resampled[at] = out_.active[at] && uneven;
      out_.step_size[at] = exp(sharpened(s.log_step[b], beta, out_.beta[at], tiling_.size));
      set_mass(at, b, log_weights);
    }
    if (out_.active[at]) s.log_step[b] = log(out_.step_size[at]);
    set_basis(at, b);
    draw_ancestors(at, b, log_weights);
    arena_.doubles(arena_.acceptance)[b] = 0.0;
    arena_.doubles(arena_.kept)[b] = beta;  // the temperature it came from
  }

  void weigh(int64_t at, int64_t b, const double* energy, double* log_weights,
             const int64_t* roots, double* scratch) const {
    const double increment = out_.beta[at] - run_.at.beta[b];
    for (int64_t n = 0; n < tiling_.chains; ++n) log_weights[n] -= increment * energy[n];
    if (increment > 0.0) {
      run_.at.variance[b] = genealogical_variance(log_weights, roots, tiling_.chains, scratch);
    }
  }

  void set_mass(int64_t at, int64_t b, const double* log_weights) const {
    const int64_t d = tiling_.size, k = arena_.directions;
    T* inverse_mass = out_.inverse_mass + at * d;
    if (run_.plan.mass == MassKind::low_rank && k > 0) {
      double* room = arena_.doubles(arena_.eigen) + b * (2 * d * d + d * (k + 1));
      double* mass = room + 2 * d * d + d * k;
      stiff_directions(run_.curvature + b * d * d, out_.beta[at], d, run_.filler,
                       out_.stiff + at * d * k, mass, room);
      for (int64_t i = 0; i < d; ++i) inverse_mass[i] = static_cast<T>(mass[i]);
    } else if (run_.plan.mass == MassKind::diagonal) {
      diagonal_mass(b, log_weights, inverse_mass);
    }
  }

  // The population's variances, drawn towards their mean, with a geometric mean of 1.
  void diagonal_mass(int64_t b, const double* log_weights, T* inverse_mass) const {
    const int64_t d = tiling_.size, chains = tiling_.chains;
    const double total = log_sum_exp(log_weights, chains), count = static_cast<double>(chains);
    double mean = 0.0, log_sum = 0.0;
    for (int64_t i = 0; i < d; ++i) {
      double centre = 0.0, variance = 0.0;
      for (int64_t n = 0; n < chains; ++n) {
        centre += exp(log_weights[n] - total) * entry(b, n, kLatents)[i * kLanes];
      }
      for (int64_t n = 0; n < chains; ++n) {
        const double apart = entry(b, n, kLatents)[i * kLanes] - centre;
        variance += exp(log_weights[n] - total) * apart * apart;
      }
      inverse_mass[i] = static_cast<T>(variance);
      mean += variance / static_cast<double>(d);
    }
    for (int64_t i = 0; i < d; ++i) {
      const double shrunk = mean > 0.0 ? (count * static_cast<double>(inverse_mass[i]) +
                                          kMassShrinkage * mean) / (count + kMassShrinkage)
                                       : 1.0;
      inverse_mass[i] = static_cast<T>(shrunk);
      log_sum += log(shrunk);
    }
    const double scale = exp(log_sum / static_cast<double>(d));
    for (int64_t i = 0; i < d; ++i) {
      inverse_mass[i] = static_cast<T>(static_cast<double>(inverse_mass[i]) / scale);
    }
  }

  // Entry 0 of a chain in one of its tile's arrays; the next one is kLanes further.
  T* entry(int64_t b, int64_t n, int64_t which) const {
    return arena_.array(b * tiling_.per_observation + n / kLanes, which) + n % kLanes;
  }

  bool turned() const { return run_.plan.mass == MassKind::low_rank && arena_.directions > 0; }
  // Whether an observation's moves teach its curvature, which is in the turned coordinates then.
  bool sees_curvature(int64_t at) const {
    return turned() && !run_.repeats && out_.active[at] && out_.moves[at] > 0;
  }
  double* basis(int64_t b) const {
    return arena_.doubles(arena_.basis) + b * tiling_.size * tiling_.size;
  }

  // Coordinates in which the stiff directions come first: a basis, the generator's first layer in
  // it, and the curvature.
  void set_basis(int64_t at, int64_t b) const {
    if (!turned()) return;
    const int64_t d = tiling_.size, k = arena_.directions;
    double* room = arena_.doubles(arena_.eigen) + b * (2 * d * d + d * (k + 1));
    basis_of(out_.stiff + at * d * k, d, k, room + 2 * d * d, basis(b));
    if (sees_curvature(at)) rotate(run_.curvature + b * d * d, basis(b), room, false);
    const int64_t out = run_.net.width[1], row = padded(static_cast<int>(out));
    const int64_t column = padded(static_cast<int>(d));
    T* weight = first_layer(b);
    T* back = weight + d * row;
    for (int64_t j = 0; j < d; ++j) {
      for (int64_t o = 0; o < row; ++o) {
        double sum = 0.0;
        for (int64_t i = 0; i < d; ++i) {
          sum += basis(b)[i * d + j] * static_cast<double>(run_.net.weight[0][i * row + o]);
        }
        weight[j * row + o] = static_cast<T>(sum);
        if (o < out) back[o * column + j] = static_cast<T>(sum);
      }
    }
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t j = d; j < column; ++j) back[o * column + j] = T(0);
    }
  }

  T* first_layer(int64_t b) const {
    return reinterpret_cast<T*>(arena_.memory + arena_.nets +
                                b * aligned(arena_.first_layer * sizeof(T)));
  }

  // `matrix` M becomes Q' M Q, or Q M Q' to go `back`.
  void rotate(double* matrix, const double* q, double* room, bool back) const {
    const int64_t d = tiling_.size;
    const auto at = [&](int64_t i, int64_t j) { return back ? q[j * d + i] : q[i * d + j]; };
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = 0; j < d; ++j) {
        double sum = 0.0;
        for (int64_t r = 0; r < d; ++r) sum += matrix[i * d + r] * at(r, j);
        room[i * d + j] = sum;
      }
    }
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = 0; j < d; ++j) {
        double sum = 0.0;
        for (int64_t r = 0; r < d; ++r) sum += at(r, i) * room[r * d + j];
        matrix[i * d + j] = sum;
      }
    }
  }

  double uniform_of(int64_t b, uint32_t purpose) const {
    const Words words = philox(run_.seed, purpose << kPurposeBits,
                               static_cast<uint32_t>(run_.at.transition[b]), 0,
                               static_cast<uint32_t>(run_.observation[b]));
    return to_uniform<double>(words.w[0]);
  }

  void draw_ancestors(int64_t at, int64_t b, double* log_weights) const {
    const int64_t chains = tiling_.chains;
    int64_t* ancestors = out_.ancestors + at * chains;
    const double uniform = uniform_of(b, kResamplePurpose);
    const bool* wanted = out_.resampled + at;
    systematic(1, chains, log_weights, &uniform, wanted, ancestors);
    if (!*wanted) return;
    const double even = log_sum_exp(log_weights, chains) - log(static_cast<double>(chains));
    // Ancestors never decrease, but a root may be asked for after its place was taken.
    double* scratch = values(arena_.scratch, b);
    int64_t* roots = run_.roots + b * chains;
    for (int64_t n = 0; n < chains; ++n) scratch[n] = static_cast<double>(roots[ancestors[n]]);
    for (int64_t n = 0; n < chains; ++n) {
      roots[n] = static_cast<int64_t>(scratch[n]);
      log_weights[n] = even;
    }
    ++run_.at.resamplings[b];
  }

  void back_up(int64_t tile) const {
    memcpy(arena_.array(tile, kLatentsBackup), arena_.array(tile, kLatents),
           2 * arena_.entries * sizeof(T));
    memcpy(arena_.doubles(arena_.backup) + tile * kLanes,
           arena_.doubles(arena_.energy) + tile * kLanes, kLanes * sizeof(double));
  }

  // Each chain in the place of its ancestor, in the turned coordinates.
  void resample(int64_t t, int64_t tile) const {
    const int64_t b = tiling_.observation(tile), at = place(t, b), d = tiling_.size;
    for (int l = 0; l < kLanes; ++l) {
      const int64_t n = tiling_.first_chain(tile) + (l < tiling_.lanes(tile) ? l : 0);
      const int64_t from = out_.ancestors[at * tiling_.chains + n];
      arena_.doubles(arena_.energy)[tile * kLanes + l] = values(arena_.backup, b)[from];
      arena_.memory[arena_.moved + tile * kLanes + l] = 0;
      turn(b, entry(b, from, kLatentsBackup), arena_.array(tile, kLatents) + l, d, false);
      turn(b, entry(b, from, kGradBackup), arena_.array(tile, kGrad) + l, d, false);
    }
  }

  // A chain's entries times Q, or Q' to go `back`.
  void turn(int64_t b, const T* from, T* to, int64_t d, bool back) const {
    if (!turned()) {
      for (int64_t i = 0; i < d; ++i) to[i * kLanes] = from[i * kLanes];
      return;
    }
    const double* q = basis(b);
    for (int64_t j = 0; j < d; ++j) {
      double sum = 0.0;
      for (int64_t i = 0; i < d; ++i) {
        sum += static_cast<double>(from[i * kLanes]) * (back ? q[j * d + i] : q[i * d + j]);
      }
      to[j * kLanes] = static_cast<T>(sum);
    }
  }

  // Out of the turned coordinates; chains that stand where they stood keep every bit.
  void turn_back(int64_t t, int64_t tile) const {
    const int64_t b = tiling_.observation(tile), at = place(t, b), d = tiling_.size;
    if (turned()) {
      for (int l = 0; l < kLanes; ++l) {
        const int64_t n = tiling_.first_chain(tile) + (l < tiling_.lanes(tile) ? l : 0);
        const int64_t from = out_.ancestors[at * tiling_.chains + n];
        const bool moved = arena_.memory[arena_.moved + tile * kLanes + l] != 0;
        restore(b, arena_.array(tile, kLatents) + l, arena_.array(tile, kStart) + l,
                entry(b, from, kLatentsBackup), moved);
        restore(b, arena_.array(tile, kGrad) + l, arena_.array(tile, kStart) + l,
                entry(b, from, kGradBackup), moved);
      }
    }
    if (run_.trace) {
      store_entries(tile, arena_.array(tile, kLatents),
                    run_.trace + t * tiling_.observations * tiling_.chains * d);
    }
  }

  void restore(int64_t b, T* here, T* room, const T* kept, bool moved) const {
    const int64_t d = tiling_.size;
    for (int64_t i = 0; i < d; ++i) room[i * kLanes] = moved ? here[i * kLanes] : kept[i * kLanes];
    if (moved) {
      turn(b, room, here, d, true);
    } else {
      for (int64_t i = 0; i < d; ++i) here[i * kLanes] = room[i * kLanes];
    }
  }

  void close(int64_t t, int64_t b) const {
    const int64_t at = place(t, b), d = tiling_.size;
    const Standing& s = run_.at;
    const bool active = out_.active[at];
    const double beta = arena_.doubles(arena_.kept)[b];  // where it came from
    if (sees_curvature(at)) {
      double* room = arena_.doubles(arena_.eigen) + b * (2 * d * d + d * (arena_.directions + 1));
      rotate(run_.curvature + b * d * d, basis(b), room, true);
    }
    const double* energy = values(arena_.energy, b);
    const double mean = mean_of(energy, tiling_.chains);
    const int64_t moves = out_.moves[at];
    out_.energy_mean[at] = active ? mean : NAN;
    out_.energy_std[at] = active ? deviation_of(energy, tiling_.chains, mean) : NAN;
    out_.acceptance[at] =
        active && moves > 0
            ? arena_.doubles(arena_.acceptance)[b] / static_cast<double>(moves)
            : NAN;
    s.sharpness[b] =
        sharpness_after(s.sharpness[b], beta, out_.beta[at], out_.kept[at], active, run_.plan);
    s.beta[b] = out_.beta[at];
    s.rounds[b] += active && out_.beta[at] >= 1.0;
    const bool spent = run_.plan.budget > 0 && progress_.spent >= run_.plan.budget;
    const bool over = moves == 0 || spent;
    const bool ended = s.rounds[b] >= run_.plan.final_rounds || (s.rounds[b] >= 1 && over);
    s.jumped[b] |= active && out_.kept[at] < least_kept(run_.plan) && s.rounds[b] <= 1;
    s.finished[b] |= active && ended;
  }

  // --- moves ------------------------------------------------------------------------------------

  void move(int64_t t, int64_t made) const {
    for (int64_t tile = first_; tile < last_; ++tile) {
      const int64_t b = tiling_.observation(tile), at = place(t, b);
      if (out_.active[at] && made < out_.moves[at]) transition(t, tile);
    }
    member_.wait();
    each_observation([&](int64_t b) {
      const int64_t at = place(t, b);
      if (out_.active[at] && made < out_.moves[at]) learn(at, b);
    });
    if (member_.id == 0) progress_.spent += pace_.leapfrog_steps;
    member_.wait();
  }

  // The step size with its jitter, of the transition that comes.
  double jittered(int64_t b) const {
    const double turn = 2.0 * uniform_of(b, kJitterPurpose) - 1.0;
    return exp(run_.at.log_step[b]) * (1.0 + run_.plan.rule.jitter * turn);
  }

  const T* mass_of(int64_t at) const {
    const bool none = run_.plan.mass == MassKind::identity ||
                      (run_.plan.mass == MassKind::low_rank && arena_.directions == 0);
    return none ? nullptr : out_.inverse_mass + at * tiling_.size;
  }

  void transition(int64_t t, int64_t tile) const {
    const int64_t b = tiling_.observation(tile), at = place(t, b);
    Mlp<T> net = run_.net;
    if (turned()) {
      net.weight[0] = first_layer(b);
      net.back[0] = net.weight[0] + tiling_.size * padded(net.width[1]);
    }
    const Move<T> move{{out_.beta[at], 1.0}, jittered(b), mass_of(at),
                       static_cast<int>(pace_.leapfrog_steps)};
    const Stream stream{run_.seed, static_cast<uint32_t>(run_.at.transition[b]),
                        static_cast<uint32_t>(run_.observation[b])};
    const Tile<T> here{arena_.array(tile, kLatents),
                       arena_.array(tile, kGrad),
                       arena_.array(tile, kPosition),
                       arena_.array(tile, kMomentum),
                       arena_.doubles(arena_.energy) + tile * kLanes,
                       static_cast<uint32_t>(tiling_.first_chain(tile))};
    double* before = arena_.doubles(arena_.before) + tile * kLanes;
    memcpy(arena_.array(tile, kStart), here.latents, arena_.entries * sizeof(T));
    memcpy(before, here.energy, kLanes * sizeof(double));
    typename Layout::Outcome outcome;
    Layout::transition(net, observed_of(run_.observed, b / run_.each, net.width[net.layers]),
                       stream, move, here, room_, outcome);
    for (int l = 0; l < tiling_.lanes(tile); ++l) {
      arena_.doubles(arena_.scratch)[tile * kLanes + l] = outcome.probability[l];
      if (outcome.accepted[l]) arena_.memory[arena_.moved + tile * kLanes + l] = 1;
      // A rejection for not being finite; HUGE_VAL stands for it.
      if (outcome.change[l] == HUGE_VAL) ++run_.non_finite[tiling_.row(tile) + l];
    }
  }

  // What the transition just made teaches an observation.
  void learn(int64_t at, int64_t b) const {
    const Standing& s = run_.at;
    const double* probability = values(arena_.scratch, b);
    const double acceptance = mean_of(probability, tiling_.chains);
    out_.step_size[at] = exp(s.log_step[b]);
    if (!run_.repeats) {
      const double slope = length_slope(at, b, probability);
      const double kept = correlation(values(arena_.before, b), values(arena_.energy, b),
                                      tiling_.chains);
      const Tuned now = tuned({s.log_step[b], s.log_length[b], s.memory[b]}, acceptance, slope,
                              kept, tiling_.chains, run_.plan.rule);
      s.log_step[b] = now.log_step;
      s.log_length[b] = now.log_length;
      s.memory[b] = now.memory;
      if (sees_curvature(at)) see_curvature(at, b);
    }
    arena_.doubles(arena_.acceptance)[b] += acceptance;
    ++s.transition[b];
  }

  // Gradient of log(ChEES / length) by log length (Hoffman, Radul and Sountsov 2021, section 3).
  double length_slope(int64_t at, int64_t b, const double* probability) const {
    const int64_t d = tiling_.size, chains = tiling_.chains;
    const T* mass = mass_of(at);
    const double length = jittered(b) * static_cast<double>(pace_.leapfrog_steps);
    double gain = 0.0, criterion = 0.0;
    // Per chain: |z' - m'|^2 - |z - m|^2 and <z' - m', velocity>.
    double* means = arena_.doubles(arena_.eigen) + b * (2 * d * d + d * (arena_.directions + 1));
    double* proposed_means = means + d;
    for (int64_t i = 0; i < 2 * d; ++i) means[i] = 0.0;
    for (int64_t n = 0; n < chains; ++n) {
      const T* z = entry(b, n, kStart);
      const T* q = probability[n] > 0.0 ? entry(b, n, kPosition) : z;
      for (int64_t i = 0; i < d; ++i) {
        means[i] += static_cast<double>(z[i * kLanes]);
        proposed_means[i] += static_cast<double>(q[i * kLanes]);
      }
    }
    for (int64_t i = 0; i < 2 * d; ++i) means[i] /= static_cast<double>(chains);
    for (int64_t n = 0; n < chains; ++n) {
      if (!(probability[n] > 0.0)) continue;
      const T* z = entry(b, n, kStart);
      const T* q = entry(b, n, kPosition);
      const T* v = entry(b, n, kMomentum);
      double change = 0.0, along = 0.0;
      for (int64_t i = 0; i < d; ++i) {
        const double from = static_cast<double>(z[i * kLanes]) - means[i];
        const double to = static_cast<double>(q[i * kLanes]) - proposed_means[i];
        change += to * to - from * from;
        along += to * static_cast<double>(v[i * kLanes]) *
                 (mass ? static_cast<double>(mass[i]) : 1.0);
      }
      gain += probability[n] * change * along;
      criterion += probability[n] * change * change;
    }
    if (!(criterion > 0.0)) return 0.0;
    const double slope = 4.0 * length * gain / greater(criterion, kTiny) - 1.0;
    return lesser(greater(slope, -kSteepest), kSteepest);
  }

  // The running mean of beta grad grad', in the turned coordinates.
  void see_curvature(int64_t at, int64_t b) const {
    const int64_t d = tiling_.size, chains = tiling_.chains;
    double* curvature = run_.curvature + b * d * d;
    double trace = 0.0;
    for (int64_t i = 0; i < d; ++i) trace += curvature[i * d + i];
    const double weight = trace > 0.0 ? kCurvatureGain : 1.0;
    const double scale = weight * out_.beta[at] / static_cast<double>(chains);
    for (int64_t i = 0; i < d * d; ++i) curvature[i] *= 1.0 - weight;
    for (int64_t n = 0; n < chains; ++n) {
      const T* g = entry(b, n, kGrad);
      for (int64_t i = 0; i < d; ++i) {
        const double gi = scale * static_cast<double>(g[i * kLanes]);
        for (int64_t j = 0; j < d; ++j) {
          curvature[i * d + j] += gi * static_cast<double>(g[j * kLanes]);
        }
      }
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
  together(threads, [&](const Member& member) {
    Worker<T, Layout>(run, tiling, arena, &pace, &progress, member).all();
  });
  return progress;
}

}  // namespace

extern const AdaptiveOps<float> adaptive_float{arena_bytes<float>, anneal<float>};
extern const AdaptiveOps<double> adaptive_double{arena_bytes<double>, anneal<double>};

}  // namespace COGEN_ISA
}  // namespace cogen
