// Every op of HmcOps: one function each, which runs the op, compares what it wrote with plain loops
// in double, and returns it. A new op needs such a function and a line in kChecks.
#include <algorithm>
#include <cmath>

#include "common/philox.h"
#include "support.h"

namespace cogen {
namespace driver {
namespace {

constexpr uint32_t kMomentum = 1, kAccept = 2;
constexpr uint64_t kSeedLimit = std::numeric_limits<uint64_t>::max();
constexpr int64_t kWordLimit = 0xFFFFFFFF;

struct HmcCase {
  Shape shape;
  uint64_t seed;
  bool ragged, mass, active, extreme, per_chain;

  // The number of step sizes of an observation.
  int64_t steps_each() const { return per_chain ? shape.chains : 1; }
};

std::string describe(const HmcCase& c) {
  const Shape& s = c.shape;
  std::string text = "B=" + std::to_string(s.observations) + " N=" + std::to_string(s.chains) +
                     " d=" + std::to_string(s.size) + " seed=" + std::to_string(c.seed);
  if (c.ragged) text += " ragged";
  if (c.mass) text += " mass";
  if (c.active) text += " active";
  if (c.extreme) text += " extreme";
  if (c.per_chain) text += " per_chain";
  return text;
}

// Inputs of one case.

template <class T>
struct Inputs {
  HmcCase c;
  int64_t observations, chains, size, rows;
  Array<int64_t> transition, observation;
  Array<double> beta, prior_weight, step_size, running;
  Array<T> inverse_mass;
  Array<bool> active;
  Array<T> latents, grad, proposed_position, proposed_momentum, proposed_grad;
  Array<double> energy, proposed_energy, start, probability;
  std::vector<double> draws;  // normals for kMomentum, (B, N, d)

  explicit Inputs(const HmcCase& hmc_case);

  Array<T> per_entry() const { return {rows * size, c.ragged}; }
  template <class V>
  Array<V> per_chain() const {
    return {rows, c.ragged};
  }
  Noise noise() const { return {c.seed, transition.data(), observation.data()}; }
  Settings<T> settings() const {
    return {beta.data(),
            prior_weight.data(),
            step_size.data(),
            c.steps_each(),
            c.mass ? inverse_mass.data() : nullptr,
            c.active ? active.data() : nullptr};
  }
  State<T> current() const { return {latents.data(), energy.data(), grad.data()}; }
  State<T> proposed() const {
    return {proposed_position.data(), proposed_energy.data(), proposed_grad.data()};
  }

  double step_of(int64_t row) const { return step_size[c.per_chain ? row : row / chains]; }
  double mass_at(int64_t b, int64_t i) const { return c.mass ? inverse_mass[b * size + i] : 1.0; }
  bool moves(int64_t b) const { return !c.active || active[b]; }
  Words words_of(uint32_t purpose, int64_t b, int64_t chain, int64_t block) const {
    return philox(c.seed, (purpose << 24) | static_cast<uint32_t>(block),
                  static_cast<uint32_t>(transition[b]), static_cast<uint32_t>(chain),
                  static_cast<uint32_t>(observation[b]));
  }

