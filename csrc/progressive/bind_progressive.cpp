// Bindings of the layers of a progressive GAN. Images are channels last.
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "common/instruction_sets.h"
#include "common/python_methods.h"
#include "progressive/pixel_norm_arguments.h"

namespace py = pybind11;

namespace cogen {
namespace {

void norm(Arguments& given) {
  const Array x = given.array("x");
  by_float_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Array out = given.array("out");
    const auto* read = x.at_like<const T>(out, given.device());
    const PixelNorm<T> to = pixel_norm_of<T>(given, out);
    const int threads = given.threads();
    given.finish();
    const std::int64_t pixels = out.size_from(0) / to.channels;
    const py::gil_scoped_release released;
    ops<T>().progressive->norm(pixels, read, to, threads);
  });
}

void norm_grad(Arguments& given) {
  const Array grad = given.array("grad");
  by_float_type(grad, [&](auto zero) {
    using T = decltype(zero);
    const Array out = given.array("out");
    auto* const scratch = grad.at_like<T>(out, given.device());
    const PixelNormGrad<T> to = pixel_norm_grad_of<T>(given, out);
    const int threads = given.threads();
    given.finish();
    const std::int64_t pixels = out.size_from(0) / to.channels;
    const py::gil_scoped_release released;
    ops<T>().progressive->norm_grad(pixels, scratch, to, threads);
  });
}

// --- convolutions --------------------------------------------------------------------------------

// What the two kinds of convolution have of their own: the functions of their kernels, the number
// kMatrices of matrices in a packed kernel, the side of a cell in kPixels of the smaller images,
// and how the memory for the backward pass is counted.
struct ConvolutionLayer {
  template <class T>
  static const LayerOps<T>& ops_of(const ProgressiveOps<T>& progressive) {
    return progressive.convolution;
  }
  template <class T>
  static std::int64_t arena_back(const Cells& cells, std::int64_t in, std::int64_t out);
  static constexpr std::int64_t kMatrices = 16, kPixels = 2;
};

struct UpsamplingLayer {
  template <class T>
  static const LayerOps<T>& ops_of(const ProgressiveOps<T>& progressive) {
    return progressive.upsampling;
  }
  template <class T>
  static std::int64_t arena_back(const Cells& cells, std::int64_t in, std::int64_t out);
  static constexpr std::int64_t kMatrices = 9, kPixels = 1;
};

template <class Layer, class T>
const LayerOps<T>& layer_ops() {
  return Layer::ops_of(*ops<T>().progressive);
}

// The largest side or number of channels: products of them do not overflow.
constexpr std::int64_t kMostSide = std::int64_t{1} << 24;

void require_side(const char* name, std::int64_t side) {
  if (side >= 1 && side <= kMostSide) return;
  throw py::value_error(std::string(name) + ": expected between 1 and 2^24, got " +
                        std::to_string(side));
}

// How many numbers of memory a convolution of images of `in` channels to `out` channels needs.
template <class Layer, class T>
std::int64_t arena_size(const Cells& cells, std::int64_t in, std::int64_t out) {
  require_side("height", cells.height);
  require_side("width", cells.width);
  require_side("inputs", in);
  require_side("outputs", out);
  return layer_ops<Layer, T>().arena(cells, in, out);
}

template <class T>
std::int64_t ConvolutionLayer::arena_back(const Cells& cells, std::int64_t in, std::int64_t out) {
  return arena_size<ConvolutionLayer, T>(cells, in, out);
}

// The backward pass needs as much memory as the forward pass.
template <class T>
std::int64_t UpsamplingLayer::arena_back(const Cells& cells, std::int64_t in, std::int64_t out) {
  return arena_size<UpsamplingLayer, T>(cells, out, in);
}

template <class Layer>
std::int64_t arena(Arguments& given) {
  const Cells cells{given.integer("images", 0, std::numeric_limits<std::int32_t>::max()),
                    given.integer("height", 1, kMostSide), given.integer("width", 1, kMostSide)};
  const std::int64_t in = given.integer("inputs", 1, kMostSide);
  const std::int64_t out = given.integer("outputs", 1, kMostSide);
  const bool is_double = given.flag("is_double");
  given.finish();
  return is_double ? arena_size<Layer, double>(cells, in, out)
                   : arena_size<Layer, float>(cells, in, out);
}

// Takes `arena`, memory for `size` numbers or more.
template <class T>
T* arena_of(Arguments& given, std::int64_t size) {
  const Array memory = given.array("arena");
  memory.require_rank(1, "(n,)");
  if (memory.size(0) < size) memory.refuse("at least " + std::to_string(size) + " numbers");
  return memory.at_all<T>(given.device());
}

