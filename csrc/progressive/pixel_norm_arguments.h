// Arguments that bindings of several files take: those of bias, leaky ReLU and pixel norm, and of
// their backward pass.
#pragma once

#include "common/arguments.h"
#include "common/kernels.h"

namespace cogen {

// The number of channels of activations (..., C), at least one.
inline std::int64_t channels_of(const Array& images) {
  if (images.rank() < 1) images.refuse("shape (..., C)");
  const std::int64_t channels = images.size(images.rank() - 1);
  if (channels < 1) images.refuse("shape (..., C) with C > 0");
  return channels;
}

// Takes `scale`, a number for each pixel of `out`, or None.
template <class T>
T* scale_of(Arguments& given, const Array& out) {
  return given.optional("scale").template at_pixels<T>(out, given.device());
}

// Takes `bias`, `slope` and `scale` for an activation `out` that is to be written.
template <class T>
PixelNorm<T> pixel_norm_of(Arguments& given, const Array& out) {
  const std::int64_t channels = channels_of(out);
  T* const written = out.at_all<T>(given.device());
  const auto* bias = given.read<const T>("bias", {channels});
  const T slope = static_cast<T>(given.number("slope"));
  return {channels, bias, slope, written, scale_of<T>(given, out)};
}

// Takes `slope`, `scale` and `out_grad` for an activation `out` that has been written, without
// `extra`.
template <class T>
PixelNormGrad<T> pixel_norm_grad_of(Arguments& given, const Array& out) {
  const std::int64_t channels = channels_of(out);
  const auto* read = out.at_all<const T>(given.device());
  const T slope = static_cast<T>(given.number("slope"));
  const auto* scale = scale_of<T>(given, out);
  return {channels, slope, read, scale, nullptr,
          given.array("out_grad").template at_like<T>(out, given.device())};
}

}  // namespace cogen
