// Matrix products by packed weights: they are in panels of neighbouring outputs, which have the
// weights of all inputs in order, so that the innermost loop reads memory in order.
#pragma once

#include <stdint.h>

#include "common/kernels.h"
#include "common/simd_pack.h"
#include "common/parallel.h"

namespace cogen {
namespace COGEN_ISA {

// How many outputs a panel has.
template <class T>
constexpr int64_t kPanel = kPanelBytes / sizeof(T);
// The vectors of a panel, and how many panels are multiplied at once.
constexpr int kVectors = kPanelBytes / kVectorBytes, kMostPanels = 2 / kVectors;
static_assert(kVectors == 1 || kVectors == 2);

// How many rows are multiplied at once: their sums fill the registers together with the weights and
// one input.
constexpr int rows_at_once(int panels) {
  const int registers = kVectorBytes == 64 ? 32 : 16;
  return registers / (panels * kVectors) - 2;
}

// The number of outputs rounded up to whole panels.
template <class T>
inline int64_t padded(int64_t outputs) {
  return (outputs + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// Multiplies kRows rows of `x`, (rows, inputs), by kPanels panels, into rows of `y` that are
// `stride` apart.
template <class T, int kRows, int kPanels>
inline void multiply_rows(const T* x, int64_t inputs, const T* panels, T* y, int64_t stride) {
  typedef Pack<T, 1> Vector;
  constexpr int kEach = kPanels * kVectors;
  const T* weights[kEach];
  Vector sums[kEach][kRows];
  COGEN_UNROLL
  for (int v = 0; v < kEach; ++v) {
    weights[v] = panels + v / kVectors * kPanel<T> * inputs + v % kVectors * Vector::kCount;
    COGEN_UNROLL
    for (int r = 0; r < kRows; ++r) sums[v][r] = Vector::of(T(0));
  }
  for (int64_t i = 0; i < inputs; ++i) {
    Vector weight[kEach];
    COGEN_UNROLL
    for (int v = 0; v < kEach; ++v) weight[v] = Vector::load(weights[v] + i * kPanel<T>);
    COGEN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const T factor = x[r * inputs + i];
      COGEN_UNROLL
      for (int v = 0; v < kEach; ++v) sums[v][r] = sums[v][r] + weight[v] * factor;
    }
  }
  COGEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    COGEN_UNROLL
    for (int v = 0; v < kEach; ++v) sums[v][r].store(y + r * stride + v * Vector::kCount);
  }
}

// Multiplies all rows by kPanels panels.
template <class T, int kPanels>
inline void multiply_panels(const T* x, int64_t rows, int64_t inputs, const T* panels, T* y,
                            int64_t stride) {
  constexpr int kRows = rows_at_once(kPanels);
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    multiply_rows<T, kRows, kPanels>(x + row * inputs, inputs, panels, y + row * stride, stride);
  }
  for (; row + 4 <= rows; row += 4) {
    multiply_rows<T, 4, kPanels>(x + row * inputs, inputs, panels, y + row * stride, stride);
  }
  for (; row < rows; ++row) {
    multiply_rows<T, 1, kPanels>(x + row * inputs, inputs, panels, y + row * stride, stride);
  }
}

// Several products: x[k], (rows[k], inputs[k]), by packed weights into y[k], (rows[k], outputs[k]),
// whose outputs fill whole panels.
template <class T, int kCount>
struct ProductList {
  const T* x[kCount];
  const T* weight[kCount];
  T* y[kCount];
  int64_t rows[kCount], inputs[kCount], outputs[kCount];
};

template <class T, int kCount>
void multiply(const ProductList<T, kCount>& list, int threads) {
  int64_t first[kCount + 1] = {0}, multiplications = 0;
  for (int k = 0; k < kCount; ++k) {
    first[k + 1] = first[k] + (list.outputs[k] / kPanel<T> + kMostPanels - 1) / kMostPanels;
    multiplications += list.rows[k] * list.inputs[k] * list.outputs[k];
  }
  const int64_t units = first[kCount];
  // threads_for counts entries; here sixteen multiplications take about as long as one of these.
  for_each_unit(units, threads_for(multiplications / 16, units, threads), [&](int64_t unit) {
    int k = 0;
    while (first[k + 1] <= unit) ++k;
    const int64_t from = (unit - first[k]) * kMostPanels * kPanel<T>;
    const T *x = list.x[k], *weight = list.weight[k] + from * list.inputs[k];
    T* const y = list.y[k] + from;
    if (list.outputs[k] - from >= kMostPanels * kPanel<T>) {
      multiply_panels<T, kMostPanels>(x, list.rows[k], list.inputs[k], weight, y, list.outputs[k]);
    } else {
      multiply_panels<T, 1>(x, list.rows[k], list.inputs[k], weight, y, list.outputs[k]);
    }
  });
}

}  // namespace COGEN_ISA
}  // namespace cogen
