// The adaptive run for a generator of dense layers on a device of many threads: what each thread of
// one launch does. adapt_mlp_cuda.cu compiles it for CUDA; tests/emulated gives it threads of its
// own.
//
// A block has a row of particles to itself, or several rows one after the other: it makes as many
// chains at once as it can, a chain for each thread or for each warp, and decides with all its
// threads what comes between moves. Rows share the pace alone. So blocks meet once before each
// temperature, where every row has told how far it is, and each computes the pace for itself from
// what all have told: always the same sums in the same order. What is told is kept for two
// temperatures in turn, for some still read the one when others already write the next.
#pragma once

#include "adapt_mlp.h"
#include "anneal_mlp_device.h"
#include "resampling.h"

namespace cogen {
namespace COGEN_ISA {

// Every address is the device's.
template <class T>
struct DeviceAdaptive {
  AdaptiveRun<T> run;
  int first[kMostLayers + 1];  // as in DeviceRun
  char* memory;                // memory_of_row for each row
  Progressing* told;           // (2, B)
  Progress* progress;
};

// Without memory.
template <class T>
inline DeviceAdaptive<T> device_adaptive_of(const AdaptiveRun<T>& run) {
  DeviceAdaptive<T> device{};
  device.run = run;
  place_layers(run.net, device.first);
  return device;
}

// The threads of a block.
template <class Machine>
struct BlockCrew {
  Machine machine;
  int64_t thread, threads;

  COGEN_HD double sum(double value) const { return block_sum(machine, value); }
  COGEN_HD double greatest(double value) const { return block_greatest(machine, value); }
  COGEN_HD void meets() const { machine.block_meets(); }
  COGEN_HD double next_beta(const double* energy, const double* log_weights, int64_t count,
                            double beta, double kept) const {
    return next_inverse_temperature(*this, energy, log_weights, count, beta, kept);
  }
  COGEN_HD void systematic(const double* log_weights, int64_t count, double uniform, double* room,
                           int64_t* out) const {
    systematic_ancestors(*this, log_weights, count, uniform, room, out);
  }
};

// --- a row's memory: doubles, then numbers of type T, then bytes ---------------------------------

COGEN_HD int64_t doubles_of_row(int64_t chains, int64_t size) {
  return 3 * chains + size * size + room_of_eigen(size) + 2;
}

// kStart to kGradBackup.
constexpr int64_t kArraysOfRow = 5;

template <class T>
COGEN_HD int64_t numbers_of_row(const AdaptiveRun<T>& run) {
  const int64_t size = run.shape.size, out = run.net.width[1];
  return kArraysOfRow * run.shape.chains * size + size * padded(static_cast<int>(out)) +
         out * padded(static_cast<int>(size));
}

template <class T>
COGEN_HD int64_t memory_of_row(const AdaptiveRun<T>& run) {
  const int64_t bytes = doubles_of_row(run.shape.chains, run.shape.size) * 8 +
                        numbers_of_row(run) * static_cast<int64_t>(sizeof(T)) + run.shape.chains;
  return (bytes + 63) / 64 * 64;
}

// Where the particles of a row have their entries.
template <class T>
struct RowEntries {
  static constexpr int64_t kApart = 1;
  T *latents, *grad, *others;
  int64_t chains, size;

  COGEN_HD T* operator()(int64_t n, int64_t which) const {
    if (which == kLatents) return latents + n * size;
    if (which == kGrad) return grad + n * size;
    return others + ((which - kStart) * chains + n) * size;
  }
};

// --- the run ------------------------------------------------------------------------------------

template <class T, class Chain, class Machine>
class AdaptiveThread {
 public:
  COGEN_HD AdaptiveThread(const DeviceAdaptive<T>& device, const Machine& machine)
      : device_(device),
        run_(device.run),
        machine_(machine),
        crew_{machine, machine.thread, machine.threads},
        rows_(device.run.shape.observations),
        chains_(device.run.shape.chains),
        size_(device.run.shape.size) {}

  COGEN_HD_LARGE void all() const {
    if (Chain::kKeepsLayers) {
      copy_layers(machine_, run_.net, device_.first, shared_numbers<T>(machine_.shared));
    }
    Progress progress{0, run_.spent};
    while (progress.steps < run_.steps) {
      const int64_t t = progress.steps;
      Pace pace;
      if (run_.repeats) {
        pace = {run_.out.leapfrog_steps[t], run_.out.hmc_steps[t]};
      } else if (!set_pace(t, progress.spent, pace)) {
        break;
      }
      progress = {t + 1, progress.spent + pace.leapfrog_steps * pace.hmc_steps};
      for (int64_t b = machine_.block; b < rows_; b += machine_.blocks) {
        temperature(t, b, pace, progress.spent);
      }
    }
    if (machine_.block == 0 && leads(crew_)) *device_.progress = progress;
  }

