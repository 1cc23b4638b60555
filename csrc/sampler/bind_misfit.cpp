// Bindings of the misfit of outputs, and of that of the images of a progressive GAN.
#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "common/bind_common.h"
#include "common/instruction_sets.h"
#include "common/python_methods.h"
#include "progressive/pixel_norm_arguments.h"

namespace py = pybind11;

namespace cogen {
namespace {

MisfitKind kind_of(Arguments& given) {
  const std::string name = given.text("kind");
  if (name == "mask") return MisfitKind::mask;
  if (name == "pool") return MisfitKind::pool;
  if (name == "stride") return MisfitKind::stride;
  throw py::value_error("kind: expected mask, pool or stride, got " + name);
}

// The size of an output, and what of it is measured.
struct Planes {
  MisfitKind kind;
  std::int64_t channels, height, width, factor;

  std::int64_t entries() const { return channels * height * width; }
  std::int64_t measured() const { return channels * along(height) * along(width); }

 private:
  std::int64_t along(std::int64_t side) const { return side / factor + (side % factor != 0); }
};

// Raises ValueError if outputs of that size have too many entries to count, or none.
void require_countable(const Planes& planes, const Array& outputs) {
  std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t side : {planes.channels, planes.height, planes.width}) {
    most /= std::max<std::int64_t>(side, 1);
  }
  if (most == 0) outputs.refuse("outputs of fewer than 2^63 entries");
  if (planes.entries() == 0 && outputs.size(0) > 0) outputs.refuse("outputs of at least one entry");
}

// Takes `factor`. A factor beyond both sides of an output measures the same as the larger side
// would.
void set_factor(Arguments& given, Planes& planes) {
  const std::int64_t most = std::max<std::int64_t>({planes.height, planes.width, 1});
  const std::int64_t factor = given.integer("factor", 1, std::numeric_limits<std::int64_t>::max());
  planes.factor = std::min(factor, most);
  if (planes.kind == MisfitKind::mask && factor != 1) {
    throw py::value_error("factor: expected 1, for kind mask, got " + std::to_string(factor));
  }
  if (planes.kind == MisfitKind::pool &&
      (planes.height % factor != 0 || planes.width % factor != 0)) {
    throw py::value_error("factor: expected a divisor of " + std::to_string(planes.height) +
                          " and " + std::to_string(planes.width) + ", got " +
                          std::to_string(factor));
  }
}

// Takes what is measured of outputs: each entry of (n, ...), or pixels or means of (n, C, H, W).
Planes planes_of(Arguments& given, const Array& outputs) {
  const MisfitKind kind = kind_of(given);
  Planes planes{kind, 1, 1, 1, 1};
  if (kind == MisfitKind::mask) {
    if (outputs.rank() < 1) outputs.refuse("shape (n, ...)");
    planes.width = outputs.size_from(1);
  } else {
    outputs.require_rank(4, "(n, C, H, W)");
    planes.channels = outputs.size(1);
    planes.height = outputs.size(2);
    planes.width = outputs.size(3);
  }
  require_countable(planes, outputs);
  set_factor(given, planes);
  return planes;
}

// Takes the number of the observation that each output belongs to.
const std::int64_t* observation_of(Arguments& given, std::int64_t rows,
                                   std::int64_t observations) {
  const auto* found = given.read<const std::int64_t>("observation", {rows});
  for (std::int64_t row = 0; row < rows; ++row) {
    if (found[row] >= 0 && found[row] < observations) continue;
    throw py::value_error("observation: expected values in [0, B) with B = " +
                          std::to_string(observations) + ", got " + std::to_string(found[row]));
  }
  return found;
}

// Takes all of a misfit but outputs, gradients and partial sums.
template <class T>
Misfit<T> misfit_of(Arguments& given, std::int64_t rows, const Planes& planes) {
  const Array target = given.array("target");
  target.require_rank(2, "(B, M)");
  const std::int64_t observations = target.size(0), measured = planes.measured();
  const Observed<T> observed = observed_of<T>(given, target, observations, measured);
  return {planes.kind,
          rows,
          planes.channels,
          planes.height,
          planes.width,
          planes.factor,
          measured,
          nullptr,
          observation_of(given, rows, observations),
          observed.target,
          observed.mask,
          observed.mask_stride,
          observed.weight,
          observed.weight_stride,
          observed.weight_elementwise,
          given.read<double>("energy", {rows}),
          nullptr,
          nullptr,
          1};
}

void misfit(Arguments& given) {
  const Array outputs = given.array("outputs");
  by_float_type(outputs, [&](auto zero) {
    using T = decltype(zero);
    const Planes planes = planes_of(given, outputs);
    const std::int64_t rows = outputs.size(0);
    Misfit<T> m = misfit_of<T>(given, rows, planes);
    m.outputs = outputs.at_all<const T>(given.device());
    m.grad = given.array("grad").template at_like<T>(outputs, given.device());
    const int threads = given.threads();
    given.finish();
    if (rows == 0) return;
    const py::gil_scoped_release released;
    m.segments = ops<T>().misfit->segments(m);
    std::vector<double> partials(m.segments > 1 ? rows * m.segments : 0);
    m.partials = partials.data();
    ops<T>().misfit->misfit(m, threads);
  });
}

// Takes the 1x1 convolution from activations of `channels` channels to an image.
template <class T>
ToRgb<T> to_rgb_of(Arguments& given, const Array& weight, std::int64_t channels) {
  weight.require_rank(2, "(image channels, C)");
  const std::int64_t image_channels = weight.size(0);
  return {weight.at<const T>({image_channels, channels}, given.device()),
          given.read<const T>("rgb_bias", {image_channels}), given.flag("bounded")};
}

// Takes what is measured of images with so many channels, of the sides of the activation `out`.
Planes planes_of_images(Arguments& given, const Array& out, std::int64_t image_channels) {
  Planes planes{kind_of(given), image_channels, out.size(1), out.size(2), 1};
  require_countable(planes, out);
  set_factor(given, planes);
  return planes;
}

// Calls the kernel with memory for partial sums and bands of the image.
template <class T>
void run_to_rgb_misfit(Misfit<T>& m, const ToRgb<T>& to_rgb, const PixelNormGrad<T>& to,
                       int threads) {
  const ProgressiveOps<T>& progressive = *ops<T>().progressive;
  m.segments = progressive.to_rgb_bands(m);
  std::vector<double> partials(m.segments > 1 ? m.rows * m.segments : 0);
  m.partials = partials.data();
  std::vector<T> arena(
      static_cast<std::size_t>(progressive.to_rgb_arena(m, to.channels, threads)));
  progressive.to_rgb_misfit(m, to_rgb, to, arena.data(), threads);
}

void to_rgb_misfit(Arguments& given) {
  const Array out = given.array("out");
  by_float_type(out, [&](auto zero) {
    using T = decltype(zero);
    out.require_rank(4, "(n, H, W, C)");
    const PixelNormGrad<T> to = pixel_norm_grad_of<T>(given, out);
    const Array weight = given.array("rgb_weight");
    const ToRgb<T> to_rgb = to_rgb_of<T>(given, weight, to.channels);
    const Planes planes = planes_of_images(given, out, weight.size(0));
    Misfit<T> m = misfit_of<T>(given, out.size(0), planes);
    const int threads = given.threads();
    given.finish();
    if (m.rows == 0) return;
    const py::gil_scoped_release released;
    run_to_rgb_misfit(m, to_rgb, to, threads);
  });
}

}  // namespace

PyMethodDef* misfit_methods() {
  static PyMethodDef methods[] = {
      method<misfit>("misfit", "Weighted squared error of outputs, and its gradient."),
      method<to_rgb_misfit>("to_rgb_misfit", "That of an activation's image, and back."),
      {}};
  return methods;
}

}  // namespace cogen
