// Arguments that bindings of several files take: the shape of latents, the noise, and what is
// observed.
#pragma once

#include <cstdint>

#include "common/arguments.h"
#include "common/kernels.h"
#include "common/purposes.h"

namespace cogen {

constexpr std::int64_t kLargestWord = 0xFFFFFFFF;
// A noise counter numbers blocks of four dimensions below the bits of the purpose.
constexpr std::int64_t kLargestSize = std::int64_t{4} << kPurposeShift;

// The shape (B, N, d) of latents; ValueError if the noise cannot number the chains or dimensions.
Shape shape_of(const Array& latents);

inline bool is_empty(const Shape& shape) { return shape.observations == 0 || shape.chains == 0; }

// Takes `seed`, `transition` and `observation`. The run will count `made` more transitions. Numbers
// on a CUDA device are not verified, because that would wait for the device.
Noise noise_of(Arguments& given, std::int64_t observations, std::int64_t made = 0);

// What is observed of B outputs of M values: `target`, `mask` and `weight`, as in Misfit.
template <class T>
struct Observed {
  const T* target;
  const std::uint8_t* mask;
  std::int64_t mask_stride;
  const T* weight;
  std::int64_t weight_stride;
  bool weight_elementwise;
};

template <class T>
Observed<T> observed_of(Arguments& given, const Array& target, std::int64_t observations,
                        std::int64_t measured);

}  // namespace cogen
