// The history of chains that have step sizes of their own. They wait for no other, so the history
// is computed when all of them are done, from sums that groups of neighbouring chains have left at
// each temperature.
#pragma once

#include "mlp/mlp.h"

namespace cogen {
namespace COGEN_ISA {

// Sums over the chains of a group at a temperature: the acceptance probabilities of all moves, the
// step sizes of the last one, and the energies after it. `spread` is the sum of squared differences
// from the group's mean energy.
struct GroupSums {
  double probability, step_size, energy, spread;
};

// The chains of an observation in groups of `size`; the last group may have fewer.
struct Groups {
  int64_t chains, size;

  COGEN_HD int64_t each() const { return (chains + size - 1) / size; }
  COGEN_HD double chains_in(int64_t group) const {
    const int64_t left = chains - group * size;
    return static_cast<double>(left < size ? left : size);
  }
};

// Writes the history of temperature t and observation b, for place = t B + b. `sums` are (steps, B,
// groups).
template <class T>
COGEN_HD_LARGE void describe_groups(const MlpRun<T>& run, const Groups& groups,
                                    const GroupSums* sums, int64_t place) {
  const double chains = static_cast<double>(groups.chains);
  sums += place * groups.each();
  GroupSums all{};
  for (int64_t i = 0; i < groups.each(); ++i) {
    all.probability += sums[i].probability;
    all.step_size += sums[i].step_size;
    all.energy += sums[i].energy;
  }
  const double mean = all.energy / chains;
  for (int64_t i = 0; i < groups.each(); ++i) {
    const double count = groups.chains_in(i), shift = sums[i].energy / count - mean;
    all.spread += sums[i].spread + count * shift * shift;
  }
  run.acceptance[place] = all.probability / (chains * static_cast<double>(run.hmc_steps));
  run.step_used[place] = all.step_size / chains;
  run.energy_mean[place] = mean;
  run.energy_std[place] = square_root(all.spread / chains);
}

}  // namespace COGEN_ISA
}  // namespace cogen
