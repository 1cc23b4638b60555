// How the chains of a run are cut into tiles, and how its threads meet.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "common/kernels.h"
#include "common/lanes.h"

namespace cogen {
namespace COGEN_ISA {

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Fewer chains than these go one at a time: a tile takes as long for one chain as for all its lanes.
template <class T>
constexpr int64_t kFewChains = Lanes<T>::kCount / 3;

// How chains are cut into tiles of a layout, and where what belongs to a tile lies in the arena.
template <class T, class Layout>
struct Tiling {
  static constexpr int kLanes = Layout::kLanes;
  int64_t observations, chains, size, per_observation, tiles;

  explicit Tiling(const Shape& shape)
      : observations(shape.observations),
        chains(shape.chains),
        size(shape.size),
        per_observation((chains + kLanes - 1) / kLanes),
        tiles(observations * per_observation) {}

  int64_t observation(int64_t tile) const { return tile / per_observation; }
  int64_t first_chain(int64_t tile) const { return tile % per_observation * kLanes; }
  int lanes(int64_t tile) const {
    return static_cast<int>(at_most(kLanes, chains - first_chain(tile)));
  }
  // Threads beyond one per tile would only wait for the others.
  int team(int threads) const { return static_cast<int>(at_most(threads, tiles)); }
  // In the (B, N) arrays.
  int64_t row(int64_t tile) const { return observation(tile) * chains + first_chain(tile); }
};

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// One of several threads that run the same function.
struct Member {
  int id, threads;

  void wait() const {
    if (threads > 1) {
#if defined(_OPENMP)
#pragma omp barrier
#endif
    }
  }
  // This thread's part of `count` units, whole and in order.
  int64_t first(int64_t count) const { return count * id / threads; }
  int64_t last(int64_t count) const { return count * (id + 1) / threads; }
};

// body(member) in each of `threads` threads; bodies must not throw.
template <class Body>
inline void together(int threads, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    body(Member{omp_get_thread_num(), omp_get_num_threads()});
    return;
  }
#endif
  (void)threads;
  body(Member{0, 1});
}

}  // namespace COGEN_ISA
}  // namespace cogen