 private:
  void fill_counters();
  void fill_settings(Random& random);
  void fill_draws();
};

template <class T>
Inputs<T>::Inputs(const HmcCase& hmc_case)
    : c(hmc_case),
      observations(c.shape.observations),
      chains(c.shape.chains),
      size(c.shape.size),
      rows(observations * chains),
      transition(observations, c.ragged),
      observation(observations, c.ragged),
      beta(observations, c.ragged),
      prior_weight(observations, c.ragged),
      step_size(observations * c.steps_each(), c.ragged),
      running(observations, c.ragged),
      inverse_mass(observations * size, c.ragged),
      active(observations, c.ragged),
      latents(per_entry()),
      grad(per_entry()),
      proposed_position(per_entry()),
      proposed_momentum(per_entry()),
      proposed_grad(per_entry()),
      energy(per_chain<double>()),
      proposed_energy(per_chain<double>()),
      start(per_chain<double>()),
      probability(per_chain<double>()) {
  Random random(static_cast<uint64_t>(rows * size));
  fill_counters();
  fill_settings(random);
  for (Array<T>* each : {&latents, &grad, &proposed_position, &proposed_momentum, &proposed_grad}) {
    fill_values(*each, random, c.extreme);
  }
  for (Array<double>* each : {&energy, &proposed_energy, &start}) {
    fill_values(*each, random, c.extreme);
  }
  fill_uniform(probability, random, 0.0, 1.0);
  // The Hamiltonian at the start is near that at the end, so that some proposals are accepted and
  // others are not.
  for (int64_t row = 0; row < rows; ++row) start[row] += 1.5 * static_cast<double>(size);
  fill_draws();
}

template <class T>
void Inputs<T>::fill_counters() {
  const int64_t counters[] = {kWordLimit, 0, 7};
  for (int64_t b = 0; b < observations; ++b) {
    transition[b] = counters[b % 3];
    observation[b] = counters[(b + static_cast<int64_t>(c.seed % 3)) % 3];
  }
}

template <class T>
void Inputs<T>::fill_settings(Random& random) {
  fill_uniform(beta, random, 0.5, 2.0);
  fill_uniform(prior_weight, random, 0.5, 1.0);
  fill_uniform(step_size, random, 0.05, 0.2);
  fill_uniform(running, random, 0.0, 1.0);
  fill_uniform(inverse_mass, random, 0.5, 2.0);
  for (int64_t b = 0; b < observations; ++b) active[b] = (b + observations) % 2 == 0;
  if (c.extreme) beta[0] = prior_weight[observations - 1] = 0.0;
}

double uniform_of(uint32_t word) { return ((word >> 9) + 0.5) * 0x1p-23; }

template <class T>
void Inputs<T>::fill_draws() {
  draws.reserve(static_cast<size_t>(rows * size));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < size; ++i) {
      const Words words = words_of(kMomentum, row / chains, row % chains, i / 4);
      const int64_t pair = i % 4 / 2 * 2;
      const double radius = std::sqrt(-2.0 * std::log(uniform_of(words.w[pair])));
      const double angle = 2.0 * 3.14159265358979323846 * uniform_of(words.w[pair + 1]);
      draws.push_back(radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle)));
    }
  }
}

// What the ops should write, computed in double.

// Momentum of a chain after a kick over `part` of a step.
template <class T>
double kicked(const Inputs<T>& in, int64_t row, double part, double momentum, double position,
              double grad) {
  const int64_t b = row / in.chains;
  const double span = part * in.step_of(row);
  return momentum - span * in.beta[b] * grad - span * in.prior_weight[b] * position;
}

template <class T>
double drifted(const Inputs<T>& in, int64_t row, int64_t i, double position, double momentum) {
  return position + in.step_of(row) * (momentum * in.mass_at(row / in.chains, i));
}

// Sums up the Hamiltonian of one chain.
struct HamiltonianSum {
  Sum prior, kinetic;

  void add(double position, double momentum, double inverse_mass) {
    prior.add(position * position);
    kinetic.add(momentum * momentum * inverse_mass);
  }
  double total(double beta, double energy, double prior_weight) const {
    return beta * energy + prior_weight * (0.5 * prior.total()) + 0.5 * kinetic.total();
  }
};

template <class T>
std::vector<double> expected_end(const Inputs<T>& in) {
  std::vector<double> end;
  for (int64_t row = 0; row < in.rows; ++row) {
    const int64_t b = row / in.chains;
    HamiltonianSum sum;
    for (int64_t i = 0; i < in.size; ++i) {
      const int64_t at = row * in.size + i;
      const double position = in.proposed_position[at];
      sum.add(position,
              kicked(in, row, 0.5, in.proposed_momentum[at], position, in.proposed_grad[at]),
              in.mass_at(b, i));
    }
    end.push_back(sum.total(in.beta[b], in.proposed_energy[row], in.prior_weight[b]));
  }
  return end;
}

