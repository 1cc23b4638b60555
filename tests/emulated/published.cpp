// Runs the published run of a CUDA device (csrc/mlp/device_*.h) on an emulated device and compares
// it with the run on the CPU: with chains computed by threads and by warps, observations in one
// block and in several, and threads in several orders.
#define COGEN_CHAIN_PER_THREAD
#include "mlp/device_layout.h"
#include "mlp/device_own_step.h"
#include "mlp/device_shared_step.h"
#include "checks.h"
#include "machine.h"
#include "published.h"

namespace cogen {
namespace driver {
namespace {

// The tolerance relative to 1 and to the largest value, since the device adds in another order.
template <class T>
constexpr double kDifference = sizeof(T) == sizeof(double) ? 1e-10 : 5e-3;

template <class T>
class Compared {
 public:
  explicit Compared(const PublishedCase& c)
      : c_(c), problem_(c.dense), start_(c), betas_(c.steps(), c.dense.ragged) {
    start(c, problem_, start_);
    std::copy_n(c.betas.begin() + 1, c.steps(), betas_.data());
    expected_ = made([&](const MlpRun<T>& run) { call(ops(), run, 1); });
  }

  const Mlp<T> net() const { return problem_.mlp(); }

  // Runs with threads or warps that compute tiles of `tile_chains` chains.
  template <class Chain>
  void on_device(const char* name, int64_t tile_chains) const {
    int number = 0;
    for (const Order order : {Order::forward, Order::backward, Order::random}) {
      const int blocks = 1 + (static_cast<int>(c_.dense.chains) + number++) % 3;
      begin_case(std::string(name) + " " + type_name<T>() + " tile=" +
                 std::to_string(tile_chains) + " blocks=" + std::to_string(blocks) +
                 " order=" + std::to_string(static_cast<int>(order)) + " " + describe(c_));
      const Outputs found =
          made([&](const MlpRun<T>& run) {
            DeviceRun<T> device = device_run_of(run);
            device.tile_chains = tile_chains;
            if (run.step_per_chain) {
              launch_apart<Chain>(device, blocks, order);
            } else {
              launch<Chain>(device, blocks, order);
            }
          });
      expect_close(found, expected_, kDifference<T>);
    }
  }

 private:
  static const PublishedOps<T>& ops() {
    if constexpr (sizeof(T) == sizeof(double)) {
      return plain::published_double;
    } else {
      return plain::published_float;
    }
  }

  template <class Make>
  Outputs made(const Make& make) const {
    PublishedState<T> state(c_);
    PublishedHistory<T> history(c_.dense, c_.steps());
    copy(state, start_);
    make(run_of(c_, problem_, state, history, c_.betas[0], betas_, c_.hmc_steps, c_.weights));
    Outputs all = outputs_of(state);
    for (Output& each : outputs_of(history)) all.push_back(std::move(each));
    return all;
  }

  template <class Chain>
  void launch(DeviceRun<T>& device, int blocks, Order order) const {
    Array<double> left(2 * device.tiles() * 3, false);
    Array<double> steps(2 * device.run.shape.observations * 2, false);
    static_assert(sizeof(TileSums) == 3 * sizeof(double));
    static_assert(sizeof(StepState) == 2 * sizeof(double));
    device.sums = reinterpret_cast<TileSums*>(left.data());
    device.steps = reinterpret_cast<StepState*>(steps.data());
    Grid grid(blocks, threads<Chain>(device), shared_bytes<T, Chain>(device), order);
    const bool ended = grid.run([&](const EmulatedMachine& machine) {
      SharedStepThread<T, Chain, EmulatedMachine>(device, machine).run();
    });
    expect(ended, "threads wait for one another");
  }

