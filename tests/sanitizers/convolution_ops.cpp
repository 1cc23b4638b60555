// The ops of ConvolutionOps against plain convolutions in double: a transposed one of stride 2 with
// a 4x4 kernel, and a 3x3 one whose kernel is the first weights of that.
#include <algorithm>

#include "support.h"

namespace cogen {
namespace driver {
namespace {

using Numbers = std::vector<double>;

constexpr double kSlope = 0.2;
constexpr int64_t kTaps = 4;  // taps of the kernel along each side

struct Case {
  int64_t images, height, width;  // size of the input
  int64_t in, out;                // channels
  bool ragged;

  int64_t before() const { return images * height * width * in; }
  int64_t after() const { return 4 * images * height * width * out; }
};

std::string describe(const Case& c) {
  return "n=" + std::to_string(c.images) + " H=" + std::to_string(c.height) +
         " W=" + std::to_string(c.width) + " C=" + std::to_string(c.in) + "->" +
         std::to_string(c.out) + (c.ragged ? " ragged" : "");
}

template <class T>
Array<T> array_of(const Numbers& numbers, bool ragged) {
  Array<T> array(static_cast<int64_t>(numbers.size()), ragged);
  for (int64_t i = 0; i < array.size(); ++i) {
    array[i] = static_cast<T>(numbers[static_cast<size_t>(i)]);
  }
  return array;
}

template <class T>
struct Inputs {
  Case c;
  Numbers x, dy, bias, kernel;  // the kernel is (in, out, 4, 4)

