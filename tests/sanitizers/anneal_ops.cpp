// The op between moves, in double only and compiled once.
#include <cmath>

#include "support.h"

namespace cogen {
namespace driver {
namespace {

struct AnnealCase {
  int64_t observations, chains;
  double spread;  // standard deviation of the log weights
  bool ragged, wanted, extreme;
};

std::string describe(const AnnealCase& c) {
  std::string text = "B=" + std::to_string(c.observations) + " N=" + std::to_string(c.chains) +
                     " spread=" + std::to_string(c.spread);
  if (c.ragged) text += " ragged";
  if (c.wanted) text += " wanted";
  if (c.extreme) text += " extreme";
  return text;
}

struct Inputs {
  AnnealCase c;
  Array<double> log_weights, uniform;
  Array<bool> wanted;

  explicit Inputs(const AnnealCase& anneal_case)
      : c(anneal_case),
        log_weights(c.observations * c.chains, c.ragged),
        uniform(c.observations, c.ragged),
        wanted(c.observations, c.ragged) {
    Random random(static_cast<uint64_t>(log_weights.size()));
    fill_values(log_weights, random, c.extreme);
    for (int64_t i = 0; i < log_weights.size(); ++i) log_weights[i] *= c.spread;
    fill_uniform(uniform, random, 0.0, 1.0);
    if (c.extreme) fill_values(uniform, random, true);
    for (int64_t b = 0; b < c.observations; ++b) wanted[b] = (b + c.observations) % 2 == 0;
  }

  bool resampled(int64_t b) const { return !c.wanted || wanted[b]; }
  const bool* wanted_or_null() const { return c.wanted ? wanted.data() : nullptr; }
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

void check_systematic(const Inputs& in) {
  const AnnealCase& c = in.c;
  Array<int64_t> out(c.observations * c.chains, c.ragged);
  systematic(c.observations, c.chains, in.log_weights.data(), in.uniform.data(),
             in.wanted_or_null(), out.data());
  for (int64_t b = 0; b < c.observations; ++b) {
    const std::vector<double> weights = in.weights(b);
    std::vector<double> counts(weights.size(), 0.0);
    for (int64_t n = 0; n < c.chains; ++n) {
      const int64_t ancestor = out[b * c.chains + n];
      if (ancestor < 0 || ancestor >= c.chains) return fail("ancestor out of range");
      expect(in.resampled(b) || ancestor == n,
             "ancestor of an observation that keeps its particles");
      counts[static_cast<size_t>(ancestor)] += 1.0;
    }
    if (!in.resampled(b) || c.extreme) continue;
    // A particle has as many children as its share of N, rounded up or down.
    for (size_t n = 0; n < weights.size(); ++n) {
      const double share = weights[n] * static_cast<double>(c.chains);
      expect(std::fabs(counts[n] - share) < 1.0 + 1e-9, "number of descendants");
    }
  }
}

}  // namespace

void check_anneal() {
  for (const int64_t observations : {1, 2, 3}) {
    for (const int64_t chains : {1, 2, 5, 17, 64, 333}) {
      for (const double spread : {0.0, 1.0, 30.0, 1e6}) {
        for (int flags = 0; flags < 8; ++flags) {
          const bool ragged = flags & 1, wanted = flags & 2, extreme = flags & 4;
          const Inputs in({observations, chains, spread, ragged, wanted, extreme});
          begin_case("systematic " + describe(in.c));
          check_systematic(in);
        }
      }
    }
  }
}

}  // namespace driver
}  // namespace cogen
