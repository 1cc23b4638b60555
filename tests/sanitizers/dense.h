// Helpers for the checks of runs of dense layers: cases, a generator with its observations, and a
// transition, all in plain loops in double.
//
// Cases are dealt from decks: every value of every choice occurs, in combinations that are the same
// on all platforms.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/philox.h"
#include "support.h"

namespace cogen {
namespace driver {

constexpr uint32_t kMomentum = 1, kAccept = 2;
constexpr uint64_t kSeedLimit = std::numeric_limits<uint64_t>::max();
constexpr int64_t kWordLimit = 0xFFFFFFFF;
inline const std::vector<int> kThreads{1, 2, 3};

// The tolerance of values, relative to 1 and to the largest of them, and that of an acceptance
// probability.
template <class T>
constexpr double kTolerance = sizeof(T) == sizeof(double) ? 1e-9 : 2e-3;
template <class T>
constexpr double kProbabilitySlack = sizeof(T) == sizeof(double) ? 1e-8 : 2e-2;
// If a unit's input is nearer to its kink than this, rounding decides on which side it is.
template <class T>
constexpr double kKink = sizeof(T) == sizeof(double) ? 1e-12 : 1e-5;

// Cases.

// Deals the given values in a random order, again and again.
template <class V>
class Deck {
 public:
  explicit Deck(std::vector<V> values) : values_(std::move(values)) {}

  V deal(Random& random) {
    if (left_ == 0) {
      left_ = values_.size();
      for (size_t i = left_; i > 1; --i) std::swap(values_[i - 1], values_[random.below(i)]);
    }
    return values_[--left_];
  }

 private:
  std::vector<V> values_;
  size_t left_ = 0;
};

struct DenseCase {
  int64_t observations, chains;
  std::vector<int> widths;
  std::vector<Activation> activations;
  int mask, weight;  // 0: none or a single number; bit 0: for entries, bit 1: for observations
  bool ragged, extreme;
  uint64_t seed;

  int size() const { return widths.front(); }
  int measured() const { return widths.back(); }
  Shape shape() const { return {observations, chains, size()}; }
};

inline std::string describe(const DenseCase& c) {
  std::string text = "B=" + std::to_string(c.observations) + " N=" + std::to_string(c.chains) +
                     " widths=";
  for (const int width : c.widths) text += std::to_string(width) + ",";
  text += " activations=";
  for (const Activation each : c.activations) text += std::to_string(static_cast<int>(each));
  text += " mask=" + std::to_string(c.mask) + " weight=" + std::to_string(c.weight);
  if (c.ragged) text += " ragged";
  if (c.extreme) text += " extreme";
  return text;
}

class Dealer {
 public:
  Dealer(uint64_t seed, std::vector<int> layers) : random_(seed), layers_(std::move(layers)) {}

  DenseCase deal() {
    DenseCase c{};
    c.observations = observations_.deal(random_);
    c.chains = chains_.deal(random_);
    c.widths.push_back(sizes_.deal(random_));
    const int layers = layers_.deal(random_), hidden = hidden_.deal(random_);
    for (int k = 1; k < layers; ++k) c.widths.push_back(hidden ? hidden : widths_.deal(random_));
    c.widths.push_back(widths_.deal(random_));
    for (int k = 0; k < layers; ++k) c.activations.push_back(activations_.deal(random_));
    c.mask = rows_.deal(random_) | 1;
    if (masked_.deal(random_) == 0) c.mask = 0;
    c.weight = rows_.deal(random_);
    c.ragged = flags_.deal(random_) != 0;
    c.seed = seeds_.deal(random_);
    return c;
  }
  Random& random() { return random_; }

