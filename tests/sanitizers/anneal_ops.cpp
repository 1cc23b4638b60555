// The ops between moves, in double only and compiled once: one function each.
#include <algorithm>
#include <cmath>

#include "support.h"

namespace cogen {
namespace driver {
namespace {

struct AnnealCase {
  int64_t observations, chains;
  double spread;  // of energies
  bool ragged, active, extreme;
};

std::string describe(const AnnealCase& c) {
  std::string text = "B=" + std::to_string(c.observations) + " N=" + std::to_string(c.chains) +
                     " spread=" + std::to_string(c.spread);
  if (c.ragged) text += " ragged";
  if (c.active) text += " active";
  if (c.extreme) text += " extreme";
  return text;
}

struct Inputs {
  AnnealCase c;
  Array<double> energy, log_weights, beta, kept, uniform;
  Array<bool> active;

  explicit Inputs(const AnnealCase& anneal_case)
      : c(anneal_case),
        energy(c.observations * c.chains, c.ragged),
        log_weights(c.observations * c.chains, c.ragged),
        beta(c.observations, c.ragged),
        kept(c.observations, c.ragged),
        uniform(c.observations, c.ragged),
        active(c.observations, c.ragged) {
    Random random(static_cast<uint64_t>(energy.size()));
    fill_values(energy, random, c.extreme);
    fill_values(log_weights, random, c.extreme);
    for (int64_t i = 0; i < energy.size(); ++i) {
      energy[i] *= c.spread;
      // Not so far apart that the share of particles that a step keeps becomes 0 / 0.
      log_weights[i] *= std::min(c.spread, 30.0);
    }
    fill_uniform(beta, random, 0.0, 1.0);
    fill_uniform(kept, random, 0.3, 0.99);
    fill_uniform(uniform, random, 0.0, 1.0);
    if (c.extreme) fill_values(uniform, random, true);
    for (int64_t b = 0; b < c.observations; ++b) active[b] = (b + c.observations) % 2 == 0;
  }

  bool moves(int64_t b) const { return !c.active || active[b]; }
  const bool* active_or_null() const { return c.active ? active.data() : nullptr; }
  // Normalised weights of the particles of one observation.
  std::vector<double> weights(int64_t b) const;
};

std::vector<double> Inputs::weights(int64_t b) const {
  const double* logs = &log_weights[b * c.chains];
  double top = -kInfinity, sum = 0.0;
  for (int64_t n = 0; n < c.chains; ++n) top = std::fmax(top, logs[n]);
  std::vector<double> weights;
  for (int64_t n = 0; n < c.chains; ++n) weights.push_back(std::exp(logs[n] - top));
  for (const double weight : weights) sum += weight;
  for (double& weight : weights) weight /= sum;
  return weights;
}

// Conditional effective sample size, as a share, of a step by `increment`.
double kept_share(const Inputs& in, int64_t b, double increment) {
  const std::vector<double> weights = in.weights(b);
  const double* energy = &in.energy[b * in.c.chains];
  const double low = *std::min_element(energy, energy + in.c.chains);
  double first = 0.0, second = 0.0;
  for (size_t n = 0; n < weights.size(); ++n) {
    const double w = std::exp(-increment * (energy[n] - low));
    first += weights[n] * w;
    second += weights[n] * w * w;
  }
  return first * first / second;
}

void check_next_beta(const Inputs& in) {
  const AnnealCase& c = in.c;
  Array<double> out(c.observations, c.ragged);
  next_beta(c.observations, c.chains, in.energy.data(), in.log_weights.data(), in.beta.data(),
            in.kept.data(), in.active_or_null(), out.data());
  constexpr double kSlack = 1e-8;  // of a share, for the rounding of the inverse temperature
  for (int64_t b = 0; b < c.observations; ++b) {
    expect(in.moves(b) || out[b] == in.beta[b], "beta of an inactive observation");
    expect(out[b] >= in.beta[b] && out[b] <= 1.0, "not between beta and 1");
    if (!in.moves(b) || c.extreme) continue;
    const double share = kept_share(in, b, out[b] - in.beta[b]);
    expect(share >= in.kept[b] - kSlack, "the step is too large");
    expect(out[b] == 1.0 || share <= in.kept[b] + kSlack, "the step is too small");
  }
}

void check_systematic(const Inputs& in) {
  const AnnealCase& c = in.c;
  Array<int64_t> out(c.observations * c.chains, c.ragged);
  systematic(c.observations, c.chains, in.log_weights.data(), in.uniform.data(),
             in.active_or_null(), out.data());
  for (int64_t b = 0; b < c.observations; ++b) {
    const std::vector<double> weights = in.weights(b);
    std::vector<double> counts(weights.size(), 0.0);
    for (int64_t n = 0; n < c.chains; ++n) {
      const int64_t ancestor = out[b * c.chains + n];
      if (ancestor < 0 || ancestor >= c.chains) return fail("ancestor out of range");
      expect(in.moves(b) || ancestor == n, "ancestor of an observation that keeps its particles");
      counts[static_cast<size_t>(ancestor)] += 1.0;
    }
    if (!in.moves(b) || c.extreme) continue;
    // Each particle as often as its share of N, rounded up or down.
    for (size_t n = 0; n < weights.size(); ++n) {
      const double share = weights[n] * static_cast<double>(c.chains);
      expect(std::fabs(counts[n] - share) < 1.0 + 1e-9, "number of descendants");
    }
  }
}

struct Check {
  const char* name;
  void (*run)(const Inputs&);
};

constexpr Check kChecks[] = {{"next_beta", check_next_beta}, {"systematic", check_systematic}};

}  // namespace

void check_anneal() {
  for (const int64_t observations : {1, 2, 3}) {
    for (const int64_t chains : {1, 2, 5, 17, 64, 333}) {
      for (const double spread : {0.0, 1.0, 30.0, 1e6}) {
        for (int flags = 0; flags < 8; ++flags) {
          const bool ragged = flags & 1, active = flags & 2, extreme = flags & 4;
          const Inputs in({observations, chains, spread, ragged, active, extreme});
          for (const Check& check : kChecks) {
            begin_case(std::string(check.name) + " " + describe(in.c));
            check.run(in);
          }
        }
      }
    }
  }
}

}  // namespace driver
}  // namespace cogen