  // Runs one block after the other, as a device may do unless it is told that blocks synchronise.
  template <class Chain>
  void launch_apart(DeviceRun<T>& device, int blocks, Order order) const {
    const MlpRun<T>& run = device.run;
    device.groups = {run.shape.chains,
                     group_size(Chain::kThreads == 1 ? ChainBy::thread : ChainBy::warp)};
    const int64_t places = run.steps * run.shape.observations;
    Array<double> left(places * device.groups.each() * 4, false);
    static_assert(sizeof(GroupSums) == 4 * sizeof(double));
    device.group_sums = reinterpret_cast<GroupSums*>(left.data());
    for (int block = 0; block < blocks; ++block) {
      Grid grid(1, threads<Chain>(device), shared_bytes<T, Chain>(device), order);
      const bool ended = grid.run([&](const EmulatedMachine& machine) {
        EmulatedMachine here = machine;
        here.block = block;
        here.blocks = blocks;
        OwnStepThread<T, Chain, EmulatedMachine>(device, here).run();
      });
      expect(ended, "threads wait for one another");
    }
    for (int64_t place = 0; place < places; ++place) {
      describe_groups(run, device.groups, device.group_sums, place);
    }
  }

  template <class Chain>
  static int threads(const DeviceRun<T>& device) {
    return static_cast<int>(device.tile_chains) * Chain::kThreads;
  }

  const PublishedCase& c_;
  Problem<T> problem_;
  PublishedState<T> start_;
  Array<double> betas_;
  Outputs expected_;
};

template <class T>
void compare(const PublishedCase& c) {
  const Compared<T> compared(c);
  const int64_t chains = c.dense.chains;
  if (room_of_thread(compared.net()) <= kThreadRoom) {
    compared.template on_device<ChainOfThread<T, Mlp<T>>>("threads", kWarp);
    compared.template on_device<ChainOfThread<T, Mlp<T>>>("threads", 2 * kWarp);
  }
  const int64_t tile = chains > 5 ? 1 + chains % 3 : chains;
  compared.template on_device<ChainOfWarp<T, 0, true>>("warps", tile);
  compared.template on_device<ChainOfWarp<T, 0, false>>("warps, layers apart", 2);
}

void compare_both_types(const PublishedCase& c) {
  compare<double>(c);
  compare<float>(c);
}

// Compares the versions whose widths are known to the compiler.
template <class T, int kHidden, int kDepth, Activation kKind>
void compare_known(PublishedCase c) {
  c.dense.widths.assign(kDepth + 2, kHidden);
  c.dense.widths.front() = c.dense.widths.back() = 2;
  c.dense.activations.assign(kDepth, kKind);
  c.dense.activations.push_back(kDepth == 2 ? Activation::identity : Activation::tanh);
  typedef StaticMlp<T, 2, kHidden, kDepth, 2, kKind> Net;
  const Compared<T> compared(c);
  expect(Net::fits(compared.net()), "a net that fits");
  compared.template on_device<ChainOfThread<T, Net>>("known, threads", kWarp);
  compared.template on_device<ChainOfWarp<T, kHidden, true>>("known, warps", 2);
}

void check_layouts() {
  begin_case("layouts");
  const auto is = [](const Shape& shape, bool fits, ChainBy by, int64_t tile_chains) {
    const Layout layout = choose_layout(shape, 132, fits);
    expect(layout.by == by && layout.tile_chains == tile_chains, "another layout");
  };
  is({1, 1, 2}, true, ChainBy::warp, 1);
  is({1, 3, 2}, true, ChainBy::warp, 3);
  is({1, 100, 2}, true, ChainBy::warp, 1);
  is({1, 1000, 2}, true, ChainBy::warp, 8);
  is({1, 2000, 2}, true, ChainBy::thread, 32);
  is({1, 100000, 2}, true, ChainBy::thread, 128);
  is({1, 100000, 2}, false, ChainBy::warp, 16);
  is({500, 16, 2}, true, ChainBy::thread, 32);
  is({500, 10, 2}, false, ChainBy::warp, 10);
}

}  // namespace

void check_emulated_published() {
  check_layouts();
  PublishedDealer dealer;
  for (int k = 0; k < 24; ++k) compare_both_types(dealer.deal());
  compare_known<float, 20, 2, Activation::relu>(dealer.deal());
  compare_known<double, 20, 2, Activation::relu>(dealer.deal());
  compare_known<double, 20, 2, Activation::tanh>(dealer.deal());
  compare_known<double, 16, 3, Activation::leaky_relu>(dealer.deal());
  compare_known<double, 32, 1, Activation::softplus>(dealer.deal());
}

}  // namespace driver
}  // namespace cogen
