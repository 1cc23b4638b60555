// Noise on a CUDA device from the same source as on the CPU (philox.h), for tests that compare the
// two.
#pragma once

#include <stdint.h>

#include <string>

namespace cogen {

enum class NoiseKind : int { words = 0, uniforms = 1, normals = 2 };

struct DeviceNoise {
  NoiseKind kind;
  bool is_double;  // the type of uniforms and normals; words are uint32
  uint32_t purpose;
  uint64_t seed;
  int64_t observations, chains, size;
  const int64_t* transition;   // device, (B,)
  const int64_t* observation;  // device, (B,)
  void* out;  // device: (B, N, ceil(d/4), 4) words, (B, N) uniforms, or (B, N, d) normals
  int device;  // the number of the device with these arrays, which must be the current one
  void* stream;
};

// Enqueues the drawing on a stream of the current device. Returns what went wrong, or nothing.
std::string noise_cuda(const DeviceNoise& noise);

}  // namespace cogen
