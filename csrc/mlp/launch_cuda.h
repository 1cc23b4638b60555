// What launches of the published run need: the Machine that a thread is given, and the host's calls
// with their errors as text. A file must define COGEN_ISA before it includes this one.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <string>

#include "mlp/device_thread.h"

namespace cogen {
namespace {

using namespace COGEN_ISA;

// A Machine, as device_thread.h describes it.
struct CudaMachine {
  int thread, threads;
  int64_t block, blocks;
  char* shared;

  __device__ void sync_warp() const { __syncwarp(); }
  __device__ void sync_block() const { __syncthreads(); }
  __device__ void sync_grid() const { cooperative_groups::this_grid().sync(); }
  __device__ double warp_sum(double value) const {
    for (int apart = kWarp / 2; apart > 0; apart /= 2) {
      value += __shfl_xor_sync(0xffffffffu, value, apart);
    }
    return value;
  }
};

__device__ inline CudaMachine this_machine(char* shared) {
  return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), blockIdx.x, gridDim.x,
          shared};
}

// The first error of several calls, as text.
class Report {
 public:
  // Whether a call succeeded; if not, `what` says what it was for.
  bool ok(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return true;
    if (text_.empty()) text_ = std::string(what) + ": " + cudaGetErrorString(error);
    cudaGetLastError();  // so that later calls do not report it again
    return false;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

struct Device {
  int multiprocessors, shared_bytes, cooperative;
};

// Finds out about the current device, which must have that number. Returns whether it could.
bool query(int number, Device& device, Report& report) {
  int id = 0;
  if (!report.ok(cudaGetDevice(&id), "the current device")) return false;
  if (id != number) return report.ok(cudaErrorInvalidDevice, "arrays on another device");
  const auto attribute = [&](int* value, cudaDeviceAttr which) {
    return report.ok(cudaDeviceGetAttribute(value, which, id), "a device's attribute");
  };
  return attribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount) &&
         attribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
         attribute(&device.cooperative, cudaDevAttrCooperativeLaunch);
}

// How many blocks the device has at once; 0 after an error.
template <class Kernel>
int64_t resident_blocks(Kernel kernel, int threads, int64_t bytes, bool cooperative,
                        const Device& device, Report& report) {
  int each = 0;
  if (!report.ok(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes)),
                 "shared memory") ||
      !report.ok(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads,
                                                               static_cast<size_t>(bytes)),
                 "occupancy")) {
    return 0;
  }
  if (each == 0) report.ok(cudaErrorLaunchOutOfResources, "a block");
  if (cooperative && !device.cooperative) {
    report.ok(cudaErrorNotSupported, "blocks that synchronise");
    return 0;
  }
  return static_cast<int64_t>(each) * device.multiprocessors;
}

// Launches a kernel; a cooperative one may synchronise its blocks.
template <class Kernel, class Run>
void start(Kernel kernel, Run& run, int64_t blocks, int threads, int64_t bytes, bool cooperative,
           cudaStream_t stream, Report& report) {
  void* arguments[] = {&run};
  const void* const function = reinterpret_cast<const void*>(kernel);
  const dim3 grid(static_cast<unsigned>(blocks));
  report.ok(
      cooperative ? cudaLaunchCooperativeKernel(function, grid, threads, arguments, bytes, stream)
                  : cudaLaunchKernel(function, grid, threads, arguments, bytes, stream),
      "launch");
}

}  // namespace
}  // namespace cogen
