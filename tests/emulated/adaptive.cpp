// Runs the adaptive run of a CUDA device (csrc/adapt_mlp_device.h) on an emulated one, and compares
// it with the same run on the CPU; so is the run that repeats the CPU's choices.
#include <array>

#define COGEN_CHAIN_PER_THREAD
#include "adapt_mlp_device.h"
#include "adaptive.h"
#include "checks.h"
#include "machine.h"

namespace cogen {
namespace driver {
namespace {

template <class T>
class ComparedAdaptive {
 public:
  explicit ComparedAdaptive(const AdaptiveCase& c) : c_(c), start_(c) {
    first_ = made_on_cpu(false);
    if (first_->progress.steps > 0) repeated_ = made_on_cpu(true);
  }

  Mlp<T> net() const { return start_.problem.mlp(); }

  // Blocks of so many threads.
  template <class Chain>
  void on_device(const char* name, int threads, Order order) const {
    const int rows = static_cast<int>(c_.dense.rows());
    const int blocks = 1 + (static_cast<int>(c_.dense.chains) + static_cast<int>(order)) % rows;
    const std::string text = std::string("adaptive, ") + name + " " + type_name<T>() +
                             " threads=" + std::to_string(threads) +
                             " blocks=" + std::to_string(blocks) +
                             " order=" + std::to_string(static_cast<int>(order)) + " ";
    for (const Made* expected : {first_.get(), repeated_.get()}) {
      if (!expected) continue;
      const bool repeats = expected == repeated_.get();
      begin_case(text + (repeats ? "repeated " : "") + describe(c_));
      const std::unique_ptr<Made> found = begun(repeats);
      found->progress = launch<Chain>(found->run(start_, c_, repeats), threads, blocks, order);
      expect_close(outputs_of_run(*found), outputs_of_run(*expected), kBound);
    }
  }

 private:
  // Relative to 1 and the largest value: a run's sums have another order.
  static constexpr double kBound = sizeof(T) == sizeof(double) ? 1e-9 : 2e-2;

  struct Made {
    AdaptiveState<T> state;
    AdaptiveHistory<T> history;
    Progress progress;

    AdaptiveRun<T> run(const AdaptiveStart<T>& start, const AdaptiveCase& c, bool repeats) {
      return start.run_of(state, history, c.spent, repeats);
    }
  };

  // Where the run begins; with the CPU's choices where it repeats them.
  std::unique_ptr<Made> begun(bool repeats) const {
    const int64_t steps = repeats ? first_->progress.steps : c_.steps;
    auto made = std::make_unique<Made>(
        Made{AdaptiveState<T>(c_.dense), AdaptiveHistory<T>(c_, steps), {}});
    copy(made->state, start_.state);
    if (!repeats) return made;
    AdaptiveHistory<T>::with_each_choice(
        made->history, first_->history, [](const char*, auto& to, const auto& from) {
          std::copy_n(from.data(), to.size(), to.data());
        });
    return made;
  }

  std::unique_ptr<Made> made_on_cpu(bool repeats) const {
    std::unique_ptr<Made> made = begun(repeats);
    made->progress = call(ops(), made->run(start_, c_, repeats), 1);
    return made;
  }

  static const AdaptiveOps<T>& ops() {
    if constexpr (sizeof(T) == sizeof(double)) {
      return plain::adaptive_double;
    } else {
      return plain::adaptive_float;
    }
  }

  static Outputs outputs_of_run(const Made& made) {
    Outputs all{{"progress",
                 {static_cast<double>(made.progress.steps),
                  static_cast<double>(made.progress.spent)},
                 0.0}};
    const auto add = [&](const char* name, const auto& a, const auto&) {
      all.push_back(output(name, a));
    };
    AdaptiveState<T>::with_each(made.state, made.state, add);
    AdaptiveHistory<T>::with_each(
        made.history, made.history, [&](const char* name, const auto& a, const auto&) {
          // What is after the last temperature was not written.
          const auto end = a.data() + made.progress.steps * (a.size() / made.history.steps);
          all.push_back({name, {a.data(), end}, 0.0});
        });
    return all;
  }

  template <class Chain>
  static Progress launch(const AdaptiveRun<T>& run, int threads, int blocks, Order order) {
    DeviceAdaptive<T> device = device_adaptive_of(run);
    Progress progress{};
    Array<char> memory(memory_of_row(run) * run.shape.observations, false);
    memset(memory.data(), 0xff, static_cast<size_t>(memory.size()));  // NaN
    std::vector<Progressing> told(static_cast<size_t>(2 * run.shape.observations));
    device.memory = memory.data();
    device.told = told.data();
    device.progress = &progress;
    Grid grid(blocks, threads,
              shared_bytes_for<Chain>(run.net, device.first, threads / Chain::kThreads), order);
    const bool ended = grid.run([&](const EmulatedMachine& machine) {
      AdaptiveThread<T, Chain, EmulatedMachine>(device, machine).all();
    });
    expect(ended, "threads wait for one another");
    return progress;
  }

  const AdaptiveCase& c_;
  AdaptiveStart<T> start_;
  std::unique_ptr<Made> first_, repeated_;
};

// One kind of chains and one order of threads for each case, for meetings of many coroutines take
// long.
template <class T>
void compare(const AdaptiveCase& c, int number) {
  const ComparedAdaptive<T> compared(c);
  const Order order = std::array{Order::forward, Order::backward, Order::random}[number / 3 % 3];
  if (number % 3 == 0 && room_of_thread(compared.net()) <= kThreadRoom) {
    compared.template on_device<ChainOfThread<T, Mlp<T>>>("threads", kWarp, order);
  } else if (number % 3 == 1) {
    compared.template on_device<ChainOfWarp<T, 0, true>>("warps", 2 * kWarp, order);
  } else {
    compared.template on_device<ChainOfWarp<T, 0, false>>("warps, layers apart", kWarp, order);
  }
}

}  // namespace

void check_emulated_adaptive() {
  AdaptiveDealer dealer;
  for (int k = 0; k < 36; ++k) {
    const AdaptiveCase c = dealer.deal();
    compare<double>(c, k);
    if (k % 4 == 0) compare<float>(c, k);
  }
}

}  // namespace driver
}  // namespace cogen
