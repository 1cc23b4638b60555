// Bindings of the noise itself, for the tests of each instruction set and of the CUDA device.
#include <string>

#include "common/bind_common.h"
#include "common/instruction_sets.h"
#include "common/python_methods.h"
#include "sampler/noise_cuda.h"

namespace py = pybind11;

namespace cogen {
namespace {

NoiseKind noise_kind_of(Arguments& given) {
  const std::string name = given.text("kind");
  if (name == "words") return NoiseKind::words;
  if (name == "uniforms") return NoiseKind::uniforms;
  if (name == "normals") return NoiseKind::normals;
  throw py::value_error("kind: expected words, uniforms or normals, got " + name);
}

// The shape that noise is drawn for, from that of the array: words are (B, N, blocks, 4) with a
// block for four dimensions, uniforms (B, N), normals (B, N, d).
Shape noise_shape(const Array& out, NoiseKind kind) {
  if (kind == NoiseKind::normals) return shape_of(out);
  if (kind == NoiseKind::uniforms) {
    out.require_rank(2, "(B, N)");
    return {out.size(0), out.size(1), 1};
  }
  out.require_rank(4, "(B, N, blocks, 4)");
  if (out.size(3) != 4 || out.size(2) < 1 || out.size(2) > kLargestSize / 4) {
    out.refuse("shape (B, N, blocks, 4) with 1 to 2^24 blocks");
  }
  return {out.size(0), out.size(1), 4 * out.size(2)};
}

// The array to fill with noise. Words have 32 bits and are held in an int32 array.
struct Wanted {
  NoiseKind kind;
  Shape shape;
  std::uint32_t purpose;
  void* out;
  bool is_double;
};

Wanted wanted_of(Arguments& given, const Array& out) {
  const NoiseKind kind = noise_kind_of(given);
  const Shape shape = noise_shape(out, kind);
  const auto purpose = static_cast<std::uint32_t>(given.integer("purpose", 0, kLargestPurpose));
  if (kind == NoiseKind::words) {
    return {kind, shape, purpose, out.at_all<std::int32_t>(given.device()), false};
  }
  return by_float_type(out, [&](auto zero) -> Wanted {
    using T = decltype(zero);
    return {kind, shape, purpose, out.at_all<T>(given.device()), sizeof(T) == sizeof(double)};
  });
}

template <class T>
void fill(const Wanted& wanted, const Noise& noise, int threads) {
  const HmcOps<T>& hmc = *ops<T>().hmc;
  const auto [kind, shape, purpose, out, is_double] = wanted;
  if (kind == NoiseKind::words) {
    hmc.words(shape, noise, purpose, static_cast<std::uint32_t*>(out));
  } else if (kind == NoiseKind::uniforms) {
    hmc.uniforms(shape, noise, purpose, static_cast<T*>(out));
  } else {
    hmc.normals(shape, noise, purpose, static_cast<T*>(out), threads);
  }
}

void noise(Arguments& given) {
  const Array out = given.array("out");
  const Wanted wanted = wanted_of(given, out);
  const Noise stream = noise_of(given, wanted.shape.observations);
  const int threads = given.threads();
  given.finish();
  if (is_empty(wanted.shape)) return;
  const py::gil_scoped_release released;
  (wanted.is_double ? fill<double> : fill<float>)(wanted, stream, threads);
}

void noise_on_device(Arguments& given) {
#if defined(COGEN_WITH_CUDA)
  const Array out = given.array("out");
  given.expect_on_cuda(out);
  const Wanted wanted = wanted_of(given, out);
  const auto [b, n, d] = wanted.shape;
  const Noise stream = noise_of(given, b);
  void* const queue = reinterpret_cast<void*>(given.word("stream"));
  given.finish();
  const std::string error = noise_cuda(
      {wanted.kind, wanted.is_double, wanted.purpose, stream.seed, b, n, d, stream.transition,
       stream.observation, wanted.out, given.device().device_id, queue});
  if (!error.empty()) throw std::runtime_error("noise_cuda: " + error);
#else
  (void)given;
  throw std::runtime_error("noise_cuda: this extension was built without CUDA");
#endif
}

}  // namespace

PyMethodDef* noise_methods() {
  static PyMethodDef methods[] = {
      method<noise>("noise", "Words, uniforms or normals, into `out`."),
      method<noise_on_device>("noise_cuda", "The same on a CUDA device."),
      {}};
  return methods;
}

}  // namespace cogen