// One check for each op.

template <class T>
Outputs check_words(const HmcOps<T>& ops, const Inputs<T>& in, int) {
  const int64_t blocks = (in.size + 3) / 4;
  for (const uint32_t purpose : {kAccept, 255u}) {
    Array<uint32_t> out(in.rows * blocks * 4, in.c.ragged);
    ops.words(in.c.shape, in.noise(), purpose, out.data());
    for (int64_t k = 0; k < in.rows * blocks; ++k) {
      const int64_t row = k / blocks;
      const Words expected = in.words_of(purpose, row / in.chains, row % in.chains, k % blocks);
      expect(memcmp(&out[4 * k], expected.w, sizeof expected.w) == 0, "words");
    }
  }
  return {};
}

template <class T>
Outputs check_uniforms(const HmcOps<T>& ops, const Inputs<T>& in, int) {
  Array<T> out = in.template per_chain<T>();
  ops.uniforms(in.c.shape, in.noise(), kAccept, out.data());
  std::vector<double> expected;
  for (int64_t row = 0; row < in.rows; ++row) {
    expected.push_back(uniform_of(in.words_of(kAccept, row / in.chains, row % in.chains, 0).w[0]));
  }
  const Outputs outputs{output("uniforms", out)};
  expect_close(outputs[0], expected, 0.0);
  return outputs;
}

template <class T>
Outputs check_normals(const HmcOps<T>& ops, const Inputs<T>& in, int threads) {
  Array<T> out = in.per_entry();
  ops.normals(in.c.shape, in.noise(), kMomentum, out.data(), threads);
  const Outputs outputs{output("normals", out)};
  expect_close(outputs[0], in.draws, rounding_bound<T>());
  return outputs;
}

template <class T>
Outputs check_begin_trajectory(const HmcOps<T>& ops, const Inputs<T>& in, int threads) {
  Array<T> position = in.per_entry(), momentum = in.per_entry();
  Array<double> start = in.template per_chain<double>();
  ops.begin_trajectory(in.c.shape, in.noise(), in.settings(), in.current(),
                       {position.data(), momentum.data(), start.data()}, threads);
  std::vector<double> positions, momenta, starts;
  for (int64_t row = 0; row < in.rows; ++row) {
    const int64_t b = row / in.chains;
    HamiltonianSum sum;
    for (int64_t i = 0; i < in.size; ++i) {
      const int64_t at = row * in.size + i;
      const double z = in.latents[at], v = in.draws[at] / std::sqrt(in.mass_at(b, i));
      sum.add(z, v, in.mass_at(b, i));
      momenta.push_back(kicked(in, row, 0.5, v, z, in.grad[at]));
      positions.push_back(drifted(in, row, i, z, momenta.back()));
    }
    starts.push_back(sum.total(in.beta[b], in.energy[row], in.prior_weight[b]));
  }
  const Outputs outputs{output("position", position), output("momentum", momentum),
                        output("hamiltonian", start)};
  expect_close(outputs[0], positions, rounding_bound<T>());
  expect_close(outputs[1], momenta, rounding_bound<T>());
  expect_close(outputs[2], starts, rounding_bound<T>());
  return outputs;
}

template <class T>
Outputs check_continue_trajectory(const HmcOps<T>& ops, const Inputs<T>& in, int threads) {
  Array<T> position = in.per_entry(), momentum = in.per_entry();
  position.copy_from(in.proposed_position);
  momentum.copy_from(in.proposed_momentum);
  ops.continue_trajectory(in.c.shape, in.settings(), {position.data(), momentum.data(), nullptr},
                          in.proposed_grad.data(), threads);
  std::vector<double> positions, momenta;
  for (int64_t at = 0; at < in.rows * in.size; ++at) {
    const int64_t row = at / in.size;
    const double z = in.proposed_position[at];
    momenta.push_back(kicked(in, row, 1.0, in.proposed_momentum[at], z, in.proposed_grad[at]));
    positions.push_back(drifted(in, row, at % in.size, z, momenta.back()));
  }
  const Outputs outputs{output("position", position), output("momentum", momentum)};
  expect_close(outputs[0], positions, rounding_bound<T>());
  expect_close(outputs[1], momenta, rounding_bound<T>());
  return outputs;
}

