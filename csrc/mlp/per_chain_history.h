// The history of chains that adapt by themselves: they wait for nobody, so it is told when all of
// them are done, from what groups of neighbouring chains left of each temperature.
#pragma once

#include "mlp/mlp.h"

namespace cogen {
namespace COGEN_ISA {

// Sums over a group's chains: acceptance probabilities of all its moves at a temperature, the step
// sizes of the last one, energies after it. `spread` is the sum of squared differences from the
// group's mean energy.
struct GroupSums {
  double probability, step_size, energy, spread;
};

// An observation's chains in groups of `size`; the last one has what is left.
struct Groups {
  int64_t chains, size;

  COGEN_HD int64_t each() const { return (chains + size - 1) / size; }
  COGEN_HD double chains_in(int64_t group) const {
    const int64_t left = chains - group * size;
    return static_cast<double>(left < size ? left : size);
  }
};

// Place t B + b of the histories; `sums` are (steps, B, groups).
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
