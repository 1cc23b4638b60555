// The ops of ProgressiveOps against plain convolutions in double.
#include <algorithm>
#include <cmath>

#include "support.h"

namespace cogen {
namespace driver {
namespace {

using Numbers = std::vector<double>;

constexpr double kSlope = 0.2;

struct Case {
  int64_t images, height, width;  // cells
  int64_t before, after;          // channels
  bool ragged;
};

std::string describe(const Case& c) {
  return "n=" + std::to_string(c.images) + " H=" + std::to_string(c.height) +
         " W=" + std::to_string(c.width) + " C=" + std::to_string(c.before) + "->" +
         std::to_string(c.after) + (c.ragged ? " ragged" : "");
}

// Images (n, height, width, channels) of numbers in double.
struct Images {
  int64_t n, height, width, channels;
  Numbers values;

  Images(int64_t count, int64_t h, int64_t w, int64_t c)
      : n(count), height(h), width(w), channels(c), values(static_cast<size_t>(n * h * w * c)) {}
  int64_t pixels() const { return n * height * width; }
  double& at(int64_t image, int64_t y, int64_t x, int64_t c) {
    return values[static_cast<size_t>(((image * height + y) * width + x) * channels + c)];
  }
  double get(int64_t image, int64_t y, int64_t x, int64_t c) const {
    if (y < 0 || y >= height || x < 0 || x >= width) return 0.0;
    return values[static_cast<size_t>(((image * height + y) * width + x) * channels + c)];
  }
};

// A kernel in the order (out, in, 3, 3).
struct Kernel {
  int64_t out, in;
  Numbers values;

  double at(int64_t o, int64_t i, int64_t y, int64_t x) const {
    return values[static_cast<size_t>(((o * in + i) * 3 + y) * 3 + x)];
  }
  Kernel turned() const {
    Kernel other{in, out, Numbers(values.size())};
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        for (int64_t k = 0; k < 9; ++k) {
          other.values[static_cast<size_t>((i * out + o) * 9 + 8 - k)] = at(o, i, k / 3, k % 3);
        }
      }
    }
    return other;
  }
};

Images convolved(const Images& x, const Kernel& kernel) {
  Images y(x.n, x.height, x.width, kernel.out);
  for (int64_t p = 0; p < y.pixels(); ++p) {
    const int64_t image = p / (y.height * y.width), row = p / y.width % y.height,
                  column = p % y.width;
    for (int64_t o = 0; o < kernel.out; ++o) {
      double sum = 0.0;
      for (int64_t i = 0; i < kernel.in; ++i) {
        for (int64_t k = 0; k < 9; ++k) {
          sum += kernel.at(o, i, k / 3, k % 3) * x.get(image, row + k / 3 - 1, column + k % 3 - 1, i);
        }
      }
      y.at(image, row, column, o) = sum;
    }
  }
  return y;
}

Images doubled(const Images& x) {
  Images y(x.n, 2 * x.height, 2 * x.width, x.channels);
  for (int64_t k = 0; k < static_cast<int64_t>(y.values.size()); ++k) {
    const int64_t c = k % y.channels, p = k / y.channels, column = p % y.width,
                  row = p / y.width % y.height, image = p / y.width / y.height;
    y.values[static_cast<size_t>(k)] = x.get(image, row / 2, column / 2, c);
  }
  return y;
}

Images halved(const Images& x) {
  Images y(x.n, x.height / 2, x.width / 2, x.channels);
  for (int64_t image = 0; image < x.n; ++image) {
    for (int64_t row = 0; row < x.height; ++row) {
      for (int64_t column = 0; column < x.width; ++column) {
        for (int64_t c = 0; c < x.channels; ++c) {
          y.at(image, row / 2, column / 2, c) += x.get(image, row, column, c);
        }
      }
    }
  }
  return y;
}

struct Normed {
  Numbers out, scale;
};

Normed normed(const Images& x, const Numbers& bias, bool normalise) {
  Normed y{x.values, Numbers(static_cast<size_t>(x.pixels()), 1.0)};
  for (int64_t p = 0; p < x.pixels(); ++p) {
    double squares = 0.0;
    double* out = y.out.data() + p * x.channels;
    for (int64_t c = 0; c < x.channels; ++c) {
      out[c] += bias[static_cast<size_t>(c)];
      if (out[c] <= 0.0) out[c] *= kSlope;
      squares += out[c] * out[c];
    }
    if (!normalise) continue;
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.channels) + 1e-8);
    y.scale[static_cast<size_t>(p)] = scale;
    for (int64_t c = 0; c < x.channels; ++c) out[c] *= scale;
  }
  return y;
}