// What accept_select writes, and its checks.
template <class T>
struct Selection {
  Array<T> latents, grad;
  Array<double> energy, probability, change;
  Array<bool> accepted;

  explicit Selection(const Inputs<T>& in)
      : latents(in.per_entry()),
        grad(in.per_entry()),
        energy(in.template per_chain<double>()),
        probability(in.template per_chain<double>()),
        change(in.template per_chain<double>()),
        accepted(in.template per_chain<bool>()) {}

  Selected<T> pointers() {
    return {latents.data(),     energy.data(),   grad.data(),
            probability.data(), accepted.data(), change.data()};
  }

  // The row equals the state that was kept bit for bit, since it may contain NaN.
  bool is_copied(const Inputs<T>& in, int64_t row) const {
    const State<T> kept = accepted[row] ? in.proposed() : in.current();
    const int64_t at = row * in.size;
    const size_t bytes = static_cast<size_t>(in.size) * sizeof(T);
    return memcmp(&latents[at], kept.latents + at, bytes) == 0 &&
           memcmp(&grad[at], kept.grad + at, bytes) == 0 &&
           memcmp(&energy[row], kept.energy + row, sizeof(double)) == 0;
  }

  void check_verdict(const Inputs<T>& in, int64_t row) const {
    const int64_t b = row / in.chains;
    const double expected = in.moves(b) ? std::exp(-std::max(change[row], 0.0)) : 0.0;
    expect(std::fabs(probability[row] - expected) <= rounding_bound<double>(), "probability");
    const double uniform = uniform_of(in.words_of(kAccept, b, row % in.chains, 0).w[0]);
    expect(accepted[row] == (uniform < probability[row]), "accepted");
    expect(in.moves(b) || change[row] == 0.0, "change of an inactive observation");
    expect(is_copied(in, row), "the row is not that of the state that was kept");
  }
};

template <class T>
Outputs check_accept_select(const HmcOps<T>& ops, const Inputs<T>& in, int threads) {
  Array<T> position = in.per_entry(), momentum = in.per_entry();
  Array<double> start = in.template per_chain<double>();
  position.copy_from(in.proposed_position);
  momentum.copy_from(in.proposed_momentum);
  start.copy_from(in.start);
  Selection<T> selection(in);
  ops.accept_select(in.c.shape, in.noise(), in.settings(), in.current(),
                    {position.data(), momentum.data(), start.data()}, in.proposed(),
                    selection.pointers(), threads);
  const std::vector<double> ends = expected_end(in);
  std::vector<double> changes;
  for (int64_t row = 0; row < in.rows; ++row) {
    selection.check_verdict(in, row);
    const double change = in.moves(row / in.chains) ? ends[row] - in.start[row] : 0.0;
    // A change that is not finite, for whatever reason, counts as +inf: its probability is 0.
    changes.push_back(std::isfinite(change) ? change : kInfinity);
  }
  Outputs outputs{output("change", selection.change)};
  outputs[0].scale = largest_finite(ends);
  expect_close(outputs[0], changes, rounding_bound<T>());
  return outputs;
}

