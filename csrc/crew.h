// Threads that decide something together: all of a crew call the same functions with the same
// arguments, each does its part of a loop over many, and all go on with the same numbers. What is
// small every one computes for itself, and one writes it.
//
// A Crew says where a thread is (`thread` of `threads`); `sum` and `greatest` give all of them that
// of their values, always in the same order; `meets` waits for the others and lets their writes be
// seen.
#pragma once

#include <float.h>

#include "philox.h"

namespace cogen {
namespace COGEN_ISA {

// A crew of one.
struct Alone {
  static constexpr int64_t thread = 0, threads = 1;

  COGEN_HD double sum(double value) const { return value; }
  COGEN_HD double greatest(double value) const { return value; }
  COGEN_HD void meets() const {}
};

COGEN_HD double lesser(double a, double b) { return a < b ? a : b; }
COGEN_HD double greater(double a, double b) { return a > b ? a : b; }
COGEN_HD int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Crew>
COGEN_HD bool leads(const Crew& crew) {
  return crew.thread == 0;
}

// Whether it is so for one of them.
template <class Crew>
COGEN_HD bool any(const Crew& crew, bool is) {
  return crew.greatest(is ? 1.0 : 0.0) > 0.0;
}

template <class Crew, class Value>
COGEN_HD double sum_over(const Crew& crew, int64_t count, const Value& value) {
  double sum = 0.0;
  for (int64_t n = crew.thread; n < count; n += crew.threads) sum += value(n);
  return crew.sum(sum);
}

// The greatest of `start` and all values.
template <class Crew, class Value>
COGEN_HD double greatest_over(const Crew& crew, int64_t count, double start, const Value& value) {
  double top = start;
  for (int64_t n = crew.thread; n < count; n += crew.threads) {
    const double here = value(n);
    top = here > top ? here : top;
  }
  return crew.greatest(top);
}

template <class Crew>
COGEN_HD_CALLED double mean_of(const Crew crew, const double* values, int64_t count) {
  const double sum = sum_over(crew, count, [&](int64_t n) { return values[n]; });
  return sum / static_cast<double>(count);
}

template <class Crew>
COGEN_HD_CALLED double deviation_of(const Crew crew, const double* values, int64_t count,
                                    double mean) {
  const double sum = sum_over(
      crew, count, [&](int64_t n) { return (values[n] - mean) * (values[n] - mean); });
  return square_root(sum / static_cast<double>(count));
}

}  // namespace COGEN_ISA
}  // namespace cogen