 private:
  Random random_;
  Deck<int> layers_;
  Deck<int64_t> observations_{{1, 2, 3}}, chains_{{1, 2, 3, 4, 5, 16, 17, 33}};
  Deck<int> sizes_{{1, 2, 3, 5, 7, 13, 32}}, widths_{{1, 2, 7, 8, 9, 16, 20, 31, 32, 33, 65}};
  Deck<int> hidden_{{0, 0, 0, 16, 20, 32}}, rows_{{0, 1, 2, 3}}, masked_{{0, 1, 2}};
  Deck<int> flags_{{0, 1}};
  Deck<Activation> activations_{{Activation::identity, Activation::relu, Activation::leaky_relu,
                                 Activation::tanh, Activation::sigmoid, Activation::softplus,
                                 Activation::elu}};
  Deck<uint64_t> seeds_{{0, 12345, kSeedLimit}};
};

// A generator and its observations.

inline double function_of(Activation kind, double slope, double x) {
  switch (kind) {
    case Activation::identity: return x;
    case Activation::relu: return std::isnan(x) ? x : std::fmax(x, 0.0);
    case Activation::leaky_relu: return x > 0.0 ? x : slope * x;
    case Activation::tanh: return std::tanh(x);
    case Activation::sigmoid: return 1.0 / (1.0 + std::exp(-x));
    case Activation::softplus: return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
    case Activation::elu: return x > 0.0 ? x : std::expm1(x);
  }
  return kNan;
}

inline double slope_of(Activation kind, double slope, double x) {
  const double sigmoid = 1.0 / (1.0 + std::exp(-x)), tanh = std::tanh(x);
  switch (kind) {
    case Activation::identity: return 1.0;
    case Activation::relu: return x > 0.0 ? 1.0 : 0.0;
    case Activation::leaky_relu: return x > 0.0 ? 1.0 : slope;
    case Activation::tanh: return 1.0 - tanh * tanh;
    case Activation::sigmoid: return sigmoid * (1.0 - sigmoid);
    case Activation::softplus: return sigmoid;
    case Activation::elu: return x > 0.0 ? 1.0 : std::exp(x);
  }
  return kNan;
}

struct Evaluation {
  double energy;
  std::vector<double> grad;
  bool doubtful;  // some unit is at its kink
};

inline int64_t padded(int64_t width) { return (width + kPadding - 1) / kPadding * kPadding; }

template <class T>
class Problem {
 public:
  explicit Problem(const DenseCase& dense_case);

  Mlp<T> mlp() const;
  MlpObserved<T> observed() const {
    const int64_t all = c.measured(), weights = c.weight & 1 ? all : 1;
    return {target_.data(), c.mask ? mask_.data() : nullptr, c.mask & 2 ? all : 0, weight_.data(),
            c.weight & 2 ? weights : 0, (c.weight & 1) != 0};
  }
  // Energy and gradient of observation b.
  Evaluation evaluate(int64_t b, const std::vector<double>& z) const;

  DenseCase c;

 private:
  void add_layer(Random& random, int in, int out);