Numbers normed_grad(const Images& grad, const Normed& y, bool normalise) {
  Numbers result(grad.values.size());
  for (int64_t p = 0; p < grad.pixels(); ++p) {
    const double* out = y.out.data() + p * grad.channels;
    const double* g = grad.values.data() + p * grad.channels;
    double along = 0.0;
    for (int64_t c = 0; c < grad.channels; ++c) along += g[c] * out[c];
    along = normalise ? along / static_cast<double>(grad.channels) : 0.0;
    for (int64_t c = 0; c < grad.channels; ++c) {
      const double by = y.scale[static_cast<size_t>(p)] * (g[c] - along * out[c]);
      result[static_cast<size_t>(p * grad.channels + c)] = out[c] > 0.0 ? by : kSlope * by;
    }
  }
  return result;
}

template <class T>
Array<T> array_of(const Numbers& numbers, bool ragged) {
  Array<T> array(static_cast<int64_t>(numbers.size()), ragged);
  for (int64_t i = 0; i < array.size(); ++i) array[i] = static_cast<T>(numbers[static_cast<size_t>(i)]);
  return array;
}

template <class T>
Numbers numbers_of(const Array<T>& array) {
  return {array.begin(), array.end()};
}

// Numbers that T represents exactly, so that the computation in double begins with the same values.
template <class T>
Numbers random_numbers(int64_t size, Random& random) {
  Array<T> array(size, false);
  fill_uniform(array, random, -1.0, 1.0);
  return numbers_of(array);
}

template <class T>
struct Inputs {
  Case c;
  Images x, grad;       // plain: (n, 2H, 2W, before) and (n, 2H, 2W, after)
  Images small;         // upsampled: (n, H, W, before)
  Kernel kernel;
  Numbers bias;         // (after,)
  Normed earlier, earlier_small;  // what x and `small` are taken to be the outputs of
  Images extra;         // (n, H, W, before)

  explicit Inputs(const Case& layer)
      : c(layer),
        x(c.images, 2 * c.height, 2 * c.width, c.before),
        grad(c.images, 2 * c.height, 2 * c.width, c.after),
        small(c.images, c.height, c.width, c.before),
        kernel{c.after, c.before, {}},
        extra(c.images, c.height, c.width, c.before) {
    Random random(static_cast<uint64_t>(c.images * 1000 + c.before * 10 + c.after));
    for (Images* each : {&x, &grad, &small, &extra}) {
      each->values = random_numbers<T>(static_cast<int64_t>(each->values.size()), random);
    }
    kernel.values = random_numbers<T>(c.after * c.before * 9, random);
    bias = random_numbers<T>(c.after, random);
    earlier = {x.values, random_numbers<T>(x.pixels(), random)};
    earlier_small = {small.values, random_numbers<T>(small.pixels(), random)};
  }
  Array<T> zeros() const {
    return array_of<T>(Numbers(static_cast<size_t>(std::max(c.before, c.after))), c.ragged);
  }
};

// The bound of a layer: sums of 9 products for each channel, of numbers that additions on either
// side have made up to 4 times larger. The norm of few channels divides by numbers that may be
// small.
template <class T>
double layer_bound(const Case& c) {
  return 16.0 * static_cast<double>(9 * std::max(c.before, c.after)) * rounding_bound<T>();
}

// Entry (u, v) of t k t' for a (rows, 3) matrix t.
template <size_t kRows>
double transformed(const Kernel& k, int64_t o, int64_t i, const double (&t)[kRows][3], int64_t u,
                   int64_t v) {
  double sum = 0.0;
  for (int64_t y = 0; y < 3; ++y) {
    for (int64_t x = 0; x < 3; ++x) sum += t[u][y] * k.at(o, i, y, x) * t[v][x];
  }
  return sum;
}

constexpr double kTiles[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
constexpr double kDifferences[3][3] = {{1, 1, 1}, {1, 0, 0}, {0, 0, -1}};

// What a gradient is computed from and where it goes.
template <class T>
struct Target {
  Array<T> out, scale, extra, grad;

  Target(const Normed& before, const Numbers& more, bool ragged)
      : out(array_of<T>(before.out, ragged)),
        scale(array_of<T>(before.scale, ragged)),
        extra(array_of<T>(more, ragged)),
        grad(out.size(), ragged) {}
  PixelNormGrad<T> to(int64_t channels) {
    return {channels, static_cast<T>(kSlope), out.data(), scale.data(),
            extra.size() ? extra.data() : nullptr, grad.data()};
  }
};

// Appends the entries weight(i, o) of an (in, out) matrix in panels of 64 bytes.
template <class T, class Weight>
void pack(std::vector<T>& packed, int64_t in, int64_t out, const Weight& weight) {
  constexpr int64_t kPanel = 64 / sizeof(T);
  for (int64_t first = 0; first < out; first += kPanel) {
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t o = first; o < first + kPanel; ++o) {
        packed.push_back(o < out ? static_cast<T>(weight(i, o)) : T(0));
      }
    }
  }
}

