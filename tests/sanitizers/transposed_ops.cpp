// The ops of TransposedOps against a plain transposed convolution in double.
#include <algorithm>

#include "support.h"

namespace cogen {
namespace driver {
namespace {

using Numbers = std::vector<double>;

constexpr double kSlope = 0.2;
constexpr int64_t kTaps = 4;  // of the kernel along each side

struct Case {
  int64_t images, height, width;  // before
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
    const auto numbers = [&](int64_t size) {  // those that T holds exactly
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

// Calls body(input, output, weight) for every product of the convolution, by places in the arrays.
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

// The transforms of two taps, for tiles of two and of four.
constexpr double kTwo[3][2] = {{1, 0}, {1, 1}, {0, 1}};
constexpr double kFour[5][2] = {{2, 0}, {1, 1}, {-1.0 / 3, 1.0 / 3}, {-8.0 / 3, -4.0 / 3}, {0, 1}};
// The weights of the taps of both parities.
constexpr int64_t kThere[2][2] = {{3, 1}, {2, 0}}, kBack[2][2] = {{1, 3}, {0, 2}};

// The weight of slot `slot` for the outputs of parity (a, b).
template <class T>
double transformed(const Inputs<T>& in, int64_t outputs, const int64_t (&taps)[2][2], int64_t slot,
                   int64_t a, int64_t b, int64_t i, int64_t o) {
  const auto& t = outputs == 2 ? &kTwo[0] : &kFour[0];
  double sum = 0.0;
  for (int64_t p = 0; p < 2; ++p) {
    for (int64_t q = 0; q < 2; ++q) {
      sum += t[slot / (outputs + 1)][p] * t[slot % (outputs + 1)][q] *
             in.weight(i, o, taps[a][p], taps[b][q]);
    }
  }
  return sum;
}

template <class T>
Array<T> zeros_of(const Case& c) {
  return array_of<T>(Numbers(static_cast<size_t>(std::max(c.in, c.out))), c.ragged);
}

// Numbers that transforms make several times larger are summed and subtracted.
template <class T>
double bound(const Case& c) {
  return 64.0 * static_cast<double>(kTaps * std::max(c.in, c.out)) * rounding_bound<T>();
}

TileGrid grid_of(const Case& c, int64_t outputs) {
  const auto tiles = [&](int64_t side) { return (side + outputs - 1) / outputs; };
  return {c.images, tiles(c.height), tiles(c.width), outputs, 1, 0, 0};
}

template <class T>
void tiles_there(const TransposedOps<T>& ops, const Inputs<T>& in, int64_t outputs, int threads,
                 Array<T>& out) {
  const Case& c = in.c;
  const Array<T> x = array_of<T>(in.x, c.ragged), bias = array_of<T>(in.bias, c.ragged);
  TileGrid grid = grid_of(c, outputs);
  const int64_t slots = (outputs + 1) * (outputs + 1);
  Array<T> operands(slots * grid.tiles() * c.in, c.ragged);
  Array<T> results(slots * grid.tiles() * c.out, c.ragged);
  Array<T> pixels(threads * outputs * outputs * c.out, c.ragged);
  const Array<T> zeros = zeros_of<T>(c);
  for (int64_t a = 0; a < 2; ++a) {
    for (int64_t b = 0; b < 2; ++b) {
      grid.step = 1, grid.top = a - 1, grid.left = b - 1;
      ops.fill(grid, {x.data(), c.height, c.width, c.in}, zeros.data(), operands.data(), c.in,
               threads);
      for (int64_t row = 0; row < slots * grid.tiles(); ++row) {
        for (int64_t o = 0; o < c.out; ++o) {
          double sum = 0.0;
          for (int64_t i = 0; i < c.in; ++i) {
            sum += static_cast<double>(operands[row * c.in + i]) *
                   transformed(in, outputs, kThere, row / grid.tiles(), a, b, i, o);
          }
          results[row * c.out + o] = static_cast<T>(sum);
        }
      }
      grid.step = 2, grid.top = a, grid.left = b;
      ops.finish(grid, results.data(),
                 {c.out, bias.data(), static_cast<T>(kSlope), out.data(), nullptr}, 2 * c.height,
                 2 * c.width, pixels.data(), threads);
    }
  }
}

template <class T>
void tiles_back(const TransposedOps<T>& ops, const Inputs<T>& in, int64_t outputs, int threads,
                Array<T>& grad) {
  const Case& c = in.c;
  const Array<T> x = array_of<T>(in.x, c.ragged), dy = array_of<T>(in.dy, c.ragged);
  TileGrid grid = grid_of(c, outputs);
  const int64_t slots = (outputs + 1) * (outputs + 1), width = 4 * c.out;
  Array<T> operands(slots * grid.tiles() * width, c.ragged);
  Array<T> results(slots * grid.tiles() * c.in, c.ragged);
  Array<T> pixels(threads * outputs * outputs * c.in, c.ragged);
  const Array<T> zeros = zeros_of<T>(c);
  grid.step = 2;
  for (int64_t parity = 0; parity < 4; ++parity) {
    grid.top = -(parity / 2), grid.left = -(parity % 2);
    ops.fill(grid, {dy.data(), 2 * c.height, 2 * c.width, c.out}, zeros.data(),
             operands.data() + parity * c.out, width, threads);
  }
  for (int64_t row = 0; row < slots * grid.tiles(); ++row) {
    for (int64_t i = 0; i < c.in; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < width; ++k) {
        const int64_t parity = k / c.out;
        sum += static_cast<double>(operands[row * width + k]) *
               transformed(in, outputs, kBack, row / grid.tiles(), parity / 2, parity % 2, i,
                           k % c.out);
      }
      results[row * c.in + i] = static_cast<T>(sum);
    }
  }
  grid.step = 1, grid.top = 0, grid.left = 0;
  ops.finish_grad(grid, results.data(),
                  {c.in, static_cast<T>(kSlope), x.data(), nullptr, nullptr, grad.data()}, c.height,
                  c.width, pixels.data(), threads);
}

template <class T>
Outputs tiled(const TransposedOps<T>& ops, const Inputs<T>& in, int64_t outputs, int threads) {
  Array<T> out(in.c.after(), in.c.ragged), grad(in.c.before(), in.c.ragged);
  tiles_there(ops, in, outputs, threads, out);
  tiles_back(ops, in, outputs, threads, grad);
  const Outputs found{output("out", out), output("grad", grad)};
  expect_close(found[0], expected_out(in), bound<T>(in.c));
  expect_close(found[1], expected_grad(in), bound<T>(in.c));
  return found;
}

template <class T>
Outputs summed(const TransposedOps<T>& ops, const Inputs<T>& in, int threads) {
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

static_assert(sizeof(TransposedOps<float>) == 4 * sizeof(&check_transposed),
              "TransposedOps has changed: each op needs a check");

template <class T>
void run_case(const Case& c, const std::vector<int>& thread_counts) {
  const Inputs<T> in(c);
  static const std::vector<Isa<T>> isas = usable_isas<T>();
  for (const Isa<T>& isa : isas) {
    const TransposedOps<T>& ops = *isa.ops.transposed;
    const auto check = [&](const char* what, const std::function<Outputs(int)>& run) {
      across_threads(std::string("transposed ") + what + " " + type_name<T>() + " " + isa.name +
                         " " + describe(c),
                     thread_counts, run);
    };
    check("tiles of two", [&](int threads) { return tiled(ops, in, 2, threads); });
    check("tiles of four", [&](int threads) { return tiled(ops, in, 4, threads); });
    check("sums", [&](int threads) { return summed(ops, in, threads); });
  }
}

}  // namespace

void check_transposed() {
  for (const bool ragged : {false, true}) {
    for (const Case& c : {Case{1, 1, 1, 1, 1, ragged}, Case{2, 4, 3, 5, 3, ragged},
                          Case{1, 2, 9, 17, 8, ragged}, Case{3, 5, 5, 2, 19, ragged}}) {
      run_case<float>(c, {3});
      run_case<double>(c, {3});
    }
  }
  // Enough entries for several threads.
  run_case<float>({3, 24, 24, 16, 16, true}, {1, 3});
  run_case<double>({3, 24, 24, 16, 16, true}, {1, 3});
}

}  // namespace driver
}  // namespace cogen
