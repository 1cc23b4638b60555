// The published run on a CUDA device for one float type: which kernels there are, which one a run
// gets, and its launch. anneal_mlp_float.cu and anneal_mlp_double.cu include it, so that the two
// types can be compiled at the same time.
#pragma once

#include "mlp/anneal_mlp_cuda.h"

#define COGEN_ISA device_code
#define COGEN_CHAIN_PER_THREAD
#include "mlp/device_layout.h"
#include "mlp/device_own_step.h"
#include "mlp/device_shared_step.h"
#include "mlp/launch_cuda.h"

namespace cogen {
namespace {

using namespace device_code;

// The largest block, and how many such blocks must fit on a multiprocessor at once. From these two
// the compiler knows how many registers a thread may have.
template <class Chain>
constexpr int kMostThreads =
    Chain::kThreads == 1 ? kMostThreadsInBlock : kMostWarpsInBlock * Chain::kThreads;
template <class Chain>
constexpr int kLeastBlocks = Chain::kThreads == 1 ? 3 : 1;

// Thread is SharedStepThread or OwnStepThread.
template <class T, class Chain, template <class, class, class> class Thread>
__global__ void __launch_bounds__(kMostThreads<Chain>, kLeastBlocks<Chain>)
    anneal(const __grid_constant__ DeviceRun<T> device) {
  extern __shared__ __align__(16) char shared[];
  const CudaMachine machine = this_machine(shared);
  Thread<T, Chain, CudaMachine>(device, machine).run();
}

template <class T>
__global__ void write_history(const __grid_constant__ DeviceRun<T> device) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (place >= device.run.steps * device.run.shape.observations) return;
  describe_groups(device.run, device.groups, device.group_sums, place);
}

// As many blocks as the device has at once, or fewer if each then has no more tiles to do.
int64_t blocks_for(int64_t tiles, int64_t resident) {
  const int64_t rounds = (tiles + resident - 1) / resident;
  return (tiles + rounds - 1) / rounds;
}

template <class T, class Chain>
void launch(DeviceRun<T> run, const Device& device, cudaStream_t stream, Report& report) {
  const auto kernel = run.run.step_per_chain ? &anneal<T, Chain, OwnStepThread>
                                             : &anneal<T, Chain, SharedStepThread>;
  const int64_t bytes = shared_bytes<T, Chain>(run);
  const int threads = static_cast<int>(run.tile_chains) * Chain::kThreads;
  const bool cooperative = !run.run.step_per_chain && run.needs_grid_sync();
  const int64_t resident = resident_blocks(kernel, threads, bytes, cooperative, device, report);
  if (resident == 0) return;
  start(kernel, run, blocks_for(run.tiles(), resident), threads, bytes, cooperative, stream,
        report);
}

template <int kHidden, Activation kKind>
bool launched_static(const DeviceRun<float>& run, const Device& device, cudaStream_t stream,
                     Report& report) {
  typedef StaticMlp<float, 2, kHidden, 2, 2, kKind> Net;
  if (!Net::fits(run.run.net)) return false;
  launch<float, ChainOfThread<float, Net>>(run, device, stream, report);
  return true;
}

template <Activation kKind>
bool launched_static(const DeviceRun<float>& run, const Device& device, cudaStream_t stream,
                     Report& report) {
  return launched_static<16, kKind>(run, device, stream, report) ||
         launched_static<20, kKind>(run, device, stream, report) ||
         launched_static<32, kKind>(run, device, stream, report);
}

// Launches a kernel for widths that are known at compile time, if there is one for the net: there
// are some in float for two latents, two hidden layers of the same width and two outputs.
// Two-dimensional studies have such nets, and many chains with very little work each.
template <class T>
bool launched_static(const DeviceRun<T>& run, const Device& device, cudaStream_t stream,
                     Report& report) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return launched_static<Activation::relu>(run, device, stream, report) ||
           launched_static<Activation::leaky_relu>(run, device, stream, report) ||
           launched_static<Activation::tanh>(run, device, stream, report);
  }
  return false;
}

template <class T>
void launch_threads(const DeviceRun<T>& run, const Device& device, cudaStream_t stream,
                    Report& report) {
  if (launched_static(run, device, stream, report)) return;
  launch<T, ChainOfThread<T, Mlp<T>>>(run, device, stream, report);
}