  std::vector<Array<T>> weights_, biases_, backs_;
  Array<T> target_, weight_;
  Array<uint8_t> mask_;
  T slope_ = T(0.2);
};

template <class T>
Problem<T>::Problem(const DenseCase& dense_case)
    : c(dense_case),
      target_(c.observations * c.measured(), c.ragged),
      weight_((c.weight & 2 ? c.observations : 1) * (c.weight & 1 ? c.measured() : 1), c.ragged),
      mask_((c.mask & 2 ? c.observations : 1) * c.measured(), c.ragged) {
  Random random(c.seed + static_cast<uint64_t>(c.size()));
  for (size_t k = 0; k < c.activations.size(); ++k) {
    add_layer(random, c.widths[k], c.widths[k + 1]);
  }
  fill_uniform(target_, random, -1.0, 1.0);
  fill_uniform(weight_, random, 0.5, 2.0);
  for (int64_t i = 0; i < mask_.size(); ++i) mask_[i] = random.below(3) > 0;
  if (c.extreme) target_[target_.size() - 1] = T(kNan);
}

template <class T>
void Problem<T>::add_layer(Random& random, int in, int out) {
  weights_.emplace_back(in * padded(out), c.ragged);
  biases_.emplace_back(padded(out), c.ragged);
  backs_.emplace_back(out * padded(in), c.ragged);
  for (Array<T>* each : {&weights_.back(), &biases_.back(), &backs_.back()}) {
    std::fill(each->data(), each->data() + each->size(), T(0));
  }
  const double spread = std::sqrt(4.0 / in);
  for (int o = 0; o < out; ++o) {
    biases_.back()[o] = static_cast<T>(random.uniform(-0.5, 0.5));
    for (int i = 0; i < in; ++i) {
      const T weight = static_cast<T>(random.uniform(-spread, spread));
      weights_.back()[i * padded(out) + o] = backs_.back()[o * padded(in) + i] = weight;
    }
  }
}

template <class T>
Mlp<T> Problem<T>::mlp() const {
  Mlp<T> net{};
  net.layers = static_cast<int>(c.activations.size());
  net.slope = slope_;
  std::copy(c.widths.begin(), c.widths.end(), net.width);
  std::copy(c.activations.begin(), c.activations.end(), net.activation);
  for (size_t k = 0; k < c.activations.size(); ++k) {
    net.weight[k] = weights_[k].data();
    net.bias[k] = biases_[k].data();
    net.back[k] = backs_[k].data();
  }
  return net;
}

template <class T>
Evaluation Problem<T>::evaluate(int64_t b, const std::vector<double>& z) const {
  Evaluation found{0.0, {}, false};
  std::vector<std::vector<double>> sums;
  std::vector<double> x = z;
  for (size_t k = 0; k < c.activations.size(); ++k) {
    const Activation kind = c.activations[k];
    const bool kinked = kind == Activation::relu || kind == Activation::leaky_relu;
    std::vector<double> sum(static_cast<size_t>(c.widths[k + 1]));
    for (size_t o = 0; o < sum.size(); ++o) {
      const T* column = weights_[k].data() + o;
      double total = biases_[k][static_cast<int64_t>(o)];
      for (const double input : x) {
        total += *column * input;
        column += padded(c.widths[k + 1]);
      }
      sum[o] = total;
      found.doubtful |= kinked && std::fabs(total) < kKink<T>;
    }
    x.resize(sum.size());
    for (size_t o = 0; o < sum.size(); ++o) x[o] = function_of(kind, slope_, sum[o]);
    sums.push_back(std::move(sum));
  }
  const int64_t mask = c.mask & 2 ? b * c.measured() : 0;
  const int64_t weight = c.weight & 2 ? b * (c.weight & 1 ? c.measured() : 1) : 0;
  for (int m = 0; m < c.measured(); ++m) {
    const double w = weight_[weight + (c.weight & 1 ? m : 0)];
    const double residual = x[static_cast<size_t>(m)] - target_[b * c.measured() + m];
    const bool seen = !c.mask || mask_[mask + m];
    if (seen) found.energy += w * residual * residual;
    x[static_cast<size_t>(m)] = seen ? 2.0 * w * residual : 0.0;
  }
  for (size_t k = c.activations.size(); k-- > 0;) {
    for (size_t o = 0; o < x.size(); ++o) x[o] *= slope_of(c.activations[k], slope_, sums[k][o]);
    found.grad.assign(static_cast<size_t>(c.widths[k]), 0.0);
    const T* weight_row = weights_[k].data();
    for (double& grad : found.grad) {
      for (size_t o = 0; o < x.size(); ++o) grad += weight_row[o] * x[o];
      weight_row += padded(c.widths[k + 1]);
    }
    x = found.grad;
  }
  return found;
}

// Chains.

struct Chain {
  std::vector<double> latents, grad;
  double energy;
};

inline bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

inline bool same_bits(const Chain& a, const Chain& b) {
  return same_bits(a.latents, b.latents) && same_bits(a.grad, b.grad) &&
         memcmp(&a.energy, &b.energy, sizeof(double)) == 0;
}

template <class T>
struct Chains {
  Array<T> latents, grad;
  Array<double> energy, log_weights;
  Array<int64_t> non_finite;

