// Bindings of the convolutions of users' generators. Images are channels last.
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/instruction_sets.h"
#include "common/python_methods.h"
#include "progressive/pixel_norm_arguments.h"

namespace cogen {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

// Takes how tiles lie in `count` images; they may reach beyond the images.
TileGrid grid_of(Arguments& given, std::int64_t count) {
  TileGrid grid{};
  grid.count = count;
  grid.high = given.integer("high", 1, kMost);
  grid.wide = given.integer("wide", 1, kMost);
  grid.taps = given.integer("taps", 2, 3);
  grid.outputs = given.integer("outputs", 2, 4);
  if (grid.outputs == 3) throw pybind11::value_error("outputs: expected 2 or 4, got 3");
  grid.step = given.integer("step", 1, 2);
  grid.top = given.integer("top", -2, 2);
  grid.left = given.integer("left", -2, 2);
  return grid;
}

// Whether `tiles` is the number of all tiles, by divisions: a product of any sizes may overflow.
bool has_tiles(std::int64_t tiles, const TileGrid& grid) {
  const std::int64_t lines = tiles / grid.wide;
  return tiles % grid.wide == 0 && lines % grid.high == 0 && lines / grid.high == grid.count;
}

// Raises ValueError unless `array` is (slots, tiles, C) for that grid.
void require_slots(const Array& array, const TileGrid& grid) {
  const std::int64_t side = grid.outputs + grid.taps - 1, slots = side * side;
  array.require_rank(3, "(slots, tiles, C)");
  if (array.size(0) != slots || !has_tiles(array.size(1), grid) || array.size(2) < 1) {
    array.refuse("shape (" + std::to_string(slots) + ", " + std::to_string(grid.count) + " * " +
                 std::to_string(grid.high) + " * " + std::to_string(grid.wide) + ", C)");
  }
}

void fill_operands(Arguments& given) {
  const Array x = given.array("x");
  by_float_type(x, [&](auto zero) {
    using T = decltype(zero);
    x.require_rank(4, "(n, H, W, C)");
    const TileImages<T> images{x.at_all<const T>(given.device()), x.size(1), x.size(2),
                               channels_of(x)};
    const TileGrid grid = grid_of(given, x.size(0));
    const Array operands = given.array("operands");
    require_slots(operands, grid);
    const std::int64_t stride = operands.size(2);
    T* const to = operands.at_all<T>(given.device());
    const std::int64_t first = given.integer("first", 0, kMost);
    if (first + images.channels > stride) {
      operands.refuse("room for " + std::to_string(images.channels) + " channels from " +
                      std::to_string(first) + " on");
    }
    const int threads = given.threads();
    given.finish();
    const pybind11::gil_scoped_release released;
    const std::vector<T> zeros(static_cast<std::size_t>(images.channels));
    ops<T>().convolution->fill(grid, images, zeros.data(), to + first, stride, threads);
  });
}

// Takes how the tiles of `results` lie in `out`, (n, H, W, C).
TileGrid results_grid(Arguments& given, const Array& out, const Array& results) {
  out.require_rank(4, "(n, H, W, C)");
  const TileGrid grid = grid_of(given, out.size(0));
  if (grid.top < 0 || grid.left < 0) {
    throw pybind11::value_error("top, left: expected at least 0, got " + std::to_string(grid.top) +
                                " and " + std::to_string(grid.left));
  }
  require_slots(results, grid);
  if (results.size(2) != channels_of(out)) {
    results.refuse(std::to_string(channels_of(out)) + " channels");
  }
  return grid;
}

// An activation is written, or its gradient: `take` and `op` say which.
template <class Take, class Op>
void finish_tiles(Arguments& given, const Take& take, const Op& op) {
  const Array results = given.array("results");
  by_float_type(results, [&](auto zero) {
    using T = decltype(zero);
    const auto* read = results.at_all<const T>(given.device());
    const Array out = given.array("out");
    const auto to = take(zero, given, out);
    const TileGrid grid = results_grid(given, out, results);
    const int threads = given.threads();
    given.finish();
    const pybind11::gil_scoped_release released;
    const std::int64_t tile = grid.outputs * grid.outputs * to.channels;
    std::vector<T> tiles(static_cast<std::size_t>(threads * tile));
    op(*ops<T>().convolution)(grid, read, to, out.size(1), out.size(2), tiles.data(), threads);
  });
}

void finish_activation(Arguments& given) {
  finish_tiles(
      given, [](auto zero, Arguments& each, const Array& out) {
        return pixel_norm_of<decltype(zero)>(each, out);
      },
      [](const auto& each) { return each.finish; });
}

void finish_gradient(Arguments& given) {
  finish_tiles(
      given, [](auto zero, Arguments& each, const Array& out) {
        return pixel_norm_grad_of<decltype(zero)>(each, out);
      },
      [](const auto& each) { return each.finish_grad; });
}

void sum_products(Arguments& given) {
  const Array products = given.array("products");
  by_float_type(products, [&](auto zero) {
    using T = decltype(zero);
    products.require_rank(5, "(n, H, W, 16, C)");
    const Extent size{products.size(0), products.size(1), products.size(2)};
    const Array out = given.array("out");
    const std::int64_t channels = channels_of(out);
    const auto* read =
        products.at<const T>({size.count, size.height, size.width, 16, channels}, given.device());
    T* const written =
        out.at<T>({size.count, 2 * size.height, 2 * size.width, channels}, given.device());
    const auto* bias = given.read<const T>("bias", {channels});
    const PixelNorm<T> to{channels, bias, static_cast<T>(given.number("slope")), written, nullptr};
    const int threads = given.threads();
    given.finish();
    const pybind11::gil_scoped_release released;
    ops<T>().convolution->sum_taps(size, read, to, threads);
  });
}

}  // namespace

PyMethodDef* convolution_methods() {
  static PyMethodDef methods[] = {
      method<fill_operands>("fill_tiles", "The operands of the products of all tiles."),
      method<finish_activation>("finish_tiles", "The activation that the results of all tiles give."),
      method<finish_gradient>("finish_tiles_grad", "Their gradient, likewise."),
      method<sum_products>("sum_taps", "The activation that products with all weights give."),
      {}};
  return methods;
}

}  // namespace cogen