// The 16 matrices of tiles, of a kernel as it is or rotated by 180 degrees.
template <class T>
Array<T> packed_tiles(const Kernel& kernel, bool ragged) {
  std::vector<T> packed;
  for (int64_t k = 0; k < 16; ++k) {
    pack(packed, kernel.in, kernel.out, [&](int64_t i, int64_t o) {
      return transformed(kernel, o, i, kTiles, k / 4, k % 4);
    });
  }
  return array_of<T>({packed.begin(), packed.end()}, ragged);
}

// Which rows of kDifferences the matrices of image k of the four are made of.
constexpr int kParts[4] = {1, 2, 2, 4};
int64_t vertical(int k, int64_t part) { return k < 2 ? 0 : k == 2 ? 1 + part : 1 + part / 2; }
int64_t horizontal(int k, int64_t part) {
  return k % 2 == 0 ? 0 : k == 1 ? 1 + part : 1 + part % 2;
}

// The 9 matrices of the forward direction; backward, the matrices of an image are joined into one.
template <class T>
Array<T> packed_differences(const Kernel& kernel, bool back, bool ragged) {
  std::vector<T> packed;
  const auto weight = [&](int k, int64_t part, int64_t i, int64_t o) {
    return transformed(kernel, o, i, kDifferences, vertical(k, part), horizontal(k, part));
  };
  for (int k = 0; k < 4; ++k) {
    if (back) {
      pack(packed, kParts[k] * kernel.out, kernel.in, [&](int64_t o, int64_t i) {
        return weight(k, o / kernel.out, i, o % kernel.out);
      });
      continue;
    }
    for (int64_t part = 0; part < kParts[k]; ++part) {
      pack(packed, kernel.in, kernel.out,
           [&](int64_t i, int64_t o) { return weight(k, part, i, o); });
    }
  }
  return array_of<T>({packed.begin(), packed.end()}, ragged);
}

// The arrays that a layer reads and writes.
template <class T>
struct Layer {
  Array<T> x, dy, bias, zeros, out, scale;
  Target<T> before;

  Layer(const Inputs<T>& in, const Images& images, const Normed& earlier, const Numbers& extra)
      : x(array_of<T>(images.values, in.c.ragged)),
        dy(array_of<T>(in.grad.values, in.c.ragged)),
        bias(array_of<T>(in.bias, in.c.ragged)),
        zeros(in.zeros()),
        out(in.grad.pixels() * in.c.after, in.c.ragged),
        scale(in.grad.pixels(), in.c.ragged),
        before(earlier, extra, in.c.ragged) {}
  PixelNorm<T> to(int64_t channels) {
    return {channels, bias.data(), static_cast<T>(kSlope), out.data(), scale.data()};
  }
};

template <class T>
Outputs checked(const Inputs<T>& in, const Layer<T>& layer, const Normed& expected,
                const Numbers& grad) {
  const Outputs outputs{output("out", layer.out), output("scale", layer.scale),
                        output("grad", layer.before.grad)};
  expect_close(outputs[0], expected.out, layer_bound<T>(in.c));
  expect_close(outputs[1], expected.scale, layer_bound<T>(in.c));
  expect_close(outputs[2], grad, layer_bound<T>(in.c));
  return outputs;
}

template <class T>
Outputs plain_layer(const ProgressiveOps<T>& ops, const Inputs<T>& in, int threads) {
  const Case& c = in.c;
  const Cells cells{c.images, c.height, c.width};
  const Array<T> there = packed_tiles<T>(in.kernel, c.ragged);
  const Array<T> back = packed_tiles<T>(in.kernel.turned(), c.ragged);
  Layer<T> layer(in, in.x, in.earlier, {});
  Array<T> arena(ops.convolution.arena(cells, c.before, c.after), c.ragged);
  ops.convolution.forward(cells, layer.x.data(), {there.data(), c.before, c.after},
                          layer.to(c.after), layer.zeros.data(), arena.data(), threads);
  Array<T> other(ops.convolution.arena(cells, c.after, c.before), c.ragged);
  ops.convolution.backward(cells, layer.dy.data(), {back.data(), c.after, c.before},
                           layer.before.to(c.before), layer.zeros.data(), other.data(), threads);
  return checked(in, layer, normed(convolved(in.x, in.kernel), in.bias, true),
                 normed_grad(convolved(in.grad, in.kernel.turned()), in.earlier, true));
}