// Takes `kernel`, packed matrices whose outputs fill whole panels.
template <class Layer, class T>
Kernel3x3<T> kernel_of(Arguments& given, std::int64_t in, std::int64_t out) {
  constexpr std::int64_t panel = kPanelBytes / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t padded = (out + panel - 1) / panel * panel;
  return {given.read<const T>("kernel", {Layer::kMatrices * in * padded}), in, out};
}

// The cells of images (n, S, S, C), whose sides are so many pixels.
Cells cells_of(const Array& images, std::int64_t pixels) {
  images.require_rank(4, "(n, S, S, C)");
  const std::int64_t high = images.size(1), wide = images.size(2);
  if (high < 1 || wide < 1 || high % pixels != 0 || wide % pixels != 0) {
    images.refuse("sides that are multiples of " + std::to_string(pixels));
  }
  return {images.size(0), high / pixels, wide / pixels};
}

// The elements of images (n, S, S, C) that have those cells.
template <class T>
T* images_of(const Array& images, const Cells& cells, std::int64_t pixels,
             const DLDevice& device) {
  images.require_rank(4, "(n, S, S, C)");
  return images.at<T>(
      {cells.count, pixels * cells.height, pixels * cells.width, channels_of(images)}, device);
}

template <class Layer>
void forward(Arguments& given) {
  const Array x = given.array("x");
  by_float_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Cells cells = cells_of(x, Layer::kPixels);
    const auto* images = images_of<const T>(x, cells, Layer::kPixels, given.device());
    const Array out = given.array("out");
    images_of<T>(out, cells, 2, given.device());
    const PixelNorm<T> to = pixel_norm_of<T>(given, out);
    const std::int64_t in = channels_of(x);
    const std::int64_t size = arena_size<Layer, T>(cells, in, to.channels);
    const Kernel3x3<T> kernel = kernel_of<Layer, T>(given, in, to.channels);
    T* const memory = arena_of<T>(given, size);
    const int threads = given.threads();
    given.finish();
    if (cells.count == 0) return;
    const py::gil_scoped_release released;
    const std::vector<T> zeros(static_cast<std::size_t>(in));
    layer_ops<Layer, T>().forward(cells, images, kernel, to, zeros.data(), memory, threads);
  });
}

// Takes `extra`, which is added to the gradient with respect to `out`; only the upsampling layer
// has it.
template <class Layer, class T>
const T* extra_of(Arguments& given, const Array& out) {
  if constexpr (std::is_same_v<Layer, UpsamplingLayer>) {
    const Array extra = given.optional("extra");
    return extra.given() ? extra.at_like<const T>(out, given.device()) : nullptr;
  }
  return nullptr;
}

template <class Layer>
void backward(Arguments& given) {
  const Array grad = given.array("grad");
  by_float_type(grad, [&](auto zero) {
    using T = decltype(zero);
    const Array out = given.array("out");
    const Cells cells = cells_of(out, Layer::kPixels);
    const auto* images = images_of<const T>(grad, cells, 2, given.device());
    PixelNormGrad<T> to = pixel_norm_grad_of<T>(given, out);
    to.extra = extra_of<Layer, T>(given, out);
    const std::int64_t in = channels_of(grad);
    const std::int64_t size = Layer::template arena_back<T>(cells, in, to.channels);
    const Kernel3x3<T> kernel = kernel_of<Layer, T>(given, in, to.channels);
    T* const memory = arena_of<T>(given, size);
    const int threads = given.threads();
    given.finish();
    if (cells.count == 0) return;
    const py::gil_scoped_release released;
    const std::vector<T> zeros(static_cast<std::size_t>(in));
    layer_ops<Layer, T>().backward(cells, images, kernel, to, zeros.data(), memory, threads);
  });
}

}  // namespace

PyMethodDef* progressive_methods() {
  static PyMethodDef methods[] = {
      method<norm>("norm", "Bias, leaky ReLU and, where `scale` is given, pixel norm."),
      method<norm_grad>("norm_grad", "The gradient of `norm`."),
      method<arena<ConvolutionLayer>>("convolve_arena", "How much memory `convolve` needs."),
      method<forward<ConvolutionLayer>>("convolve", "A 3x3 convolution, and `norm` of it."),
      method<backward<ConvolutionLayer>>("convolve_grad", "The gradient of `convolve`."),
      method<arena<UpsamplingLayer>>("upsample_arena", "How much memory `upsample` needs."),
      method<forward<UpsamplingLayer>>("upsample", "Upsampling, a convolution, `norm`."),
      method<backward<UpsamplingLayer>>("upsample_grad", "The gradient of `upsample`."),
      {}};
  return methods;
}

}  // namespace cogen