template <class T>
Outputs check_adapt_step_size(const HmcOps<T>& ops, const Inputs<T>& in, int) {
  Array<double> step(in.observations, in.c.ragged), running(in.observations, in.c.ragged);
  const double target = 0.65, decay = 0.9, increase = 1.02, decrease = 0.98;
  const double minimum = 0.08, maximum = 0.15;  // both bounds apply to some of the steps
  ops.adapt_step_size(
      in.observations, in.chains,
      {in.step_size.data(), in.running.data(), in.probability.data(), in.settings().active, target,
       decay, increase, decrease, minimum, maximum, step.data(), running.data()});
  std::vector<double> steps, rates;
  for (int64_t b = 0; b < in.observations; ++b) {
    double mean = 0.0;
    for (int64_t n = 0; n < in.chains; ++n) mean += in.probability[b * in.chains + n];
    mean /= static_cast<double>(in.chains);
    const double next = in.step_size[b] * (in.running[b] > target ? increase : decrease);
    steps.push_back(in.moves(b) ? std::min(std::max(next, minimum), maximum) : in.step_size[b]);
    rates.push_back(in.moves(b) ? decay * in.running[b] + (1.0 - decay) * mean : in.running[b]);
  }
  const Outputs outputs{output("step_size", step), output("running", running)};
  expect_close(outputs[0], steps, rounding_bound<double>());
  expect_close(outputs[1], rates, rounding_bound<double>());
  return outputs;
}

// A trajectory of a few steps, with the momentum reversed at its end and as many steps again, must
// return to its start.
template <class T>
class Trajectory {
 public:
  Trajectory(const HmcOps<T>& ops, const Inputs<T>& in, int threads)
      : position(in.per_entry()),
        momentum(in.per_entry()),
        grad_(in.per_entry()),
        ops_(ops),
        in_(in),
        threads_(threads) {
    Array<double> start = in.template per_chain<double>();
    ops.begin_trajectory(in.c.shape, in.noise(), in.settings(), in.current(),
                         {position.data(), momentum.data(), start.data()}, threads);
  }

  void step() {
    for (int64_t i = 0; i < grad_.size(); ++i) {
      grad_[i] = T(0.5) * position[i] + std::sin(position[i]);
    }
    ops_.continue_trajectory(in_.c.shape, in_.settings(),
                             {position.data(), momentum.data(), nullptr}, grad_.data(), threads_);
  }
  void turn_round() {
    for (int64_t i = 0; i < momentum.size(); ++i) momentum[i] = -momentum[i];
  }

  Array<T> position, momentum;

 private:
  Array<T> grad_;
  const HmcOps<T>& ops_;
  const Inputs<T>& in_;
  int threads_;
};

template <class T>
Outputs check_reversal(const HmcOps<T>& ops, const Inputs<T>& in, int threads) {
  if (in.c.extreme) return {};
  constexpr int kSteps = 3;
  Trajectory<T> trajectory(ops, in, threads);
  const Output first = output("momentum", trajectory.momentum);
  Array<T> last_position = in.per_entry();
  for (int k = 0; k < kSteps; ++k) {
    last_position.copy_from(trajectory.position);
    trajectory.step();
  }
  // A step ends with its drift, and the way back begins with a kick at the position before it.
  trajectory.position.copy_from(last_position);
  trajectory.turn_round();
  for (int k = 0; k < kSteps; ++k) trajectory.step();
  trajectory.turn_round();
  const Outputs outputs{output("position", trajectory.position),
                        output("momentum", trajectory.momentum)};
  expect_close(outputs[0], output("latents", in.latents).values, rounding_bound<T>());
  expect_close(outputs[1], first.values, rounding_bound<T>());
  return outputs;
}

template <class T>
struct Check {
  const char* name;
  Outputs (*run)(const HmcOps<T>&, const Inputs<T>&, int threads);
};

static_assert(sizeof(HmcOps<float>) == 7 * sizeof(&check_hmc),
              "HmcOps has changed: each op needs a check in kChecks");
template <class T>
const Check<T> kChecks[] = {
    {"words", check_words<T>},
    {"uniforms", check_uniforms<T>},
    {"normals", check_normals<T>},
    {"begin_trajectory", check_begin_trajectory<T>},
    {"continue_trajectory", check_continue_trajectory<T>},
    {"accept_select", check_accept_select<T>},
    {"adapt_step_size", check_adapt_step_size<T>},
    {"reversal", check_reversal<T>},
};

// Cases.

