// A team of threads that run the same function and wait for one another.
#pragma once

#include <stdint.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace cogen {
namespace COGEN_ISA {

// One thread of a team.
struct TeamThread {
  int id, threads;

  // Waits until all threads of the team have called this.
  void wait() const {
    if (threads > 1) {
#if defined(_OPENMP)
#pragma omp barrier
#endif
    }
  }
  // This thread has the units from first(count) to last(count) - 1 of `count`.
  int64_t first(int64_t count) const { return count * id / threads; }
  int64_t last(int64_t count) const { return count * (id + 1) / threads; }
};

// Calls body(thread) in each of `threads` threads; the body must not throw.
template <class Body>
inline void run_team(int threads, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    body(TeamThread{omp_get_thread_num(), omp_get_num_threads()});
    return;
  }
#endif
  (void)threads;
  body(TeamThread{0, 1});
}

}  // namespace COGEN_ISA
}  // namespace cogen
