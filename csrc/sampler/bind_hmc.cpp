// Bindings of the parts of a transition, of the step-size rule and of resampling.
#include "common/bind_common.h"
#include "common/instruction_sets.h"
#include "common/python_methods.h"

namespace py = pybind11;

namespace cogen {
namespace {

// Takes the current state of the chains.
template <class T>
State<T> state_of(Arguments& given, const Array& latents, const Shape& shape) {
  const auto [b, n, d] = shape;
  return {latents.at<const T>({b, n, d}, given.device()),
          given.read<const double>("energy", {b, n}), given.read<const T>("grad", {b, n, d})};
}

// Takes a proposal, which may be written.
template <class T>
Proposal<T> proposal_of(Arguments& given, const Shape& shape) {
  const auto [b, n, d] = shape;
  return {given.read<T>("position", {b, n, d}), given.read<T>("momentum", {b, n, d}),
          given.read<double>("hamiltonian", {b, n})};
}

// Takes the settings of a transition, without `active`.
template <class T>
Settings<T> settings_of(Arguments& given, const Shape& shape) {
  const auto [b, n, d] = shape;
  const auto* beta = given.read<const double>("beta", {b});
  const auto* prior_weight = given.read<const double>("prior_weight", {b});
  const Array step_size = given.array("step_size");
  const bool each = step_size.rank() == 2;
  return {beta,
          prior_weight,
          each ? step_size.at<const double>({b, n}, given.device())
               : step_size.at<const double>({b}, given.device()),
          each ? n : 1,
          given.read_optional<const T>("inverse_mass", {b, d}),
          nullptr};
}

void initial_latents(Arguments& given) {
  const Array latents = given.array("latents");
  by_float_type(latents, [&](auto zero) {
    using T = decltype(zero);
    const Shape shape = shape_of(latents);
    T* const out = latents.at_all<T>(given.device());
    const Noise noise = noise_of(given, shape.observations);
    const int threads = given.threads();
    given.finish();
    if (is_empty(shape)) return;
    const py::gil_scoped_release released;
    ops<T>().hmc->normals(shape, noise, kLatentPurpose, out, threads);
  });
}

void begin_trajectory(Arguments& given) {
  const Array latents = given.array("latents");
  by_float_type(latents, [&](auto zero) {
    using T = decltype(zero);
    const Shape shape = shape_of(latents);
    const State<T> state = state_of<T>(given, latents, shape);
    const Settings<T> settings = settings_of<T>(given, shape);
    const Noise noise = noise_of(given, shape.observations);
    const Proposal<T> out = proposal_of<T>(given, shape);
    const int threads = given.threads();
    given.finish();
    if (is_empty(shape)) return;
    const py::gil_scoped_release released;
    ops<T>().hmc->begin_trajectory(shape, noise, settings, state, out, threads);
  });
}

void continue_trajectory(Arguments& given) {
  const Array position = given.array("position");
  by_float_type(position, [&](auto zero) {
    using T = decltype(zero);
    const Shape shape = shape_of(position);
    const auto [b, n, d] = shape;
    const Proposal<T> proposal{position.at_all<T>(given.device()),
                               given.read<T>("momentum", {b, n, d}), nullptr};
    const auto* grad = given.read<const T>("grad", {b, n, d});
    const Settings<T> settings = settings_of<T>(given, shape);
    const int threads = given.threads();
    given.finish();
    if (is_empty(shape)) return;
    const py::gil_scoped_release released;
    ops<T>().hmc->continue_trajectory(shape, settings, proposal, grad, threads);
  });
}

// Takes the arrays that get what is left after the Metropolis test.
template <class T>
Selected<T> selected_of(Arguments& given, const Shape& shape) {
  const auto [b, n, d] = shape;
  return {given.read<T>("out_latents", {b, n, d}),  given.read<double>("out_energy", {b, n}),
          given.read<T>("out_grad", {b, n, d}),     given.read<double>("out_probability", {b, n}),
          given.read<bool>("out_accepted", {b, n}), given.read<double>("out_change", {b, n})};
}

void accept_select(Arguments& given) {
  const Array latents = given.array("latents");
  by_float_type(latents, [&](auto zero) {
    using T = decltype(zero);
    const Shape shape = shape_of(latents);
    const auto [b, n, d] = shape;
    const State<T> state = state_of<T>(given, latents, shape);
    const Proposal<T> proposal = proposal_of<T>(given, shape);
    const State<T> proposed{proposal.position, given.read<const double>("proposed_energy", {b, n}),
                            given.read<const T>("proposed_grad", {b, n, d})};
    Settings<T> settings = settings_of<T>(given, shape);
    settings.active = given.read_optional<const bool>("active", {b});
    const Noise noise = noise_of(given, b);
    const Selected<T> out = selected_of<T>(given, shape);
    const int threads = given.threads();
    given.finish();
    if (is_empty(shape)) return;
    const py::gil_scoped_release released;
    ops<T>().hmc->accept_select(shape, noise, settings, state, proposal, proposed, out, threads);
  });
}

// The shape (B, N) of an array with at least one chain.
Shape population_of(const Array& table) {
  table.require_rank(2, "(B, N)");
  if (table.size(1) < 1) table.refuse("shape (B, N) with N > 0");
  return {table.size(0), table.size(1), 1};
}

// Takes the constants of the step-size rule.
StepRule rule_of(Arguments& given) {
  const double target = given.number("target"), decay = given.number("decay");
  const double increase = given.number("increase"), decrease = given.number("decrease");
  const double minimum = given.number("minimum"), maximum = given.number("maximum");
  return {target, decay, increase, decrease, minimum, maximum};
}

// Adapts step sizes (B,) of observations, or (B, N) of chains. For the kernel a chain with a step
// size of its own is an observation with one chain.
void adapt_step_size(Arguments& given) {
  const Array probability = given.array("acceptance_probability");
  const Shape shape = population_of(probability);
  const std::int64_t b = shape.observations, n = shape.chains;
  const Array step_size = given.array("step_size");
  const bool each = step_size.rank() == 2;
  const DLDevice& device = given.device();
  const auto read = [&](const Array& array) {
    return each ? array.at<double>({b, n}, device) : array.at<double>({b}, device);
  };
  const auto* probabilities = probability.at_all<const double>(device);
  const auto* steps = read(step_size);
  const auto* running = read(given.array("running_acceptance"));
  const Array active = given.optional("active");
  const auto* flags =
      each ? active.at<const bool>({b, n}, device) : active.at<const bool>({b}, device);
  const StepRule rule = rule_of(given);
  auto* const new_steps = read(given.array("new_step_size"));
  auto* const new_running = read(given.array("new_running_acceptance"));
  given.finish();
  const py::gil_scoped_release released;
  ops<double>().hmc->adapt_step_size(
      each ? b * n : b, each ? 1 : n,
      {steps, running, probabilities, flags, rule, new_steps, new_running});
}

void systematic_ancestors(Arguments& given) {
  const Array log_weights = given.array("log_weights");
  const Shape shape = population_of(log_weights);
  const std::int64_t b = shape.observations, n = shape.chains;
  const auto* weights = log_weights.at_all<const double>(given.device());
  const auto* uniform = given.read<const double>("uniform", {b});
  const auto* wanted = given.read_optional<const bool>("wanted", {b});
  auto* const out = given.read<std::int64_t>("out", {b, n});
  given.finish();
  if (b == 0) return;
  const py::gil_scoped_release released;
  systematic(b, n, weights, uniform, wanted, out);
}

void observation_uniforms(Arguments& given) {
  const Array out = given.array("out");
  out.require_rank(1, "(B,)");
  const std::int64_t b = out.size(0);
  auto* const uniforms = out.at_all<double>(given.device());
  const auto purpose = static_cast<std::uint32_t>(given.integer("purpose", 0, kLargestPurpose));
  const Noise noise = noise_of(given, b);
  given.finish();
  const py::gil_scoped_release released;
  ops<double>().hmc->uniforms({b, 1, 1}, noise, purpose, uniforms);
}

}  // namespace

PyMethodDef* hmc_methods() {
  static PyMethodDef methods[] = {
      method<initial_latents>("initial_latents", "Draws of the prior, into `latents`."),
      method<begin_trajectory>("begin_trajectory", "Momentum, half a kick and one drift."),
      method<continue_trajectory>("continue_trajectory", "One kick and one drift, in place."),
      method<accept_select>("accept_select", "Last half kick, Metropolis test, selection."),
      method<adapt_step_size>("adapt_step_size", "The published rule, once."),
      method<systematic_ancestors>("systematic_ancestors", "Systematic resampling."),
      method<observation_uniforms>("observation_uniforms", "A uniform for each observation."),
      {}};
  return methods;
}

}  // namespace cogen
