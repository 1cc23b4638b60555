// Launches of runs for generators of dense layers: the machine that a thread sees, and the host's
// part with its errors in words. For files of device code, after COGEN_ISA.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <string>

#include "mlp/anneal_mlp_device.h"

namespace cogen {
namespace {

using namespace COGEN_ISA;

// A Machine of anneal_mlp_device.h.
struct CudaMachine {
  int thread, threads;
  int64_t block, blocks;
  char* shared;

  __device__ void warp_meets() const { __syncwarp(); }
  __device__ void block_meets() const { __syncthreads(); }
  __device__ void grid_meets() const { cooperative_groups::this_grid().sync(); }
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

// The first error, in words.
class Report {
 public:
  bool fine(cudaError_t error, const char* what) {
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

// What the current device is, which must have that number.
bool ask(int number, Device& device, Report& report) {
  int id = 0;
  if (!report.fine(cudaGetDevice(&id), "the current device")) return false;
  if (id != number) return report.fine(cudaErrorInvalidDevice, "arrays on another device");
  const auto attribute = [&](int* value, cudaDeviceAttr which) {
    return report.fine(cudaDeviceGetAttribute(value, which, id), "a device's attribute");
  };
  return attribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount) &&
         attribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
         attribute(&device.cooperative, cudaDevAttrCooperativeLaunch);
}

// How many blocks reside on the device at once; 0 after an error.
template <class Kernel>
int64_t resident_blocks(Kernel kernel, int threads, int64_t bytes, bool meet, const Device& device,
                        Report& report) {
  int each = 0;
  if (!report.fine(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)),
                   "shared memory") ||
      !report.fine(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads,
                                                                 static_cast<size_t>(bytes)),
                   "occupancy")) {
    return 0;
  }
  if (each == 0) report.fine(cudaErrorLaunchOutOfResources, "a block");
  if (meet && !device.cooperative) {
    report.fine(cudaErrorNotSupported, "blocks that meet");
    return 0;
  }
  return static_cast<int64_t>(each) * device.multiprocessors;
}

template <class Kernel, class Run>
void start(Kernel kernel, Run& run, int64_t blocks, int threads, int64_t bytes, bool meet,
           cudaStream_t stream, Report& report) {
  void* arguments[] = {&run};
  const void* const function = reinterpret_cast<const void*>(kernel);
  const dim3 grid(static_cast<unsigned>(blocks));
  report.fine(meet ? cudaLaunchCooperativeKernel(function, grid, threads, arguments, bytes, stream)
                   : cudaLaunchKernel(function, grid, threads, arguments, bytes, stream),
              "launch");
}

}  // namespace
}  // namespace cogen
