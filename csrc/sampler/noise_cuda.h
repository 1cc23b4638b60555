// Noise on a CUDA device from the same text as on CPU (philox.h), to hold one against the other.
#pragma once

#include <stdint.h>

#include <string>

namespace cogen {

enum class NoiseKind : int { words = 0, uniforms = 1, normals = 2 };

struct DeviceNoise {
  NoiseKind kind;
  bool is_double;  // of uniforms and normals; words are uint32
  uint32_t purpose;
  uint64_t seed;
  int64_t observations, chains, size;
  const int64_t* transition;   // device, (B,)
  const int64_t* observation;  // device, (B,)
  void* out;  // device: (B, N, ceil(d/4), 4) words, (B, N) uniforms, or (B, N, d) normals
  int device;  // where these are, which must be the current one
  void* stream;
};

// Enqueues the fill on the stream of the current device. Empty, or what went wrong.
std::string noise_cuda(const DeviceNoise& noise);

}  // namespace cogen
