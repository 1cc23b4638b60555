// What every check needs: heap arrays of exactly their size, the instruction sets, test values, and
// failures that name their case.
#pragma once

#include <stdint.h>
#include <string.h>

#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/kernels.h"

namespace cogen {
namespace driver {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Memory whose end is guarded; each program has its own kind (memory_*.cpp). Release takes null.
void* allocate(size_t bytes);
void release(void* block, size_t bytes);

// An array that ends at the end of its allocation, so that an access to one entry too many is
// found. On the heap it begins at a multiple of 64 bytes or, if `ragged`, one entry later.
template <class T>
class Array {
 public:
  Array(int64_t size, bool ragged)
      : size_(size),
        allocated_(static_cast<size_t>(size + ragged) * sizeof(T)),
        block_(allocate(allocated_)),
        data_(static_cast<T*>(block_) + ragged) {
    fill_unwritten();
  }
  Array(Array&& other) noexcept
      : size_(other.size_),
        allocated_(other.allocated_),
        block_(std::exchange(other.block_, nullptr)),
        data_(other.data_) {}
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Array& operator=(Array&&) = delete;
  ~Array() { release(block_, allocated_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t index) { return data_[index]; }
  const T& operator[](int64_t index) const { return data_[index]; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

  void copy_from(const Array& other) { memcpy(data_, other.data_, bytes()); }

 private:
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }

  // NaN, or bytes that no op writes; a bool of such bytes is undefined to read, which is reported.
  void fill_unwritten() {
    memset(data_, 0x5a, bytes());
    if constexpr (std::is_floating_point_v<T>) {
      for (int64_t i = 0; i < size_; ++i) data_[i] = static_cast<T>(kNan);
    }
  }

  int64_t size_;
  size_t allocated_;
  void* block_;
  T* data_;
};

// Deterministic values, the same on every platform (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t word();
  double uniform(double low, double high);
  uint64_t below(uint64_t limit) { return word() % limit; }
  // A value in [-2, 2). If `extreme`, one in four is NaN, infinite or of the order of 1e30.
  double value(bool extreme);

 private:
  uint64_t state_;
};

// Values in [low, high).
template <class T>
void fill_uniform(Array<T>& out, Random& random, double low, double high) {
  for (int64_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(random.uniform(low, high));
}

template <class T>
void fill_values(Array<T>& out, Random& random, bool extreme) {
  for (int64_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(random.value(extreme));
}

// What one op wrote, by name, to compare instruction sets and thread counts. Where values are
// differences of larger numbers, `scale` is the size of the latter.
struct Output {
  const char* name;
  std::vector<double> values;
  double scale = 0.0;
};
using Outputs = std::vector<Output>;

template <class T>
Output output(const char* name, const Array<T>& array) {
  return {name, {array.begin(), array.end()}, 0.0};
}

template <class T>
struct Isa {
  const char* name;
  CpuOps<T> ops;
};

// The instruction sets that were built and that this CPU has, `plain` first.
template <class T>
std::vector<Isa<T>> usable_isas();

template <class T>
constexpr const char* type_name() {
  return sizeof(T) == sizeof(float) ? "float" : "double";
}

// The number of roundings by which two computations of the same finite value may differ. It covers
// the polynomials of the float normals, other orders of summation, and fused multiplications.
constexpr double kRoundings = 32;

template <class T>
constexpr double rounding_bound() {
  return kRoundings * static_cast<double>(std::numeric_limits<T>::epsilon());
}

// A sum in two levels, because a plain sum of many thousand values would round more than the ops
// do.
class Sum {
 public:
  void add(double value) {
    part_ += value;
    if (++count_ % 256 != 0) return;
    whole_ += part_;
    part_ = 0.0;
  }
  double total() const { return whole_ + part_; }

 private:
  double whole_ = 0.0, part_ = 0.0;
  int64_t count_ = 0;
};

// Failures.

// Sets the name of the case to which later failures, and an abort by a sanitizer, belong.
void begin_case(std::string name);
void print_current_case();
void fail(const std::string& what);
void expect(bool fine, const char* what);
int failures();
int64_t cases_begun();

double largest_finite(const std::vector<double>& values);

// Asserts |got - expected| <= bound (1 + scale) for every entry, where scale is at least the
// largest finite |expected|. NaN and infinities must be equal.
void expect_close(const Output& got, const std::vector<double>& expected, double bound);
// The same for all outputs of an op; with bound 0 they must be equal.
void expect_close(const Outputs& got, const Outputs& expected, double bound);

// Returns the outputs of `run` for the first number of threads; the others must give the same bits.
Outputs across_threads(const std::string& name, const std::vector<int>& thread_counts,
                       const std::function<Outputs(int threads)>& run);

// The checks, one file for each file of kernels.

void check_hmc();
void check_misfit();
void check_anneal();
void check_dense();
void check_progressive();
void check_convolution();

// Planted faults.

constexpr int kUsageStatus = 2, kUnusableStatus = 77;

// Checks one small case of every op of a table that is not one of the package's.
void check_hmc_table(const HmcOps<float>& ops);
// Returns the exit status, where the fault has not ended the process.
int run_planted(const std::string& fault, const std::string& isa);

}  // namespace driver
}  // namespace cogen
