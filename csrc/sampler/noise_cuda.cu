#include "sampler/noise_cuda.h"

#include <cuda_runtime.h>

#define COGEN_ISA device_code
#include "common/philox.h"
#include "common/purposes.h"

namespace cogen {
namespace {

using namespace device_code;

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65535;

template <class T>
__device__ void store_normals(const Words& words, int64_t left, T* out) {
  T normal[4];
  normal_pair(words.w[0], words.w[1], &normal[0], &normal[1]);
  normal_pair(words.w[2], words.w[3], &normal[2], &normal[3]);
  for (int j = 0; j < 4; ++j) {
    if (j < left) out[j] = normal[j];
  }
}

// Each thread draws one (observation, chain, block) after the other; uniforms use only block 0.
template <class T>
__global__ void fill(DeviceNoise noise, int64_t blocks) {
  const int64_t all = noise.observations * noise.chains * blocks;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i < all; i += stride) {
    const int64_t block = i % blocks, row = i / blocks;
    const int64_t b = row / noise.chains, chain = row % noise.chains;
    const Words words = philox(noise.seed,
                               (noise.purpose << kPurposeShift) | static_cast<uint32_t>(block),
                               static_cast<uint32_t>(noise.transition[b]),
                               static_cast<uint32_t>(chain),
                               static_cast<uint32_t>(noise.observation[b]));
    if (noise.kind == NoiseKind::words) {
      for (int j = 0; j < 4; ++j) static_cast<uint32_t*>(noise.out)[4 * i + j] = words.w[j];
    } else if (noise.kind == NoiseKind::uniforms) {
      static_cast<T*>(noise.out)[row] = to_uniform<T>(words.w[0]);
    } else {
      store_normals(words, noise.size - 4 * block,
                    static_cast<T*>(noise.out) + row * noise.size + 4 * block);
    }
  }
}

}  // namespace

std::string noise_cuda(const DeviceNoise& noise) {
  int current = 0;
  if (const cudaError_t error = cudaGetDevice(&current)) return cudaGetErrorString(error);
  if (current != noise.device) return "arrays on another device than the current one";
  const int64_t blocks = noise.kind == NoiseKind::uniforms ? 1 : (noise.size + 3) / 4;
  const int64_t all = noise.observations * noise.chains * blocks;
  if (all == 0) return "";
  const int64_t wanted = (all + kThreads - 1) / kThreads;
  const unsigned grid = static_cast<unsigned>(wanted < kMaxBlocks ? wanted : kMaxBlocks);
  cudaStream_t stream = static_cast<cudaStream_t>(noise.stream);
  if (noise.is_double) {
    fill<double><<<grid, kThreads, 0, stream>>>(noise, blocks);
  } else {
    fill<float><<<grid, kThreads, 0, stream>>>(noise, blocks);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace cogen