  explicit Chains(const DenseCase& c)
      : latents(c.observations * c.chains * c.size(), c.ragged),
        grad(latents.size(), c.ragged),
        energy(c.observations * c.chains, c.ragged),
        log_weights(energy.size(), c.ragged),
        non_finite(energy.size(), c.ragged) {}

  template <class A, class B, class F>
  static void with_each(A& a, B& b, const F& f) {
    f("latents", a.latents, b.latents);
    f("grad", a.grad, b.grad);
    f("energy", a.energy, b.energy);
    f("log_weights", a.log_weights, b.log_weights);
    f("non_finite", a.non_finite, b.non_finite);
  }

  void start(const Problem<T>& problem, Random& random) {
    const DenseCase& c = problem.c;
    fill_uniform(latents, random, -1.5, 1.5);
    fill_uniform(log_weights, random, -1.0, 1.0);
    if (c.extreme) latents[0] = T(kNan);
    for (int64_t n = 0; n < energy.size(); ++n) {
      const Evaluation found = problem.evaluate(n / c.chains, chain(n).latents);
      energy[n] = found.energy;
      for (int i = 0; i < c.size(); ++i) {
        grad[n * c.size() + i] = static_cast<T>(found.grad[static_cast<size_t>(i)]);
      }
      non_finite[n] = n % 3;
    }
  }
  Chain chain(int64_t n) const {
    const int64_t size = latents.size() / energy.size();
    const auto row = [&](const Array<T>& all) {
      return std::vector<double>(all.data() + n * size, all.data() + (n + 1) * size);
    };
    return {row(latents), row(grad), energy[n]};
  }
};

// One transition in plain double.

struct MoveOf {
  double beta, prior_weight, step_size;
  int64_t leapfrog_steps;
  uint64_t seed;
  uint32_t transition, observation;

