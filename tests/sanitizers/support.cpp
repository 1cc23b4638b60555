#include "support.h"

#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace cogen {
namespace driver {

// Test values.

uint64_t Random::word() {
  state_ += 0x9E3779B97F4A7C15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

double Random::uniform(double low, double high) {
  return low + (high - low) * (static_cast<double>(word() >> 11) * 0x1p-53);
}

double Random::value(bool extreme) {
  static const double kExtremes[] = {kNan, kInfinity, -kInfinity, 1e30, -1e30, 0.0};
  if (extreme && below(4) == 0) return kExtremes[below(std::size(kExtremes))];
  return uniform(-2.0, 2.0);
}

// Failures.

namespace {

constexpr int kMostPrinted = 20;

std::string current_case;
int failure_count = 0;
int64_t case_count = 0;

bool is_close(double got, double expected, double allowed) {
  if (std::isnan(got) || std::isnan(expected)) return std::isnan(got) && std::isnan(expected);
  return got == expected || std::fabs(got - expected) <= allowed;
}

}  // namespace

void print_current_case() { fprintf(stderr, "aborted in: %s\n", current_case.c_str()); }

void begin_case(std::string name) {
  if (case_count++ == 0) __sanitizer_set_death_callback(print_current_case);
  current_case = std::move(name);
}

int failures() { return failure_count; }
int64_t cases_begun() { return case_count; }

void fail(const std::string& what) {
  if (failure_count++ < kMostPrinted) {
    fprintf(stderr, "FAILED: %s: %s\n", current_case.c_str(), what.c_str());
  }
}

void expect(bool fine, const char* what) {
  if (!fine) fail(what);
}

double largest_finite(const std::vector<double>& values) {
  double largest = 0.0;
  for (const double value : values) {
    if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
  }
  return largest;
}

void expect_close(const Output& got, const std::vector<double>& expected, double bound) {
  if (got.values.size() != expected.size()) return fail(std::string(got.name) + ": wrong size");
  const double allowed = bound * (1.0 + std::max(got.scale, largest_finite(expected)));
  for (size_t i = 0; i < expected.size(); ++i) {
    if (is_close(got.values[i], expected[i], allowed)) continue;
    char text[160];
    snprintf(text, sizeof text, "%s[%zu] is %.17g, expected %.17g within %.2g", got.name, i,
             got.values[i], expected[i], allowed);
    return fail(text);
  }
}

void expect_close(const Outputs& got, const Outputs& expected, double bound) {
  if (got.size() != expected.size()) return fail("wrong number of outputs");
  for (size_t i = 0; i < got.size(); ++i) expect_close(got[i], expected[i].values, bound);
}

Outputs across_threads(const std::string& name, const std::vector<int>& thread_counts,
                       const std::function<Outputs(int threads)>& run) {
  Outputs first;
  for (const int threads : thread_counts) {
    begin_case(name + " threads=" + std::to_string(threads));
    Outputs outputs = run(threads);
    if (threads == thread_counts.front()) {
      first = std::move(outputs);
    } else {
      expect_close(outputs, first, 0.0);
    }
  }
  return first;
}

}  // namespace driver
}  // namespace cogen

// UndefinedBehaviorSanitizer calls this for each report; its runtime may be another library than
// AddressSanitizer's, which the callback above does not reach.
extern "C" void __ubsan_on_report() { cogen::driver::print_current_case(); }