template <class T>
Outputs run_check(const Check<T>& check, const Isa<T>& isa, const Inputs<T>& in,
                  const std::vector<int>& thread_counts) {
  const std::string name =
      std::string(check.name) + " " + type_name<T>() + " " + isa.name + " " + describe(in.c);
  return across_threads(name, thread_counts,
                        [&](int threads) { return check.run(*isa.ops.hmc, in, threads); });
}

template <class T>
void run_case(const HmcCase& c, const std::vector<int>& thread_counts) {
  const Inputs<T> in(c);
  static const std::vector<Isa<T>> isas = usable_isas<T>();
  for (const Check<T>& check : kChecks<T>) {
    const Outputs plain = run_check(check, isas[0], in, thread_counts);
    for (size_t k = 1; k < isas.size(); ++k) {
      expect_close(run_check(check, isas[k], in, thread_counts), plain, rounding_bound<T>());
    }
  }
}

void run_both_types(const HmcCase& c, const std::vector<int>& thread_counts) {
  run_case<float>(c, thread_counts);
  run_case<double>(c, thread_counts);
}

void check_small_shapes() {
  const uint64_t seeds[] = {0, kSeedLimit, 12345};
  uint64_t count = 0;
  for (const int64_t observations : {1, 2, 3}) {
    for (const int64_t chains : {1, 5, 17, 64}) {
      for (const int64_t size : {1, 2, 3, 4, 5, 7, 33, 100}) {
        for (int flags = 0; flags < 8; ++flags) {
          const bool mass = flags & 1, active = flags & 2, extreme = flags & 4;
          // This makes half of all cases ragged. Any three of the four flags occur in every
          // combination.
          const bool ragged = (mass != active) != extreme;
          // Both values occur for each number of chains and of dimensions.
          const bool per_chain = (count / 8 + count / 64 + count / 256) % 2;
          const HmcCase c{{observations, chains, size},
                          seeds[count++ % 3],
                          ragged,
                          mass,
                          active,
                          extreme,
                          per_chain};
          run_both_types(c, {3});
        }
      }
    }
  }
}

// More than 2^18 entries, so that threads are used: with short chains, with odd lengths, and with
// chains that are longer than a unit of work.
void check_large_shapes() {
  run_both_types({{2, 131075, 1}, 0, false, false, false, false, false}, {1, 3});
  run_both_types({{2, 131075, 1}, 0, true, false, false, false, true}, {1, 3});
  run_both_types({{2, 1311, 101}, kSeedLimit, true, true, true, false, true}, {1, 3});
  run_both_types({{1, 65, 4099}, 12345, false, true, false, false, false}, {1, 3});
}

struct KnownAnswer {
  uint64_t key;
  uint32_t counter[4], words[4];
};

// These are known-answer tests of Random123 for philox4x32-10.
const KnownAnswer kKnownAnswers[] = {
    {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {kSeedLimit,
     {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {0x299f31d0a4093822,
     {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

void check_known_answers() {
  begin_case("known answers of Philox-4x32-10");
  for (const KnownAnswer& known : kKnownAnswers) {
    const uint32_t* c = known.counter;
    const Words words = philox(known.key, c[0], c[1], c[2], c[3]);
    expect(memcmp(words.w, known.words, sizeof words.w) == 0, "philox");
  }
  for (const Isa<float>& isa : usable_isas<float>()) {
    const int64_t zero = 0;
    Array<uint32_t> out(4, false);
    isa.ops.hmc->words({1, 1, 1}, {0, &zero, &zero}, 0, out.data());
    expect(memcmp(out.data(), kKnownAnswers[0].words, 4 * sizeof(uint32_t)) == 0, isa.name);
  }
}

}  // namespace

void check_hmc() {
  check_known_answers();
  check_small_shapes();
  check_large_shapes();
}

void check_hmc_table(const HmcOps<float>& ops) {
  const Inputs<float> in({{2, 5, 7}, 12345, false, true, true, false, false});
  for (const Check<float>& check : kChecks<float>) {
    run_check(check, {"planted", {&ops, nullptr, nullptr, nullptr, nullptr}}, in, {1});
  }
}

}  // namespace driver
}  // namespace cogen
