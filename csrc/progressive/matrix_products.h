// Matrix products by packed weights: they are in panels of neighbouring outputs, which have the
// weights of all inputs in order, so that the innermost loop reads memory in order.
#pragma once

#include <stdint.h>

#include "common/kernels.h"
#include "common/simd_pack.h"
#include "common/parallel.h"

namespace cogen {
namespace COGEN_ISA {

// How many outputs a panel has: two vectors, whose sums for six rows fill the registers together
// with the weights and one input.
template <class T>
constexpr int64_t kPanel = 2 * Pack<T, 1>::kCount;
static_assert(kPanel<float> * sizeof(float) == kPanelBytes);
static_assert(kPanel<double> * sizeof(double) == kPanelBytes);

// The number of outputs rounded up to whole panels.
template <class T>
inline int64_t padded(int64_t outputs) {
  return (outputs + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// Multiplies kRows rows of `x`, (rows, inputs), by one panel, into rows of `y` that are `stride`
// apart.
template <class T, int kRows>
inline void multiply_rows(const T* x, int64_t inputs, const T* panel, T* y, int64_t stride) {
  typedef Pack<T, 1> Vector;
  Vector low[kRows], high[kRows];
  COGEN_UNROLL
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = Vector::of(T(0));
  for (int64_t i = 0; i < inputs; ++i) {
    const Vector a = Vector::load(panel), b = Vector::load(panel + Vector::kCount);
    panel += kPanel<T>;
    COGEN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const T factor = x[r * inputs + i];
      low[r] = low[r] + a * factor;
      high[r] = high[r] + b * factor;
    }
  }
  COGEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    low[r].store(y + r * stride);
    high[r].store(y + r * stride + Vector::kCount);
  }
}

// Multiplies all rows by one panel.
template <class T>
inline void multiply_panel(const T* x, int64_t rows, int64_t inputs, const T* panel, T* y,
                           int64_t stride) {
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6) {
    multiply_rows<T, 6>(x + row * inputs, inputs, panel, y + row * stride, stride);
  }
  if (row + 4 <= rows) {
    multiply_rows<T, 4>(x + row * inputs, inputs, panel, y + row * stride, stride);
    row += 4;
  }
  for (; row < rows; ++row) {
    multiply_rows<T, 1>(x + row * inputs, inputs, panel, y + row * stride, stride);
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
    first[k + 1] = first[k] + list.outputs[k] / kPanel<T>;
    multiplications += list.rows[k] * list.inputs[k] * list.outputs[k];
  }
  const int64_t units = first[kCount];
  // threads_for counts entries; here sixteen multiplications take about as long as one of these.
  for_each_unit(units, threads_for(multiplications / 16, units, threads), [&](int64_t unit) {
    int k = 0;
    while (first[k + 1] <= unit) ++k;
    const int64_t panel = unit - first[k];
    multiply_panel(list.x[k], list.rows[k], list.inputs[k],
                   list.weight[k] + panel * kPanel<T> * list.inputs[k],
                   list.y[k] + panel * kPanel<T>, list.outputs[k]);
  });
}

}  // namespace COGEN_ISA
}  // namespace cogen