 private:
  typedef RowEntries<T> Entries;
  typedef AdaptiveRow<T, Entries, BlockCrew<Machine>> Row;

  // False where all rows are finished.
  COGEN_HD_LARGE bool set_pace(int64_t t, int64_t spent, Pace& pace) const {
    Progressing* const all = device_.told + t % 2 * rows_;
    for (int64_t b = machine_.block; b < rows_ && leads(crew_); b += machine_.blocks) {
      all[b] = progressing(run_.at, b, size_);
    }
    if (machine_.blocks > 1) {
      machine_.grid_meets();
    } else {
      machine_.block_meets();
    }
    const auto told = [&](int64_t b) { return all[b]; };
    const double moving =
        sum_over(crew_, rows_, [&](int64_t b) { return all[b].finished ? 0.0 : 1.0; });
    if (moving == 0.0) return false;
    const Fit fit = common_fit(crew_, run_.plan, rows_, told, spent);
    pace = common_pace(crew_, run_.plan, fit, rows_, told);
    if (!leads(crew_)) return true;
    for (int64_t b = machine_.block; b < rows_; b += machine_.blocks) {
      const OwnPace own = own_pace(run_.plan, fit, all[b]);
      run_.out.moves[t * rows_ + b] = own.moves;
      run_.out.kept[t * rows_ + b] = own.kept;
    }
    if (machine_.block == 0) {
      run_.out.leapfrog_steps[t] = pace.leapfrog_steps;
      run_.out.hmc_steps[t] = pace.hmc_steps;
    }
    return true;
  }

  // Of row b; `spent` is what is spent after it.
  COGEN_HD_LARGE void temperature(int64_t t, int64_t b, const Pace& pace, int64_t spent) const {
    const Entries entries = entries_of(b);
    const Row row(run_, b, room_of(b), entries, crew_);
    machine_.block_meets();
    row.choose(t);
    back_up(b, entries);
    machine_.block_meets();
    take_places(t, b, row, entries);
    machine_.block_meets();
    for (int64_t made = 0; made < pace.hmc_steps && row.moves(t, made); ++made) {
      transitions(t, b, row, entries, pace.leapfrog_steps);
      machine_.block_meets();
      row.learn(t, pace.leapfrog_steps);
    }
    if (row.turned()) turn_back(t, b, row, entries);
    if (run_.trace) {
      T* const trace = run_.trace + (t * rows_ + b) * chains_ * size_;
      each_entry([&](int64_t, int64_t, int64_t i) { trace[i] = entries.latents[i]; });
    }
    machine_.block_meets();
    row.close(t, spent);
  }

  // body(n, j, index) for entry j of each particle n.
  template <class Body>
  COGEN_HD void each_entry(const Body& body) const {
    for (int64_t i = machine_.thread; i < chains_ * size_; i += machine_.threads) {
      body(i / size_, i % size_, i);
    }
  }

  COGEN_HD_LARGE void back_up(int64_t b, const Entries& entries) const {
    T* const latents = entries(0, kLatentsBackup);
    T* const grad = entries(0, kGradBackup);
    each_entry([&](int64_t, int64_t, int64_t i) {
      latents[i] = entries.latents[i];
      grad[i] = entries.grad[i];
    });
    double* const energy = doubles(b);
    for (int64_t n = machine_.thread; n < chains_; n += machine_.threads) {
      energy[n] = run_.energy[b * chains_ + n];
    }
  }

  // Each particle in the place of its ancestor, in the turned coordinates.
  COGEN_HD_LARGE void take_places(int64_t t, int64_t b, const Row& row,
                                  const Entries& entries) const {
    const double* const energy = doubles(b);
    for (int64_t n = machine_.thread; n < chains_; n += machine_.threads) {
      run_.energy[b * chains_ + n] = energy[row.ancestor(t, n)];
      moved(b)[n] = 0;
    }
    each_entry([&](int64_t n, int64_t j, int64_t i) {
      const int64_t from = row.ancestor(t, n);
      entries.latents[i] = placed(row, entries(from, kLatentsBackup), j);
      entries.grad[i] = placed(row, entries(from, kGradBackup), j);
    });
  }

