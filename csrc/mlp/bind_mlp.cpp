// Bindings of the published run for generators of dense layers, on the CPU and on a CUDA device.
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "common/bind_common.h"
#include "common/instruction_sets.h"
#include "common/python_methods.h"
#include "mlp/anneal_mlp_cuda.h"

namespace py = pybind11;

namespace cogen {
namespace {

std::int64_t padded(std::int64_t width) { return (width + kPadding - 1) / kPadding * kPadding; }

// Takes the `widths` from the latent to the output.
std::vector<std::int64_t> widths_of(Arguments& given) {
  const std::vector<std::int64_t> widths = given.integers("widths", 1, kMostWidth);
  if (widths.size() >= 2 && widths.size() <= kMostLayers + 1) return widths;
  throw py::value_error("widths: expected 2 to " + std::to_string(kMostLayers + 1) +
                        " of them, got " + std::to_string(widths.size()));
}

// Takes the `activations` of `layers` layers.
std::vector<std::int64_t> activations_of(Arguments& given, std::size_t layers) {
  const std::vector<std::int64_t> activations =
      given.integers("activations", 0, static_cast<std::int64_t>(Activation::elu));
  if (activations.size() == layers) return activations;
  throw py::value_error("activations: expected one for each of " + std::to_string(layers) +
                        " layers, got " + std::to_string(activations.size()));
}

// Takes what the layers of a net are, without their weights.
template <class T>
Mlp<T> layers_of(Arguments& given) {
  const std::vector<std::int64_t> widths = widths_of(given);
  const std::vector<std::int64_t> activations = activations_of(given, widths.size() - 1);
  Mlp<T> net{};
  net.layers = static_cast<int>(activations.size());
  net.slope = static_cast<T>(given.number("slope"));
  for (int k = 0; k <= net.layers; ++k) net.width[k] = static_cast<int>(widths[k]);
  for (int k = 0; k < net.layers; ++k) {
    net.activation[k] = static_cast<Activation>(activations[k]);
  }
  return net;
}

// Takes a net with its `weights`, `biases` and transposed weights, `backs`.
template <class T>
Mlp<T> mlp_of(Arguments& given) {
  Mlp<T> net = layers_of<T>(given);
  const auto count = static_cast<std::size_t>(net.layers);
  const std::vector<Array> weights = given.arrays("weights", count);
  const std::vector<Array> biases = given.arrays("biases", count);
  const std::vector<Array> backs = given.arrays("backs", count);
  for (std::size_t k = 0; k < count; ++k) {
    const std::int64_t in = net.width[k], out = net.width[k + 1];
    net.weight[k] = weights[k].at<const T>({in, padded(out)}, given.device());
    net.bias[k] = biases[k].at<const T>({padded(out)}, given.device());
    net.back[k] = backs[k].at<const T>({out, padded(in)}, given.device());
  }
  return net;
}

// Takes the arrays of the state, which the run reads and writes.
template <class T>
void read_state(Arguments& given, MlpRun<T>& run) {
  const std::int64_t b = run.shape.observations, n = run.shape.chains;
  run.energy = given.read<double>("energy", {b, n});
  run.grad = given.read<T>("grad", {b, n, run.shape.size});
  run.log_weights = given.read_optional<double>("log_weights", {b, n});
  const Array step_size = given.array("step_size");
  run.step_per_chain = step_size.rank() == 2;
  const auto steps = [&](const Array& array) {
    return run.step_per_chain ? array.at<double>({b, n}, given.device())
                              : array.at<double>({b}, given.device());
  };
  run.step_size = steps(step_size);
  run.running = steps(given.array("running"));
  run.non_finite = given.read<std::int64_t>("non_finite", {b, n});
}

// Takes the arrays that get what happened at each temperature.
template <class T>
void read_histories(Arguments& given, MlpRun<T>& run) {
  const auto [b, n, d] = run.shape;
  run.acceptance = given.read<double>("acceptance", {run.steps, b});
  run.step_used = given.read<double>("step_used", {run.steps, b});
  run.energy_mean = given.read<double>("energy_mean", {run.steps, b});
  run.energy_std = given.read<double>("energy_std", {run.steps, b});
  run.trace = given.read_optional<T>("trace", {run.steps, b, n, d});
}

// Takes `betas`, an inverse temperature for each step, and what is done at each.
template <class T>
void read_schedule(Arguments& given, MlpRun<T>& run) {
  const Array betas = given.array("betas");
  betas.require_rank(1, "(steps,)");
  run.steps = betas.size(0);
  run.beta = given.number("beta");
  run.betas = betas.at_all<const double>(given.device());
  // The noise must be able to count all transitions.
  const std::int64_t most = kLargestWord / (run.steps > 0 ? run.steps : 1);
  run.hmc_steps = given.integer("hmc_steps", 1, most > 1 ? most : 1);
  run.leapfrog_steps = given.integer("leapfrog_steps", 1, std::numeric_limits<int>::max());
  run.paper_form = given.flag("paper_form");
}

// Takes what is observed.
template <class T>
MlpObserved<T> mlp_observed_of(Arguments& given, const MlpRun<T>& run) {
  const Array target = given.array("target");
  const Observed<T> found =
      observed_of<T>(given, target, run.shape.observations, run.net.width[run.net.layers]);
  return {found.target, found.mask,          found.mask_stride,
          found.weight, found.weight_stride, found.weight_elementwise};
}

// Takes `rule`, the six constants of the step-size rule, or None.
std::optional<StepRule> step_rule_of(Arguments& given) {
  const std::optional<std::vector<double>> found = given.optional_numbers("rule");
  if (!found) return std::nullopt;
  const std::vector<double>& n = *found;
  if (n.size() != 6) {
    throw py::value_error("rule: expected six numbers or None, got " + std::to_string(n.size()));
  }
  return StepRule{n[0], n[1], n[2], n[3], n[4], n[5]};
}

// Takes all of a run but its rule. The arrays must be on the device of `latents`.
template <class T>
MlpRun<T> run_of(Arguments& given, const Array& latents) {
  MlpRun<T> run{};
  run.shape = shape_of(latents);
  run.latents = latents.at_all<T>(given.device());
  run.net = mlp_of<T>(given);
  if (run.net.width[0] != run.shape.size) {
    latents.refuse("shape (B, N, " + std::to_string(run.net.width[0]) + ")");
  }
  run.observed = mlp_observed_of(given, run);
  read_state(given, run);
  read_schedule(given, run);
  run.noise = noise_of(given, run.shape.observations, run.steps * run.hmc_steps);
  read_histories(given, run);
  return run;
}

// Memory that is aligned to 64 bytes.
class Memory {
 public:
  explicit Memory(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes) + kAlignment) {}
  char* start() {
    const auto first = reinterpret_cast<std::uintptr_t>(bytes_.data());
    return reinterpret_cast<char*>((first + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  std::vector<char> bytes_;
};

void anneal_mlp(Arguments& given) {
  const Array latents = given.array("latents");
  by_float_type(latents, [&](auto zero) {
    using T = decltype(zero);
    MlpRun<T> run = run_of<T>(given, latents);
    const std::optional<StepRule> rule = step_rule_of(given);
    run.rule = rule ? &*rule : nullptr;
    const int threads = given.threads();
    given.finish();
    if (is_empty(run.shape)) return;
    const PublishedOps<T>& published = *ops<T>().published;
    const py::gil_scoped_release released;
    Memory memory(published.arena_bytes(run, threads));
    published.anneal(run, memory.start(), threads);
  });
}

void anneal_mlp_on_device(Arguments& given) {
#if defined(COGEN_WITH_CUDA)
  const Array latents = given.array("latents");
  by_float_type(latents, [&](auto zero) {
    using T = decltype(zero);
    given.expect_on_cuda(latents);
    MlpRun<T> run = run_of<T>(given, latents);
    const std::optional<StepRule> rule = step_rule_of(given);
    run.rule = rule ? &*rule : nullptr;
    void* const stream = reinterpret_cast<void*>(given.word("stream"));
    given.finish();
    if (is_empty(run.shape) || run.steps == 0) return;
    std::string error;
    {
      const py::gil_scoped_release released;
      error = anneal_mlp_cuda(run, given.device().device_id, stream);
    }
    if (!error.empty()) throw std::runtime_error("anneal_mlp_cuda: " + error);
  });
#else
  (void)given;
  throw std::runtime_error("anneal_mlp_cuda: this extension was built without CUDA");
#endif
}

}  // namespace

PyMethodDef* mlp_methods() {
  static PyMethodDef methods[] = {
      method<anneal_mlp>("anneal_mlp", "Some temperatures of the published run."),
      method<anneal_mlp_on_device>("anneal_mlp_cuda", "The same on a CUDA device."),
      {}};
  return methods;
}

}  // namespace cogen
