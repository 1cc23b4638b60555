#include "common/bind_common.h"

#include <string>

namespace py = pybind11;

namespace cogen {
namespace {

void require_words(const char* name, const std::int64_t* values, std::int64_t count,
                   std::int64_t made) {
  for (std::int64_t b = 0; b < count; ++b) {
    if (values[b] >= 0 && values[b] <= kLargestWord - made) continue;
    throw py::value_error(std::string(name) + ": expected values in [0, 2^32), got " +
                          std::to_string(values[b]) +
                          (made > 0 ? " and " + std::to_string(made) + " more" : ""));
  }
}

// The elements of an array of 1 or B rows of that width; null if it was not given.
template <class T>
const T* rows_of(const Array& array, std::int64_t observations, std::int64_t width,
                 const DLDevice& device) {
  if (!array.given()) return nullptr;
  if (array.rank() != 2 || (array.size(0) != 1 && array.size(0) != observations)) {
    array.refuse("shape (1 or " + std::to_string(observations) + ", " + std::to_string(width) +
                 ")");
  }
  return array.at<const T>({array.size(0), width}, device);
}

// How many entries lie from one row to the next: 0 if one row serves all observations.
std::int64_t stride_of(const Array& rows) {
  return rows.given() && rows.size(0) > 1 ? rows.size(1) : 0;
}

}  // namespace

Shape shape_of(const Array& latents) {
  latents.require_rank(3, "(B, N, d)");
  const Shape shape{latents.size(0), latents.size(1), latents.size(2)};
  if (shape.chains > kLargestWord) {
    throw py::value_error("chains: expected between 0 and 2^32 - 1, got " +
                          std::to_string(shape.chains));
  }
  if (shape.size < 1 || shape.size > kLargestSize) {
    throw py::value_error("size: expected between 1 and 2^26, got " + std::to_string(shape.size));
  }
  return shape;
}

Noise noise_of(Arguments& given, std::int64_t observations, std::int64_t made) {
  const std::uint64_t seed = given.word("seed");
  const auto* transition = given.read<const std::int64_t>("transition", {observations});
  const auto* observation = given.read<const std::int64_t>("observation", {observations});
  if (given.device().device_type == kOnCpu) {
    require_words("transition", transition, observations, made);
    require_words("observation", observation, observations, 0);
  }
  return {seed, transition, observation};
}

template <class T>
Observed<T> observed_of(Arguments& given, const Array& target, std::int64_t observations,
                        std::int64_t measured) {
  const Array mask = given.optional("mask");
  const Array weight = given.array("weight");
  const bool elementwise = weight.rank() == 2 && weight.size(1) != 1;
  const DLDevice& device = given.device();
  return {target.at<const T>({observations, measured}, device),
          rows_of<std::uint8_t>(mask, observations, measured, device),
          stride_of(mask),
          rows_of<T>(weight, observations, elementwise ? measured : 1, device),
          stride_of(weight),
          elementwise};
}

template Observed<float> observed_of<float>(Arguments&, const Array&, std::int64_t, std::int64_t);
template Observed<double> observed_of<double>(Arguments&, const Array&, std::int64_t,
                                              std::int64_t);

}  // namespace cogen
