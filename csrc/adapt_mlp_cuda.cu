#include "anneal_mlp_cuda.h"

#define COGEN_ISA device_code_adaptive
#define COGEN_CHAIN_PER_THREAD
#include "adapt_mlp_device.h"
#include "launch_cuda.h"

namespace cogen {
namespace {

constexpr int kMostThreads = 256;

template <class T, class Chain>
__global__ void __launch_bounds__(kMostThreads, 1)
    adapt(const __grid_constant__ DeviceAdaptive<T> device) {
  extern __shared__ __align__(16) char shared[];
  const CudaMachine machine = this_machine(shared);
  AdaptiveThread<T, Chain, CudaMachine>(device, machine).all();
}

// As many chains at once as a row has or a block can; fewer where their rooms are too much for it.
template <class T, class Chain>
int64_t chains_at_once(const DeviceAdaptive<T>& run, const Device& device) {
  const int64_t chains = run.run.shape.chains, most = kMostThreads / Chain::kThreads;
  int64_t at_once = Chain::kThreads == 1 ? power_of_two_from(chains, kWarp, most)
                                         : lesser_of(chains, most);
  const auto bytes = [&] { return shared_bytes_for<Chain>(run.run.net, run.first, at_once); };
  while (Chain::kThreads > 1 && at_once > 1 && bytes() > device.shared_bytes) --at_once;
  return at_once;
}

template <class T, class Chain>
bool fits(const DeviceAdaptive<T>& run, const Device& device) {
  const int64_t bytes =
      shared_bytes_for<Chain>(run.run.net, run.first, chains_at_once<T, Chain>(run, device));
  return bytes <= device.shared_bytes;
}

template <class T, class Chain>
void launch(DeviceAdaptive<T>& run, const Device& device, cudaStream_t stream, Report& report) {
  const auto kernel = adapt<T, Chain>;
  const int64_t at_once = chains_at_once<T, Chain>(run, device);
  const int64_t bytes = shared_bytes_for<Chain>(run.run.net, run.first, at_once);
  const int threads = static_cast<int>(at_once) * Chain::kThreads;
  const int64_t rows = run.run.shape.observations;
  const int64_t resident = resident_blocks(kernel, threads, bytes, rows > 1, device, report);
  if (resident == 0) return;
  start(kernel, run, lesser_of(rows, resident), threads, bytes, rows > 1, stream, report);
}

// Whether a multiprocessor has so many chains that threads make them sooner than warps.
template <class T>
bool by_threads(const DeviceAdaptive<T>& run, const Device& device) {
  const Shape& shape = run.run.shape;
  const int64_t rows = (shape.observations + device.multiprocessors - 1) / device.multiprocessors;
  return rows * shape.chains > kWarpsWorthwhile && room_of_thread(run.run.net) <= kThreadRoom &&
         fits<T, ChainOfThread<T, Mlp<T>>>(run, device);
}

template <class T>
void launch_fitting(DeviceAdaptive<T>& run, const Device& device, cudaStream_t stream,
                    Report& report) {
  if (by_threads(run, device)) {
    launch<T, ChainOfThread<T, Mlp<T>>>(run, device, stream, report);
  } else if (fits<T, ChainOfWarp<T, 0, true>>(run, device)) {
    launch<T, ChainOfWarp<T, 0, true>>(run, device, stream, report);
  } else {
    launch<T, ChainOfWarp<T, 0, false>>(run, device, stream, report);
  }
}

// What rows tell, the progress, and the rows' own memory, one after the other.
template <class T>
void made(DeviceAdaptive<T>& run, const Device& device, Progress* progress, cudaStream_t stream,
          Report& report) {
  const int64_t rows = run.run.shape.observations;
  const int64_t told = 2 * rows * static_cast<int64_t>(sizeof(Progressing));
  const int64_t before = (told + static_cast<int64_t>(sizeof(Progress)) + 63) / 64 * 64;
  void* memory = nullptr;
  if (!report.fine(cudaMallocAsync(&memory, before + rows * memory_of_row(run.run), stream),
                   "memory")) {
    return;
  }
  char* const first = static_cast<char*>(memory);
  run.told = reinterpret_cast<Progressing*>(first);
  run.progress = reinterpret_cast<Progress*>(first + told);
  run.memory = first + before;
  launch_fitting(run, device, stream, report);
  if (report.text().empty()) {
    report.fine(cudaMemcpyAsync(progress, run.progress, sizeof(Progress), cudaMemcpyDeviceToHost,
                                stream),
                "progress");
  }
  report.fine(cudaFreeAsync(memory, stream), "memory");
  report.fine(cudaStreamSynchronize(stream), "the run");
}

template <class T>
std::string adapt_on_device(const AdaptiveRun<T>& given, Progress* progress, void* stream) {
  DeviceAdaptive<T> run = device_adaptive_of(given);
  Report report;
  Device device{};
  if (ask(device, report)) {
    made(run, device, progress, static_cast<cudaStream_t>(stream), report);
  }
  return report.text();
}

}  // namespace

std::string adapt_mlp_cuda(const AdaptiveRun<float>& run, Progress* progress, void* stream) {
  return adapt_on_device(run, progress, stream);
}
std::string adapt_mlp_cuda(const AdaptiveRun<double>& run, Progress* progress, void* stream) {
  return adapt_on_device(run, progress, stream);
}

}  // namespace cogen