template <class T>
Outputs upsampled_layer(const ProgressiveOps<T>& ops, const Inputs<T>& in, int threads) {
  const Case& c = in.c;
  const Cells cells{c.images, c.height, c.width};
  const Array<T> there = packed_differences<T>(in.kernel, false, c.ragged);
  const Array<T> back = packed_differences<T>(in.kernel, true, c.ragged);
  Layer<T> layer(in, in.small, in.earlier_small, in.extra.values);
  Array<T> arena(ops.upsampling.arena(cells, c.before, c.after), c.ragged);
  ops.upsampling.forward(cells, layer.x.data(), {there.data(), c.before, c.after},
                         layer.to(c.after), layer.zeros.data(), arena.data(), threads);
  Array<T> other(arena.size(), c.ragged);
  ops.upsampling.backward(cells, layer.dy.data(), {back.data(), c.after, c.before},
                          layer.before.to(c.before), layer.zeros.data(), other.data(), threads);
  Images by_small = halved(convolved(in.grad, in.kernel.turned()));
  for (size_t i = 0; i < by_small.values.size(); ++i) by_small.values[i] += in.extra.values[i];
  return checked(in, layer, normed(convolved(doubled(in.small), in.kernel), in.bias, true),
                 normed_grad(by_small, in.earlier_small, true));
}

template <class T>
Outputs pixels(const ProgressiveOps<T>& ops, const Inputs<T>& in, bool normalise, int threads) {
  const Case& c = in.c;
  const int64_t count = in.grad.pixels();
  const Array<T> x = array_of<T>(in.grad.values, c.ragged), bias = array_of<T>(in.bias, c.ragged);
  Array<T> out(x.size(), c.ragged), scale(normalise ? count : 0, c.ragged);
  T* const scales = normalise ? scale.data() : nullptr;
  ops.norm(count, x.data(), {c.after, bias.data(), static_cast<T>(kSlope), out.data(), scales},
           threads);
  const Normed expected = normed(in.grad, in.bias, normalise);
  const Normed found{numbers_of(out), normalise ? numbers_of(scale) : expected.scale};
  Array<T> scratch = array_of<T>(in.grad.values, c.ragged), grad(x.size(), c.ragged);
  ops.norm_grad(count, scratch.data(),
                {c.after, static_cast<T>(kSlope), out.data(), scales, nullptr, grad.data()},
                threads);
  const Outputs outputs{output("out", out), output("scale", scale), output("grad", grad)};
  expect_close(outputs[0], expected.out, layer_bound<T>(c));
  if (normalise) expect_close(outputs[1], expected.scale, layer_bound<T>(c));
  expect_close(outputs[2], normed_grad(in.grad, found, normalise), layer_bound<T>(c));
  return outputs;
}

