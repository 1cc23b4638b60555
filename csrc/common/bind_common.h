// What calls of several kinds have in common: their noise, and what is observed.
#pragma once

#include <cstdint>

#include "common/arguments.h"
#include "common/kernels.h"

namespace cogen {

constexpr std::int64_t kLargestWord = 0xFFFFFFFF;
// A block number shares its counter word with the purpose.
constexpr std::int64_t kLargestSize = std::int64_t{4} << 24;
// A purpose has eight bits of a counter word.
constexpr std::int64_t kLargestPurpose = 255;

// Sizes of (B, N, d), within what the noise can count.
Shape shape_of(const Array& latents);

inline bool is_empty(const Shape& shape) { return shape.observations == 0 || shape.chains == 0; }

// `seed`, `transition` and `observation`; `made` more transitions are to be counted. The numbers on
// a device are not looked at, which would wait for it.
Noise noise_of(Arguments& given, std::int64_t observations, std::int64_t made = 0);

// `target`, `mask` and `weight`, of B observations of M values.
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