  explicit Inputs(const Case& layer) : c(layer) {
    Random random(static_cast<uint64_t>(c.images * 100 + c.in * 10 + c.out));
    const auto numbers = [&](int64_t size) {  // numbers that T represents exactly
      Array<T> array(size, false);
      fill_uniform(array, random, -1.0, 1.0);
      return Numbers(array.begin(), array.end());
    };
    x = numbers(c.before()), dy = numbers(c.after());
    bias = numbers(c.out), kernel = numbers(c.in * c.out * kTaps * kTaps);
  }
  double weight(int64_t i, int64_t o, int64_t u, int64_t v) const {
    return kernel[static_cast<size_t>(((i * c.out + o) * kTaps + u) * kTaps + v)];
  }
};

// Calls body(input, output, weight) with the array indices of every product of the convolution.
template <class T, class Body>
void for_each_product(const Inputs<T>& in, const Body& body) {
  const Case& c = in.c;
  for (int64_t k = 0; k < c.before(); ++k) {
    const int64_t i = k % c.in, x = k / c.in % c.width, y = k / c.in / c.width % c.height,
                  image = k / c.in / c.width / c.height;
    for (int64_t tap = 0; tap < kTaps * kTaps; ++tap) {
      const int64_t u = tap / kTaps, v = tap % kTaps, row = 2 * y - 1 + u, column = 2 * x - 1 + v;
      if (row < 0 || row >= 2 * c.height || column < 0 || column >= 2 * c.width) continue;
      const int64_t pixel = (image * 2 * c.height + row) * 2 * c.width + column;
      for (int64_t o = 0; o < c.out; ++o) {
        body(static_cast<size_t>(k), static_cast<size_t>(pixel * c.out + o), in.weight(i, o, u, v));
      }
    }
  }
}

template <class T>
Numbers expected_out(const Inputs<T>& in) {
  Numbers out(in.dy.size());
  for (size_t k = 0; k < out.size(); ++k) out[k] = in.bias[k % in.bias.size()];
  for_each_product(in, [&](size_t from, size_t to, double w) { out[to] += w * in.x[from]; });
  for (double& each : out) each = each > 0.0 ? each : kSlope * each;
  return out;
}

// x is taken to be the output of a leaky ReLU.
template <class T>
Numbers expected_grad(const Inputs<T>& in) {
  Numbers grad(in.x.size());
  for_each_product(in, [&](size_t to, size_t from, double w) { grad[to] += w * in.dy[from]; });
  for (size_t k = 0; k < grad.size(); ++k) grad[k] = in.x[k] > 0.0 ? grad[k] : kSlope * grad[k];
  return grad;
}

// The transforms of two and three taps, for tiles of two and of four.
constexpr double kTwoTwo[3][3] = {{1, 0}, {1, 1}, {0, 1}};
constexpr double kTwoFour[5][3] = {
    {2, 0}, {1, 1}, {-1.0 / 3, 1.0 / 3}, {-8.0 / 3, -4.0 / 3}, {0, 1}};
constexpr double kThreeTwo[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
constexpr double kThreeFour[6][3] = {{1, 0, 0},
                                     {1.0 / 3, 1.0 / 3, 1.0 / 3},
                                     {-1.0 / 3, 1.0 / 3, -1.0 / 3},
                                     {-16.0 / 15, -8.0 / 15, -4.0 / 15},
                                     {1.0 / 15, -2.0 / 15, 4.0 / 15},
                                     {0, 0, 1}};

const double (*transform(const TileGrid& grid))[3] {
  if (grid.taps == 2) return grid.outputs == 2 ? kTwoTwo : kTwoFour;
  return grid.outputs == 2 ? kThreeTwo : kThreeFour;
}

int64_t slots_of(const TileGrid& grid) {
  return (grid.outputs + grid.taps - 1) * (grid.outputs + grid.taps - 1);
}
// The weights of the taps of both parities.
constexpr int64_t kThere[2][2] = {{3, 1}, {2, 0}}, kBack[2][2] = {{1, 3}, {0, 2}};

// The transformed weight of slot `slot`; weight(row, column) gives those of the taps.
template <class Weight>
double transformed(const TileGrid& grid, int64_t slot, const Weight& weight) {
  const auto* t = transform(grid);
  const int64_t side = grid.outputs + grid.taps - 1;
  double sum = 0.0;
  for (int64_t p = 0; p < grid.taps; ++p) {
    for (int64_t q = 0; q < grid.taps; ++q) {
      sum += t[slot / side][p] * t[slot % side][q] * weight(p, q);
    }
  }
  return sum;
}

// Results of all products of operands (slots, tiles, in) with weight(slot, i, o).
template <class T, class Weight>
void multiply(const TileGrid& grid, const Array<T>& operands, int64_t in, Array<T>& results,
              int64_t out, const Weight& weight) {
  for (int64_t slot = 0; slot < slots_of(grid); ++slot) {
    std::vector<double> matrix(static_cast<size_t>(in * out));
    for (int64_t k = 0; k < in * out; ++k) {
      matrix[static_cast<size_t>(k)] = weight(slot, k / out, k % out);
    }
    for (int64_t row = slot * grid.tiles(); row < (slot + 1) * grid.tiles(); ++row) {
      for (int64_t o = 0; o < out; ++o) {
        double sum = 0.0;
        for (int64_t i = 0; i < in; ++i) {
          sum += static_cast<double>(operands[row * in + i]) *
                 matrix[static_cast<size_t>(i * out + o)];
        }
        results[row * out + o] = static_cast<T>(sum);
      }
    }
  }
}

template <class T>
Array<T> zeros_of(const Case& c) {
  return array_of<T>(Numbers(static_cast<size_t>(std::max(c.in, c.out))), c.ragged);
}

// The bound allows for sums and differences of numbers that transforms make several times larger.
template <class T>
double bound(const Case& c) {
  return 64.0 * static_cast<double>(kTaps * std::max(c.in, c.out)) * rounding_bound<T>();
}

TileGrid grid_of(const Case& c, int64_t taps, int64_t outputs) {
  const auto tiles = [&](int64_t side) { return (side + outputs - 1) / outputs; };
  return {c.images, tiles(c.height), tiles(c.width), taps, outputs, 1, 0, 0};
}

template <class T>
void tiles_there(const ConvolutionOps<T>& ops, const Inputs<T>& in, int64_t outputs, int threads,
                 Array<T>& out) {
  const Case& c = in.c;
  const Array<T> x = array_of<T>(in.x, c.ragged), bias = array_of<T>(in.bias, c.ragged);
  TileGrid grid = grid_of(c, 2, outputs);
  Array<T> operands(slots_of(grid) * grid.tiles() * c.in, c.ragged);
  Array<T> results(slots_of(grid) * grid.tiles() * c.out, c.ragged);
  Array<T> pixels(threads * outputs * outputs * c.out, c.ragged);
  const Array<T> zeros = zeros_of<T>(c);
  for (int64_t a = 0; a < 2; ++a) {
    for (int64_t b = 0; b < 2; ++b) {
      grid.step = 1, grid.top = a - 1, grid.left = b - 1;
      ops.fill(grid, {x.data(), c.height, c.width, c.in}, zeros.data(), operands.data(), c.in,
               threads);
      multiply(grid, operands, c.in, results, c.out, [&](int64_t slot, int64_t i, int64_t o) {
        return transformed(grid, slot, [&](int64_t p, int64_t q) {
          return in.weight(i, o, kThere[a][p], kThere[b][q]);
        });
      });
      grid.step = 2, grid.top = a, grid.left = b;
      ops.finish(grid, results.data(),
                 {c.out, bias.data(), static_cast<T>(kSlope), out.data(), nullptr}, 2 * c.height,
                 2 * c.width, pixels.data(), threads);
    }
  }
}

template <class T>
void tiles_back(const ConvolutionOps<T>& ops, const Inputs<T>& in, int64_t outputs, int threads,
                Array<T>& grad) {
  const Case& c = in.c;
  const Array<T> x = array_of<T>(in.x, c.ragged), dy = array_of<T>(in.dy, c.ragged);
  TileGrid grid = grid_of(c, 2, outputs);
  const int64_t width = 4 * c.out;
  Array<T> operands(slots_of(grid) * grid.tiles() * width, c.ragged);
  Array<T> results(slots_of(grid) * grid.tiles() * c.in, c.ragged);
  Array<T> pixels(threads * outputs * outputs * c.in, c.ragged);
  const Array<T> zeros = zeros_of<T>(c);
  grid.step = 2;
  for (int64_t parity = 0; parity < 4; ++parity) {
    grid.top = -(parity / 2), grid.left = -(parity % 2);
    ops.fill(grid, {dy.data(), 2 * c.height, 2 * c.width, c.out}, zeros.data(),
             operands.data() + parity * c.out, width, threads);
  }
  multiply(grid, operands, width, results, c.in, [&](int64_t slot, int64_t k, int64_t i) {
    const int64_t parity = k / c.out;
    return transformed(grid, slot, [&](int64_t p, int64_t q) {
      return in.weight(i, k % c.out, kBack[parity / 2][p], kBack[parity % 2][q]);
    });
  });
  grid.step = 1, grid.top = 0, grid.left = 0;
  ops.finish_grad(grid, results.data(),
                  {c.in, static_cast<T>(kSlope), x.data(), nullptr, nullptr, grad.data()}, c.height,
                  c.width, pixels.data(), threads);
}

// The 3x3 convolution of x, or its adjoint of the first numbers of dy, and the activation or the
// gradient.
template <class T>
Outputs three(const ConvolutionOps<T>& ops, const Inputs<T>& in, int64_t outputs, int threads) {
  const Case& c = in.c;
  const int64_t pixels = c.images * c.height * c.width;
  const Array<T> x = array_of<T>(in.x, c.ragged), bias = array_of<T>(in.bias, c.ragged);
  const Array<T> dy =
      array_of<T>({in.dy.begin(), in.dy.begin() + pixels * c.out}, c.ragged);
  TileGrid grid = grid_of(c, 3, outputs);
  const int64_t rows = slots_of(grid) * grid.tiles();
  Array<T> before(rows * c.in, c.ragged), after(rows * c.out, c.ragged);
  Array<T> tile(threads * outputs * outputs * std::max(c.in, c.out), c.ragged);
  Array<T> out(pixels * c.out, c.ragged), grad(pixels * c.in, c.ragged);
  const Array<T> zeros = zeros_of<T>(c);
  grid.top = grid.left = -1;
  ops.fill(grid, {x.data(), c.height, c.width, c.in}, zeros.data(), before.data(), c.in, threads);
  multiply(grid, before, c.in, after, c.out, [&](int64_t slot, int64_t i, int64_t o) {
    return transformed(grid, slot, [&](int64_t p, int64_t q) { return in.weight(i, o, p, q); });
  });
  grid.top = grid.left = 0;
  ops.finish(grid, after.data(),
             {c.out, bias.data(), static_cast<T>(kSlope), out.data(), nullptr}, c.height, c.width,
             tile.data(), threads);
  grid.top = grid.left = -1;
  ops.fill(grid, {dy.data(), c.height, c.width, c.out}, zeros.data(), after.data(), c.out, threads);
  multiply(grid, after, c.out, before, c.in, [&](int64_t slot, int64_t o, int64_t i) {
    return transformed(grid, slot,
                       [&](int64_t p, int64_t q) { return in.weight(i, o, 2 - p, 2 - q); });
  });
  grid.top = grid.left = 0;
  ops.finish_grad(grid, before.data(),
                  {c.in, static_cast<T>(kSlope), x.data(), nullptr, nullptr, grad.data()}, c.height,
                  c.width, tile.data(), threads);

  Numbers expected(static_cast<size_t>(pixels * c.out)), by_x(static_cast<size_t>(pixels * c.in));
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t column = pixel % c.width, row = pixel / c.width % c.height;
    for (int64_t o = 0; o < c.out; ++o) {
      double sum = in.bias[static_cast<size_t>(o)];
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t down = tap / 3 - 1, right = tap % 3 - 1;
        if (row + down < 0 || row + down >= c.height) continue;
        if (column + right < 0 || column + right >= c.width) continue;
        const int64_t other = pixel + down * c.width + right;
        for (int64_t i = 0; i < c.in; ++i) {
          const double weight = in.weight(i, o, tap / 3, tap % 3);
          sum += weight * in.x[static_cast<size_t>(other * c.in + i)];
          by_x[static_cast<size_t>(other * c.in + i)] +=
              weight * in.dy[static_cast<size_t>(pixel * c.out + o)];
        }
      }
      expected[static_cast<size_t>(pixel * c.out + o)] = sum > 0.0 ? sum : kSlope * sum;
    }
  }
  for (size_t k = 0; k < by_x.size(); ++k) by_x[k] = in.x[k] > 0.0 ? by_x[k] : kSlope * by_x[k];
  const Outputs found{output("out", out), output("grad", grad)};
  expect_close(found[0], expected, bound<T>(c));
  expect_close(found[1], by_x, bound<T>(c));
  return found;
}

template <class T>
Outputs tiled(const ConvolutionOps<T>& ops, const Inputs<T>& in, int64_t outputs, int threads) {
  Array<T> out(in.c.after(), in.c.ragged), grad(in.c.before(), in.c.ragged);
  tiles_there(ops, in, outputs, threads, out);
  tiles_back(ops, in, outputs, threads, grad);
  const Outputs found{output("out", out), output("grad", grad)};
  expect_close(found[0], expected_out(in), bound<T>(in.c));
  expect_close(found[1], expected_grad(in), bound<T>(in.c));
  return found;
}

template <class T>
Outputs summed(const ConvolutionOps<T>& ops, const Inputs<T>& in, int threads) {
  const Case& c = in.c;
  const int64_t pixels = c.images * c.height * c.width;
  Array<T> products(pixels * kTaps * kTaps * c.out, c.ragged), out(c.after(), c.ragged);
  for (int64_t k = 0; k < products.size(); ++k) {
    const int64_t o = k % c.out, tap = k / c.out % (kTaps * kTaps),
                  pixel = k / c.out / (kTaps * kTaps);
    double sum = 0.0;
    for (int64_t i = 0; i < c.in; ++i) {
      sum += in.x[static_cast<size_t>(pixel * c.in + i)] * in.weight(i, o, tap / kTaps, tap % kTaps);
    }
    products[k] = static_cast<T>(sum);
  }
  const Array<T> bias = array_of<T>(in.bias, c.ragged);
  ops.sum_taps({c.images, c.height, c.width}, products.data(),
               {c.out, bias.data(), static_cast<T>(kSlope), out.data(), nullptr}, threads);
  const Outputs found{output("out", out)};
  expect_close(found[0], expected_out(in), bound<T>(c));
  return found;
}

static_assert(sizeof(ConvolutionOps<float>) == 4 * sizeof(&check_convolution),
              "ConvolutionOps has changed: each op needs a check");

template <class T>
void run_case(const Case& c, const std::vector<int>& thread_counts) {
  const Inputs<T> in(c);
  static const std::vector<Isa<T>> isas = usable_isas<T>();
  for (const Isa<T>& isa : isas) {
    const ConvolutionOps<T>& ops = *isa.ops.convolution;
    const auto check = [&](const char* what, const std::function<Outputs(int)>& run) {
      across_threads(std::string("convolution ") + what + " " + type_name<T>() + " " + isa.name +
                         " " + describe(c),
                     thread_counts, run);
    };
    for (const int64_t outputs : {2, 4}) {
      check("transposed", [&](int threads) { return tiled(ops, in, outputs, threads); });
      check("3x3", [&](int threads) { return three(ops, in, outputs, threads); });
    }
    check("sums", [&](int threads) { return summed(ops, in, threads); });
  }
}

}  // namespace

void check_convolution() {
  for (const bool ragged : {false, true}) {
    for (const Case& c : {Case{1, 1, 1, 1, 1, ragged}, Case{2, 4, 3, 5, 3, ragged},
                          Case{1, 2, 9, 17, 8, ragged}, Case{3, 5, 5, 2, 19, ragged}}) {
      run_case<float>(c, {3});
      run_case<double>(c, {3});
    }
  }
  // This case has enough entries for several threads.
  run_case<float>({3, 24, 24, 16, 16, true}, {1, 3});
  run_case<double>({3, 24, 24, 16, 16, true}, {1, 3});
}

}  // namespace driver
}  // namespace cogen
