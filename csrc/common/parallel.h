// Loops over independent units of work. How work is cut into units depends on shapes alone, so that
// results do not depend on the number of threads.
#pragma once

#include <stdint.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace cogen {
namespace COGEN_ISA {

// Below this many entries one thread is used. Measured on 2 cores between two torch convolutions:
// if the process has one OpenMP runtime (torch's own serves this module too if it is named
// libgomp.so.1 and was loaded first), 2 threads pay from about 1.3e5 entries; if torch brings
// another runtime, whose idle threads still spin after its last region, they pay from 2e5 to 5e5.
// If other programs use the cores, a second thread costs milliseconds, so the threshold is on the
// high side.
constexpr int64_t kEntriesWorthThreads = 1 << 18;

inline int threads_for(int64_t entries, int64_t units, int threads) {
#if defined(_OPENMP)
  if (entries < kEntriesWorthThreads || units < 2) return 1;
  return units < threads ? static_cast<int>(units) : threads;
#else
  (void)entries, (void)units, (void)threads;
  return 1;
#endif
}

// Calls body(unit) for unit = 0 .. units - 1; the body must not throw.
template <class Body>
inline void for_each_unit(int64_t units, int threads, const Body& body) {
  if (threads <= 1) {
    for (int64_t unit = 0; unit < units; ++unit) body(unit);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t unit = 0; unit < units; ++unit) body(unit);
#endif
}

// The number of the thread of `for_each_unit` that runs the body.
inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace COGEN_ISA
}  // namespace cogen