  Words words(uint32_t purpose, uint32_t block, int64_t chain) const {
    return philox(seed, (purpose << 24) | block, transition, static_cast<uint32_t>(chain),
                  observation);
  }
};

struct Proposed {
  Chain end;
  double probability, uniform;
  bool finite, doubtful;
};

inline std::vector<double> momentum_of(const MoveOf& move, size_t size, int64_t chain) {
  std::vector<double> momentum;
  for (size_t i = 0; i < size; ++i) {
    const Words words = move.words(kMomentum, static_cast<uint32_t>(i / 4), chain);
    double pair[2];
    normal_pair(words.w[i % 4 / 2 * 2], words.w[i % 4 / 2 * 2 + 1], &pair[0], &pair[1]);
    momentum.push_back(pair[i % 2]);
  }
  return momentum;
}

inline double hamiltonian(const MoveOf& move, const Chain& chain,
                          const std::vector<double>& momentum) {
  double prior = 0.0, kinetic = 0.0;
  for (size_t i = 0; i < momentum.size(); ++i) {
    prior += chain.latents[i] * chain.latents[i];
    kinetic += momentum[i] * momentum[i];
  }
  return move.beta * chain.energy + move.prior_weight * 0.5 * prior + 0.5 * kinetic;
}

// The proposal of chain `number` of observation b.
template <class T>
Proposed propose(const Problem<T>& problem, int64_t b, int64_t number, const Chain& start,
                 const MoveOf& move) {
  Proposed out{start, 0.0, 0.0, false, false};
  std::vector<double> momentum = momentum_of(move, start.latents.size(), number);
  const double before = hamiltonian(move, start, momentum);
  const auto half_kick = [&] {
    for (size_t i = 0; i < momentum.size(); ++i) {
      momentum[i] -= 0.5 * move.step_size *
                     (move.beta * out.end.grad[i] + move.prior_weight * out.end.latents[i]);
    }
  };
  for (int64_t made = 0; made < move.leapfrog_steps; ++made) {
    half_kick();
    for (size_t i = 0; i < momentum.size(); ++i) {
      out.end.latents[i] += move.step_size * momentum[i];
    }
    const Evaluation found = problem.evaluate(b, out.end.latents);
    out.end.energy = found.energy;
    out.end.grad = found.grad;
    out.doubtful |= found.doubtful;
    half_kick();
  }
  const double change = hamiltonian(move, out.end, momentum) - before;
  out.finite = std::isfinite(change);
  out.probability = out.finite ? std::exp(-std::fmax(change, 0.0)) : 0.0;
  out.uniform = to_uniform<double>(move.words(kAccept, 0, number).w[0]);
  return out;
}

template <class T>
void check_chain(const Chain& before, const Chain& after, const Proposed& proposed) {
  if (proposed.doubtful) return;
  const bool stayed = same_bits(before, after), accepted = proposed.uniform < proposed.probability;
  if (std::fabs(proposed.uniform - proposed.probability) > kProbabilitySlack<T>) {
    expect(stayed != accepted, accepted ? "not accepted" : "not rejected");
  }
  if (stayed) return;
  expect_close({"latents", after.latents}, proposed.end.latents, kTolerance<T>);
  expect_close({"energy", {after.energy}}, {proposed.end.energy}, kTolerance<T>);
  expect_close({"grad", after.grad}, proposed.end.grad, kTolerance<T>);
}

// Checks all chains of an observation and returns their mean acceptance probability. `starts` gives
// a chain's state before the transition, `moves` the settings of its move.
template <class T, class Starts, class Moves>
void check_transition(const Problem<T>& problem, int64_t b, const Starts& starts,
                      const std::vector<int64_t>& non_finite, const Chains<T>& after,
                      const Moves& moves, double acceptance) {
  const int64_t chains = problem.c.chains;
  double total = 0.0;
  bool doubtful = false;
  for (int64_t n = 0; n < chains; ++n) {
    const int64_t row = b * chains + n;
    const Chain start = starts(n);
    const Proposed proposed = propose(problem, b, n, start, moves(n));
    check_chain<T>(start, after.chain(row), proposed);
    expect(after.non_finite[row] - non_finite[static_cast<size_t>(row)] == !proposed.finite,
           "non_finite");
    total += proposed.probability;
    doubtful |= proposed.doubtful;
  }
  if (doubtful) return;
  const double mean = total / static_cast<double>(chains);
  expect(std::fabs(acceptance - mean) <= kProbabilitySlack<T>, "acceptance");
}

template <class V>
std::vector<V> values(const Array<V>& array) {
  return {array.begin(), array.end()};
}

inline double mean(const double* x, int64_t count) {
  double sum = 0.0;
  for (int64_t n = 0; n < count; ++n) sum += x[n];
  return sum / static_cast<double>(count);
}

inline double deviation(const double* x, int64_t count) {
  const double centre = mean(x, count);
  double sum = 0.0;
  for (int64_t n = 0; n < count; ++n) sum += (x[n] - centre) * (x[n] - centre);
  return std::sqrt(sum / static_cast<double>(count));
}

// Makes a run in memory of exactly the size that it asks for. The memory's content differs with the
// number of threads, so that results differ if a number is read before it has been written.
template <class Ops, class Run>
void call(const Ops& ops, const Run& run, int threads) {
  static constexpr int kFillings[] = {0xff, 0x00, 0x5a};  // the first is NaN
  const int64_t bytes = ops.arena_bytes(run, threads);
  Array<char> arena(bytes, false);
  if (reinterpret_cast<uintptr_t>(arena.data()) % 64 != 0) fail("arena_bytes: no multiple of 64");
  memset(arena.data(), kFillings[(threads - 1) % 3], static_cast<size_t>(bytes));
  ops.anneal(run, arena.data(), threads);
}

// States and histories are structs of arrays; with_each(a, b, f) calls f with the name, a's array
// and b's array of each member.

template <class State>
void copy(State& to, const State& from) {
  State::with_each(to, from, [](const char*, auto& a, const auto& b) { a.copy_from(b); });
}

template <class State>
Outputs outputs_of(const State& state) {
  Outputs out;
  State::with_each(state, state, [&](const char* name, const auto& a, const auto&) {
    out.push_back(output(name, a));
  });
  return out;
}

}  // namespace driver
}  // namespace cogen