  COGEN_HD T placed(const Row& row, const T* from, int64_t j) const {
    return row.turned() ? row.turned_entry(from, j, false) : from[j];
  }

  // Out of the turned coordinates; particles that stand where they stood keep every bit.
  COGEN_HD_LARGE void turn_back(int64_t t, int64_t b, const Row& row,
                                const Entries& entries) const {
    T* const latents = entries(0, kStart);
    T* const grad = entries(0, kPosition);
    each_entry([&](int64_t, int64_t, int64_t i) {
      latents[i] = entries.latents[i];
      grad[i] = entries.grad[i];
    });
    machine_.block_meets();
    each_entry([&](int64_t n, int64_t j, int64_t i) {
      const int64_t from = row.ancestor(t, n);
      const bool has = moved(b)[n] != 0;
      entries.latents[i] =
          has ? row.turned_entry(entries(n, kStart), j, true) : entries(from, kLatentsBackup)[j];
      entries.grad[i] =
          has ? row.turned_entry(entries(n, kPosition), j, true) : entries(from, kGradBackup)[j];
    });
  }

  COGEN_HD_LARGE void transitions(int64_t t, int64_t b, const Row& row, const Entries& entries,
                                  int64_t leapfrog_steps) const {
    const Mlp<T> net = row.net();
    const Move<T> move = row.move_of(t, leapfrog_steps);
    const Stream stream = row.stream();
    const Observed<T> observed =
        observed_of(run_.observed, b / run_.each, measured_size(run_.net));
    const RowRoom<T> room = room_of(b);
    const int lane = machine_.thread % Chain::kThreads;
    const int64_t at_once = machine_.threads / Chain::kThreads;
    for (int64_t n = machine_.thread / Chain::kThreads; n < chains_; n += at_once) {
      const Tile<T> here{entries(n, kLatents), entries(n, kGrad), entries(n, kPosition),
                         entries(n, kMomenta), room.energy + n, static_cast<uint32_t>(n)};
      // A lane copies the dimensions that it writes itself.
      for (int64_t i = lane; i < size_; i += Chain::kThreads) {
        entries(n, kStart)[i] = here.latents[i];
      }
      if (lane == 0) room.before[n] = room.energy[n];
      const ChainOutcome outcome =
          Chain::transition(machine_, net, device_.first, observed, stream, move, here);
      if (lane == 0) {
        room.scratch[n] = outcome.probability;
        if (outcome.accepted) moved(b)[n] = 1;
        // A rejection for not being finite; HUGE_VAL stands for it.
        if (outcome.change == HUGE_VAL) ++run_.non_finite[b * chains_ + n];
      }
      // The room of a warp is that of its next chain.
      if (Chain::kThreads > 1) machine_.warp_meets();
    }
  }

  COGEN_HD double* doubles(int64_t b) const {
    return reinterpret_cast<double*>(device_.memory + b * memory_of_row(run_));
  }
  COGEN_HD T* numbers(int64_t b) const {
    return reinterpret_cast<T*>(doubles(b) + doubles_of_row(chains_, size_));
  }
  COGEN_HD char* moved(int64_t b) const {
    return reinterpret_cast<char*>(numbers(b) + numbers_of_row(run_));
  }

  COGEN_HD Entries entries_of(int64_t b) const {
    const int64_t first = b * chains_ * size_;
    return {run_.latents + first, run_.grad + first, numbers(b), chains_, size_};
  }

  // The first N doubles are the energies' backup.
  COGEN_HD RowRoom<T> room_of(int64_t b) const {
    double* const before = doubles(b) + chains_;
    double* const basis = before + 2 * chains_;
    double* const eigen = basis + size_ * size_;
    double* const rest = eigen + room_of_eigen(size_);
    T* const weight = Chain::kKeepsLayers ? shared_numbers<T>(machine_.shared)
                                          : numbers(b) + kArraysOfRow * chains_ * size_;
    // Between them lies the bias, where layers lie together.
    const int64_t out = padded(run_.net.width[1]);
    return {run_.energy + b * chains_,
            before,
            run_.log_weights + b * chains_,
            before + chains_,
            basis,
            eigen,
            weight,
            weight + (size_ + (Chain::kKeepsLayers ? 1 : 0)) * out,
            rest,
            rest + 1};
  }

  const DeviceAdaptive<T>& device_;
  const AdaptiveRun<T>& run_;
  const Machine& machine_;
  const BlockCrew<Machine> crew_;
  const int64_t rows_, chains_, size_;
};

}  // namespace COGEN_ISA
}  // namespace cogen