// Images of 2 height x 2 width with `after` channels are made from `before` channels. All pixels
// are compared, or means of 2x2, or every third pixel; half of the measured values are hidden.
template <class T>
Outputs to_rgb(const ProgressiveOps<T>& ops, const Inputs<T>& in, MisfitKind kind, bool bounded,
               int threads) {
  const Case& c = in.c;
  const int64_t factor = kind == MisfitKind::mask ? 1 : kind == MisfitKind::pool ? 2 : 3;
  const int64_t height = 2 * c.height, width = 2 * c.width;
  const int64_t lines = (height - 1) / factor + 1, values = (width - 1) / factor + 1;
  const int64_t measured = c.after * lines * values;
  Random random(7);
  const Numbers weights = random_numbers<T>(c.after * c.before, random);
  const Numbers targets = random_numbers<T>(measured, random);
  Array<uint8_t> mask(measured, c.ragged);
  Array<T> target = array_of<T>(targets, c.ragged), weight = array_of<T>({0.75}, c.ragged);
  for (int64_t i = 0; i < measured; ++i) {
    mask[i] = i % 2;
    if (!mask[i]) target[i] = static_cast<T>(kNan);
  }
  Array<int64_t> observation(c.images, c.ragged);
  for (int64_t i = 0; i < c.images; ++i) observation[i] = 0;
  Array<double> energy(c.images, c.ragged);
  Misfit<T> m{kind, c.images, c.after, height, width, factor, measured, nullptr,
              observation.data(), target.data(), mask.data(), 0, weight.data(), 0, false,
              energy.data(), nullptr, nullptr, 1};
  m.segments = ops.to_rgb_bands(m);
  Array<double> partials(m.segments > 1 ? c.images * m.segments : 0, c.ragged);
  m.partials = partials.data();
  const Array<T> rgb_weight = array_of<T>(weights, c.ragged);
  const Array<T> rgb_bias = array_of<T>(in.bias, c.ragged);
  Array<T> arena(ops.to_rgb_arena(m, c.before, threads), c.ragged);
  Target<T> before(in.earlier, {}, c.ragged);
  ops.to_rgb_misfit(m, {rgb_weight.data(), rgb_bias.data(), bounded}, before.to(c.before),
                    arena.data(), threads);

  Numbers energies(static_cast<size_t>(c.images));
  Images by_out(c.images, height, width, c.before);
  for (int64_t image = 0; image < c.images; ++image) {
    for (int64_t v = 0; v < measured; ++v) {
      if (!mask[v]) continue;
      const int64_t k = v / (lines * values), y = v / values % lines * factor,
                    x = v % values * factor, side = kind == MisfitKind::pool ? factor : 1;
      const auto value = [&](int64_t row, int64_t column) {
        double sum = in.bias[static_cast<size_t>(k)];
        for (int64_t i = 0; i < c.before; ++i) {
          sum += weights[static_cast<size_t>(k * c.before + i)] * in.x.get(image, row, column, i);
        }
        return bounded ? std::tanh(sum) : sum;
      };
      const double area = static_cast<double>(side * side);
      double mean = 0.0;
      for (int64_t p = 0; p < side * side; ++p) mean += value(y + p / side, x + p % side) / area;
      const double residual = mean - targets[static_cast<size_t>(v)];
      energies[static_cast<size_t>(image)] += 0.75 * residual * residual;
      for (int64_t p = 0; p < side * side; ++p) {
        const double shown = value(y + p / side, x + p % side);
        const double by = 1.5 * residual / area * (bounded ? 1.0 - shown * shown : 1.0);
        for (int64_t i = 0; i < c.before; ++i) {
          by_out.at(image, y + p / side, x + p % side, i) +=
              by * weights[static_cast<size_t>(k * c.before + i)];
        }
      }
    }
  }
  const Outputs outputs{output("energy", energy), output("grad", before.grad)};
  expect_close(outputs[0], energies, layer_bound<T>(c));
  expect_close(outputs[1], normed_grad(by_out, in.earlier, true), layer_bound<T>(c));
  return outputs;
}

static_assert(sizeof(ProgressiveOps<float>) == 11 * sizeof(&check_progressive),
              "ProgressiveOps has changed: each op needs a check");

template <class T>
void run_case(const Case& c, const std::vector<int>& thread_counts) {
  const Inputs<T> in(c);
  static const std::vector<Isa<T>> isas = usable_isas<T>();
  for (const Isa<T>& isa : isas) {
    const ProgressiveOps<T>& ops = *isa.ops.progressive;
    const auto check = [&](const char* what, const std::function<Outputs(int)>& run) {
      across_threads(std::string("progressive ") + what + " " + type_name<T>() + " " + isa.name +
                         " " + describe(c),
                     thread_counts, run);
    };
    check("plain layer", [&](int threads) { return plain_layer(ops, in, threads); });
    check("upsampled layer", [&](int threads) { return upsampled_layer(ops, in, threads); });
    for (const bool flag : {false, true}) {
      check("norm", [&](int threads) { return pixels(ops, in, flag, threads); });
      for (const MisfitKind kind : {MisfitKind::mask, MisfitKind::pool, MisfitKind::stride}) {
        check("to_rgb_misfit", [&](int threads) { return to_rgb(ops, in, kind, flag, threads); });
      }
    }
  }
}

}  // namespace

void check_progressive() {
  for (const bool ragged : {false, true}) {
    for (const Case& c : {Case{1, 1, 1, 1, 1, ragged}, Case{1, 4, 3, 5, 2, ragged},
                          Case{3, 2, 2, 2, 17, ragged}, Case{2, 3, 5, 19, 3, ragged}}) {
      run_case<float>(c, {3});
      run_case<double>(c, {3});
    }
  }
  // These cases have enough entries for several threads, and bands that are parts of an image.
  run_case<float>({2, 40, 40, 88, 1, true}, {1, 3});
  run_case<double>({2, 40, 40, 1, 88, true}, {1, 3});
}

}  // namespace driver
}  // namespace cogen