// Launches a kernel for hidden layers of that width (0: any) with the layers in shared memory, if
// it suits the net and the layers fit there.
template <class T, int kHidden>
bool launched_warps(const DeviceRun<T>& run, const Device& device, cudaStream_t stream,
                    Report& report) {
  typedef ChainOfWarp<T, kHidden, true> Chain;
  if (kHidden != static_hidden_width(run.run.net) && kHidden != 0) return false;
  if (shared_bytes<T, Chain>(run) > device.shared_bytes) return false;
  launch<T, Chain>(run, device, stream, report);
  return true;
}

template <class T>
void launch_warps(const DeviceRun<T>& run, const Device& device, cudaStream_t stream,
                  Report& report) {
  if (launched_warps<T, 16>(run, device, stream, report) ||
      launched_warps<T, 20>(run, device, stream, report) ||
      launched_warps<T, 32>(run, device, stream, report) ||
      launched_warps<T, 0>(run, device, stream, report)) {
    return;
  }
  launch<T, ChainOfWarp<T, 0, false>>(run, device, stream, report);
}

template <class T>
void launch_history(DeviceRun<T>& run, cudaStream_t stream, Report& report) {
  constexpr int kThreads = 128;
  const int64_t places = run.run.steps * run.run.shape.observations;
  start(write_history<T>, run, (places + kThreads - 1) / kThreads, kThreads, 0, false, stream,
        report);
}

// How much memory the device needs for what threads share, and where each part of it is.
template <class T>
int64_t scratch_bytes(const DeviceRun<T>& run) {
  const int64_t rows = run.run.shape.observations;
  if (run.run.step_per_chain) {
    return run.run.steps * rows * run.groups.each() * static_cast<int64_t>(sizeof(GroupSums));
  }
  return 2 * (run.tiles() * static_cast<int64_t>(sizeof(TileSums)) +
              rows * static_cast<int64_t>(sizeof(StepState)));
}

template <class T>
void place_scratch(DeviceRun<T>& run, char* memory) {
  if (run.run.step_per_chain) {
    run.group_sums = reinterpret_cast<GroupSums*>(memory);
    return;
  }
  run.sums = reinterpret_cast<TileSums*>(memory);
  run.steps = reinterpret_cast<StepState*>(run.sums + 2 * run.tiles());
}

template <class T>
void enqueue(DeviceRun<T>& run, const Device& device, cudaStream_t stream, Report& report) {
  const Mlp<T>& net = run.run.net;
  const bool fits = room_of_thread(net) <= kThreadRoom &&
                    shared_bytes<T, ChainOfThread<T, Mlp<T>>>(run) <= device.shared_bytes;
  const Layout layout = choose_layout(run.run.shape, device.multiprocessors, fits);
  run.tile_chains = layout.tile_chains;
  if (layout.by == ChainBy::warp) {
    // A block whose warps need more shared memory than there is gets fewer warps.
    while (run.tile_chains > 1 &&
           shared_bytes<T, ChainOfWarp<T, 0, false>>(run) > device.shared_bytes) {
      run.tile_chains = (run.tile_chains + 1) / 2;
    }
  }
  run.groups = {run.run.shape.chains, group_size(layout.by)};
  void* memory = nullptr;
  if (!report.ok(cudaMallocAsync(&memory, scratch_bytes(run), stream), "memory")) return;
  place_scratch(run, static_cast<char*>(memory));
  if (layout.by == ChainBy::thread) {
    launch_threads(run, device, stream, report);
  } else {
    launch_warps(run, device, stream, report);
  }
  if (run.run.step_per_chain) launch_history(run, stream, report);
  report.ok(cudaFreeAsync(memory, stream), "memory");
}

template <class T>
std::string anneal_on_device(const MlpRun<T>& given, int number, void* stream) {
  DeviceRun<T> run = device_run_of(given);
  Report report;
  Device device{};
  if (query(number, device, report)) {
    enqueue(run, device, static_cast<cudaStream_t>(stream), report);
  }
  return report.text();
}

}  // namespace
}  // namespace cogen
