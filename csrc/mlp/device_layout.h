// How the chains of a run are laid out over a CUDA device: by threads or by warps, and how many in
// a block.
#pragma once

#include "mlp/device_run.h"
#include "mlp/mlp_in_warp.h"

namespace cogen {
namespace COGEN_ISA {

enum class ChainBy { thread, warp };

// How many chains a warp has.
COGEN_HD int64_t group_size(ChainBy by) { return by == ChainBy::thread ? kWarp : 1; }

struct Layout {
  ChainBy by;
  int64_t tile_chains;
};

// A thread needs more time for a gradient than a warp does. But if a multiprocessor has more warps
// than this, they wait for its shared memory, and a thread for each chain is faster. The number is
// estimated from instruction counts, not measured.
constexpr int64_t kWarpsWorthwhile = 8;
constexpr int64_t kMostThreadsInBlock = 128, kMostWarpsInBlock = 16, kFewWarps = 4;

// The smallest power of two from `low` on that is at least `least`, but at most `high`.
COGEN_HD int64_t power_of_two_from(int64_t least, int64_t low, int64_t high) {
  int64_t power = low;
  while (power < least && power < high) power *= 2;
  return power;
}

// Chains are spread over all multiprocessors: blocks are as small as that allows, and no larger
// than an observation.
inline Layout choose_layout(const Shape& shape, int64_t multiprocessors, bool fits_a_thread) {
  const int64_t all = shape.observations * shape.chains;
  const int64_t each = (all + multiprocessors - 1) / multiprocessors;
  const int64_t least = lesser_of(each, shape.chains);
  if (fits_a_thread && each > kWarpsWorthwhile) {
    return {ChainBy::thread, power_of_two_from(least, kWarp, kMostThreadsInBlock)};
  }
  // A few warps do not slow one another down, and an observation in one block waits for no other.
  if (shape.chains <= kFewWarps) return {ChainBy::warp, shape.chains};
  return {ChainBy::warp, lesser_of(power_of_two_from(least, 1, kMostWarpsInBlock), shape.chains)};
}

}  // namespace COGEN_ISA
}  // namespace cogen
