// The Python module cogen_fast._native. Arrays come as addresses (tensor.data_ptr()); the Python
// side (cogen_fast/ops/native.py) has checked shapes, dtypes and devices with readable errors.
// Here only what would read or write out of bounds is checked again.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "anneal_mlp_cuda.h"
#include "kernels.h"
#include "noise_cuda.h"

namespace py = pybind11;

namespace cogen {
namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Instruction sets: what was built, what the CPU can run, what is used.

struct Isa {
  const char* name;
  CpuOps<float> ops_float;
  CpuOps<double> ops_double;
};

const Isa kPlain{"plain",
                 {&plain::hmc_float, &plain::misfit_float, &plain::published_float,
                  &plain::progressive_float},
                 {&plain::hmc_double, &plain::misfit_double, &plain::published_double,
                  &plain::progressive_double}};
#if defined(COGEN_WITH_AVX2)
const Isa kAvx2{"avx2",
                {&avx2::hmc_float, &avx2::misfit_float, &avx2::published_float,
                 &avx2::progressive_float},
                {&avx2::hmc_double, &avx2::misfit_double, &avx2::published_double,
                 &avx2::progressive_double}};
#endif

std::vector<const Isa*> built_isas() {
  return {
      &kPlain,
#if defined(COGEN_WITH_AVX2)
      &kAvx2,
#endif
  };
}

// Slowest first.
std::vector<const Isa*> usable_isas() {
  std::vector<const Isa*> usable{&kPlain};
#if defined(COGEN_WITH_AVX2)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) usable.push_back(&kAvx2);
#endif
  return usable;
}

std::atomic<const Isa*> current_isa{usable_isas().back()};

template <class T>
const CpuOps<T>& ops();
template <>
const CpuOps<float>& ops<float>() {
  return current_isa.load(std::memory_order_relaxed)->ops_float;
}
template <>
const CpuOps<double>& ops<double>() {
  return current_isa.load(std::memory_order_relaxed)->ops_double;
}

py::tuple names(const std::vector<const Isa*>& isas) {
  py::list list;
  for (const Isa* isa : isas) list.append(isa->name);
  return py::tuple(list);
}

void set_isa(const std::string& name) {
  for (const Isa* isa : usable_isas()) {
    if (name == isa->name) {
      current_isa = isa;
      return;
    }
  }
  throw py::value_error("isa: " + name + " was not built or cannot run on this CPU");
}

py::dict build_info() {
  py::dict info;
  py::list archs;
#if defined(COGEN_WITH_CUDA)
  info["with_cuda"] = true;
  const std::string text = COGEN_CUDA_ARCHS;
  for (std::size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
    end = std::min(text.find(',', begin), text.size());
    archs.append(text.substr(begin, end - begin));
  }
#else
  info["with_cuda"] = false;
#endif
  info["cuda_archs"] = py::tuple(archs);
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["compiler"] = COGEN_COMPILER;
  info["isa_built"] = names(built_isas());
  info["isa_usable"] = names(usable_isas());
  info["isa"] = current_isa.load()->name;
  return info;
}

// Argument checks.

void require(bool fine, const char* message) {
  if (!fine) throw py::value_error(message);
}

void require_address(Address address, const char* name) {
  if (address == 0) throw py::value_error(std::string(name) + ": null pointer");
}

constexpr std::uint32_t kLatent = 0;
constexpr std::int64_t kLargestWord = 0xFFFFFFFF;
// A block number shares its counter word with the purpose.
constexpr std::int64_t kLargestSize = std::int64_t{4} << 24;

void require_shape(const Shape& shape) {
  require(shape.observations >= 0, "observations: expected at least 0");
  require(shape.chains >= 0 && shape.chains <= kLargestWord,
          "chains: expected between 0 and 2^32 - 1");
  require(shape.size > 0 && shape.size <= kLargestSize, "size: expected between 1 and 2^26");
}

Noise noise_of(std::uint64_t seed, Address transition, Address observation,
               std::int64_t observations) {
  require_address(transition, "transition");
  require_address(observation, "observation");
  const Noise noise{seed, at<const std::int64_t>(transition), at<const std::int64_t>(observation)};
  for (std::int64_t b = 0; b < observations; ++b) {
    require(noise.transition[b] >= 0 && noise.transition[b] <= kLargestWord,
            "transition: expected values in [0, 2^32)");
    require(noise.observation[b] >= 0 && noise.observation[b] <= kLargestWord,
            "observation: expected values in [0, 2^32)");
  }
  return noise;
}

// Settings, state and proposal as they come from Python: addresses, 0 for an optional argument.

template <class T>
Settings<T> settings_of(const Shape& shape, Address beta, Address prior_weight, Address step_size,
                        std::int64_t steps_each, Address inverse_mass, Address active) {
  require_address(beta, "beta");
  require_address(prior_weight, "prior_weight");
  require_address(step_size, "step_size");
  require(steps_each == 1 || steps_each == shape.chains, "steps_each: expected 1 or chains");
  return {at<const double>(beta), at<const double>(prior_weight), at<const double>(step_size),
          steps_each, at<const T>(inverse_mass), at<const bool>(active)};
}

template <class T>
State<T> state_of(Address latents, Address energy, Address grad) {
  require_address(latents, "latents");
  require_address(energy, "energy");
  require_address(grad, "grad");
  return {at<const T>(latents), at<const double>(energy), at<const T>(grad)};
}

template <class T>
Proposal<T> proposal_of(Address position, Address momentum, Address hamiltonian) {
  require_address(position, "position");
  require_address(momentum, "momentum");
  require_address(hamiltonian, "hamiltonian");
  return {at<T>(position), at<T>(momentum), at<double>(hamiltonian)};
}

bool is_empty(const Shape& shape) { return shape.observations == 0 || shape.chains == 0; }

// The ops. Each is bound once for float and once for double.

template <class T>
void initial_latents(std::int64_t observations, std::int64_t chains, std::int64_t size,
                     std::uint64_t seed, Address transition, Address observation, Address latents,
                     int threads) {
  const Shape shape{observations, chains, size};
  require_shape(shape);
  if (is_empty(shape)) return;
  require_address(latents, "latents");
  ops<T>().hmc->normals(shape, noise_of(seed, transition, observation, observations), kLatent,
                        at<T>(latents), threads);
}

template <class T>
void begin_trajectory(std::int64_t observations, std::int64_t chains, std::int64_t size,
                      std::uint64_t seed, Address transition, Address observation, Address beta,
                      Address prior_weight, Address step_size, std::int64_t steps_each,
                      Address inverse_mass, Address latents, Address energy, Address grad,
                      Address position, Address momentum, Address hamiltonian, int threads) {
  const Shape shape{observations, chains, size};
  require_shape(shape);
  if (is_empty(shape)) return;
  ops<T>().hmc->begin_trajectory(
      shape, noise_of(seed, transition, observation, observations),
      settings_of<T>(shape, beta, prior_weight, step_size, steps_each, inverse_mass, 0),
      state_of<T>(latents, energy, grad), proposal_of<T>(position, momentum, hamiltonian),
      threads);
}

template <class T>
void continue_trajectory(std::int64_t observations, std::int64_t chains, std::int64_t size,
                         Address beta, Address prior_weight, Address step_size,
                         std::int64_t steps_each, Address inverse_mass, Address position,
                         Address momentum, Address grad, int threads) {
  const Shape shape{observations, chains, size};
  require_shape(shape);
  if (is_empty(shape)) return;
  require_address(position, "position");
  require_address(momentum, "momentum");
  require_address(grad, "grad");
  ops<T>().hmc->continue_trajectory(
      shape, settings_of<T>(shape, beta, prior_weight, step_size, steps_each, inverse_mass, 0),
      {at<T>(position), at<T>(momentum), nullptr}, at<const T>(grad), threads);
}

template <class T>
void accept_select(std::int64_t observations, std::int64_t chains, std::int64_t size,
                   std::uint64_t seed, Address transition, Address observation, Address beta,
                   Address prior_weight, Address step_size, std::int64_t steps_each,
                   Address inverse_mass, Address active, Address latents, Address energy,
                   Address grad, Address position, Address momentum, Address hamiltonian,
                   Address proposed_energy, Address proposed_grad, Address out_latents,
                   Address out_energy, Address out_grad, Address out_probability,
                   Address out_accepted, Address out_change, int threads) {
  const Shape shape{observations, chains, size};
  require_shape(shape);
  if (is_empty(shape)) return;
  for (const Address out :
       {out_latents, out_energy, out_grad, out_probability, out_accepted, out_change}) {
    require_address(out, "output");
  }
  ops<T>().hmc->accept_select(
      shape, noise_of(seed, transition, observation, observations),
      settings_of<T>(shape, beta, prior_weight, step_size, steps_each, inverse_mass, active),
      state_of<T>(latents, energy, grad), proposal_of<T>(position, momentum, hamiltonian),
      state_of<T>(position, proposed_energy, proposed_grad),
      {at<T>(out_latents), at<double>(out_energy), at<T>(out_grad), at<double>(out_probability),
       at<bool>(out_accepted), at<double>(out_change)},
      threads);
}

void require_population(std::int64_t observations, std::int64_t chains) {
  require(observations >= 0, "observations: expected at least 0");
  require(chains > 0, "chains: expected at least 1");
}

void adapt_step_size(std::int64_t observations, std::int64_t chains, Address step_size,
                     Address running, Address probability, Address active, double target,
                     double decay, double increase, double decrease, double minimum,
                     double maximum, Address new_step_size, Address new_running) {
  require_population(observations, chains);
  if (observations == 0) return;
  for (const Address each : {step_size, running, probability, new_step_size, new_running}) {
    require_address(each, "adapt_step_size");
  }
  ops<double>().hmc->adapt_step_size(
      observations, chains,
      {at<const double>(step_size), at<const double>(running), at<const double>(probability),
       at<const bool>(active), {target, decay, increase, decrease, minimum, maximum},
       at<double>(new_step_size), at<double>(new_running)});
}

void systematic_ancestors(std::int64_t observations, std::int64_t chains, Address log_weights,
                          Address uniform, Address wanted, Address out) {
  require_population(observations, chains);
  if (observations == 0) return;
  for (const Address each : {log_weights, uniform, out}) {
    require_address(each, "systematic_ancestors");
  }
  systematic(observations, chains, at<const double>(log_weights), at<const double>(uniform),
             at<const bool>(wanted), at<std::int64_t>(out));
}

void observation_uniforms(std::int64_t observations, std::uint32_t purpose, std::uint64_t seed,
                          Address transition, Address observation, Address out) {
  require(observations >= 0, "observations: expected at least 0");
  if (observations == 0) return;
  require_address(out, "out");
  ops<double>().hmc->uniforms({observations, 1, 1},
                              noise_of(seed, transition, observation, observations), purpose,
                              at<double>(out));
}

MisfitKind kind_of(const std::string& name) {
  if (name == "mask") return MisfitKind::mask;
  if (name == "pool") return MisfitKind::pool;
  if (name == "stride") return MisfitKind::stride;
  throw py::value_error("kind: expected mask, pool or stride, got " + name);
}

template <class T>
void require_misfit(const Misfit<T>& m, std::int64_t observations) {
  require(m.rows >= 0, "rows: expected at least 0");
  require(m.factor > 0, "factor: expected at least 1");
  require(m.channels > 0 && m.height > 0 && m.width > 0, "output_shape: expected positive sizes");
  const bool pools = m.kind == MisfitKind::pool;
  require(!pools || (m.height % m.factor == 0 && m.width % m.factor == 0),
          "factor: expected a divisor of height and width");
  const std::int64_t high = (m.height - 1) / m.factor + 1;
  const std::int64_t wide = (m.width - 1) / m.factor + 1;
  require(m.measured == m.channels * high * wide, "target: wrong number of measured values");
  for (std::int64_t row = 0; row < m.rows; ++row) {
    require(m.observation[row] >= 0 && m.observation[row] < observations,
            "observation: expected values in [0, B)");
  }
}

template <class T>
void misfit(const std::string& kind, std::int64_t rows, std::int64_t channels,
            std::int64_t height, std::int64_t width, std::int64_t factor,
            std::int64_t observations, std::int64_t measured, Address outputs,
            Address observation, Address target, Address mask, std::int64_t mask_stride,
            Address weight, std::int64_t weight_stride, bool weight_elementwise, Address energy,
            Address grad, int threads) {
  if (rows == 0) return;
  for (const Address each : {outputs, observation, target, weight, energy, grad}) {
    require_address(each, "misfit");
  }
  Misfit<T> m{kind_of(kind),
              rows,
              channels,
              height,
              width,
              factor,
              measured,
              at<const T>(outputs),
              at<const std::int64_t>(observation),
              at<const T>(target),
              at<const std::uint8_t>(mask),
              mask_stride,
              at<const T>(weight),
              weight_stride,
              weight_elementwise,
              at<double>(energy),
              at<T>(grad),
              nullptr,
              1};
  require_misfit(m, observations);
  m.segments = ops<T>().misfit->segments(m);
  std::vector<double> partials(m.segments > 1 ? rows * m.segments : 0);
  m.partials = partials.data();
  ops<T>().misfit->misfit(m, threads);
}

// A run of a generator of dense layers. Its many arguments come as a dictionary of numbers,
// addresses and lists of them.

class Fields {
 public:
  explicit Fields(const py::dict& values) : values_(values) {}

  template <class V>
  V get(const char* name) const {
    require(values_.contains(name), name);
    return py::cast<V>(values_[name]);
  }
  template <class T>
  T* address(const char* name) const {
    const Address found = get<Address>(name);
    require_address(found, name);
    return at<T>(found);
  }
  template <class T>
  T* optional(const char* name) const {
    return at<T>(get<Address>(name));
  }

 private:
  const py::dict& values_;
};

template <class T>
Mlp<T> mlp_of(const Fields& fields) {
  const auto widths = fields.get<std::vector<int>>("widths");
  const auto activations = fields.get<std::vector<int>>("activations");
  const int layers = static_cast<int>(widths.size()) - 1;
  require(layers >= 1 && layers <= kMostLayers, "widths: expected 2 to 9 of them");
  require(activations.size() == widths.size() - 1, "activations: expected one per layer");
  Mlp<T> net{};
  net.layers = layers;
  net.slope = static_cast<T>(fields.get<double>("slope"));
  const auto weights = fields.get<std::vector<Address>>("weights");
  const auto biases = fields.get<std::vector<Address>>("biases");
  const auto backs = fields.get<std::vector<Address>>("backs");
  const std::size_t count = activations.size();
  require(weights.size() == count && biases.size() == count && backs.size() == count,
          "weights: expected one per layer");
  for (int k = 0; k <= layers; ++k) {
    require(widths[k] >= 1 && widths[k] <= kMostWidth, "widths: expected 1 to 256");
    net.width[k] = widths[k];
    if (k == layers) break;
    require(activations[k] >= 0 && activations[k] <= static_cast<int>(Activation::elu),
            "activations: unknown");
    net.activation[k] = static_cast<Activation>(activations[k]);
    for (const Address each : {weights[k], biases[k], backs[k]}) require_address(each, "weights");
    net.weight[k] = at<const T>(weights[k]);
    net.bias[k] = at<const T>(biases[k]);
    net.back[k] = at<const T>(backs[k]);
  }
  return net;
}

template <class T>
MlpObserved<T> observed_of(const Fields& f) {
  return {f.address<const T>("target"),          f.optional<const std::uint8_t>("mask"),
          f.get<std::int64_t>("mask_stride"),    f.address<const T>("weight"),
          f.get<std::int64_t>("weight_stride"),  f.get<bool>("weight_elementwise")};
}

// Memory whose start is aligned to 64 bytes.
class Memory {
 public:
  explicit Memory(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes) + kAlignment) {}
  char* start() {
    const auto first = reinterpret_cast<Address>(bytes_.data());
    return at<char>((first + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  std::vector<char> bytes_;
};

// What a device's memory holds cannot be checked here.
template <class T>
MlpRun<T> mlp_run_of(const Fields& f, const StepRule* rule, bool on_device) {
  MlpRun<T> run{};
  run.net = mlp_of<T>(f);
  run.shape = {f.get<std::int64_t>("observations"), f.get<std::int64_t>("chains"),
               run.net.width[0]};
  require_shape(run.shape);
  run.observed = observed_of<T>(f);
  run.noise = noise_of(f.get<std::uint64_t>("seed"), f.get<Address>("transition"),
                       f.get<Address>("observation"), on_device ? 0 : run.shape.observations);
  run.latents = f.address<T>("latents");
  run.energy = f.address<double>("energy");
  run.grad = f.address<T>("grad");
  run.log_weights = f.optional<double>("log_weights");
  run.step_size = f.address<double>("step_size");
  run.running = f.address<double>("running");
  run.non_finite = f.address<std::int64_t>("non_finite");
  run.beta = f.get<double>("beta");
  run.betas = f.address<const double>("betas");
  run.steps = f.get<std::int64_t>("steps");
  run.hmc_steps = f.get<std::int64_t>("hmc_steps");
  run.leapfrog_steps = f.get<std::int64_t>("leapfrog_steps");
  run.paper_form = f.get<bool>("paper_form");
  run.step_per_chain = f.get<bool>("step_per_chain");
  run.rule = rule;
  run.acceptance = f.address<double>("acceptance");
  run.step_used = f.address<double>("step_used");
  run.energy_mean = f.address<double>("energy_mean");
  run.energy_std = f.address<double>("energy_std");
  run.trace = f.optional<T>("trace");
  require(run.steps >= 0 && run.hmc_steps >= 1 && run.leapfrog_steps >= 1,
          "steps: expected positive counts");
  for (std::int64_t b = 0; !on_device && b < run.shape.observations; ++b) {
    require(run.noise.transition[b] + run.steps * run.hmc_steps <= kLargestWord,
            "transition: expected values in [0, 2^32)");
  }
  return run;
}

// A rule, or an empty list for none.
struct OptionalRule {
  StepRule rule{};
  bool given;

  explicit OptionalRule(const Fields& fields) {
    const auto numbers = fields.get<std::vector<double>>("rule");
    given = !numbers.empty();
    if (!given) return;
    require(numbers.size() == 6, "rule: expected six numbers or none");
    rule = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]};
  }
  const StepRule* get() const { return given ? &rule : nullptr; }
};

template <class T>
void anneal_mlp(const py::dict& arguments, int threads) {
  const Fields fields(arguments);
  const OptionalRule rule(fields);
  const MlpRun<T> run = mlp_run_of<T>(fields, rule.get(), false);
  if (is_empty(run.shape)) return;
  const PublishedOps<T>& published = *ops<T>().published;
  const py::gil_scoped_release released;
  Memory memory(published.arena_bytes(run, threads));
  published.anneal(run, memory.start(), threads);
}

template <class T>
void anneal_mlp_on_device(const py::dict& arguments, Address stream) {
#if defined(COGEN_WITH_CUDA)
  const Fields fields(arguments);
  const OptionalRule rule(fields);
  const MlpRun<T> run = mlp_run_of<T>(fields, rule.get(), true);
  if (is_empty(run.shape) || run.steps == 0) return;
  std::string error;
  {
    const py::gil_scoped_release released;
    error = anneal_mlp_cuda(run, at<void>(stream));
  }
  if (!error.empty()) throw std::runtime_error("anneal_mlp_cuda: " + error);
#else
  (void)arguments, (void)stream;
  throw std::runtime_error("anneal_mlp_cuda: this extension was built without CUDA");
#endif
}

// A progressive GAN.

Cells cells_of(std::int64_t count, std::int64_t height, std::int64_t width) {
  require(count >= 0, "images: expected at least 0");
  require(height > 0 && width > 0, "images: expected sides of at least 1");
  return {count, height, width};
}

template <class T>
PixelNorm<T> pixel_norm_of(std::int64_t channels, Address bias, double slope, Address out,
                           Address scale) {
  require(channels > 0, "channels: expected at least 1");
  require_address(bias, "bias");
  require_address(out, "out");
  return {channels, at<const T>(bias), static_cast<T>(slope), at<T>(out), at<T>(scale)};
}

template <class T>
PixelNormGrad<T> pixel_norm_grad_of(std::int64_t channels, double slope, Address out,
                                    Address scale, Address extra, Address grad) {
  require(channels > 0, "channels: expected at least 1");
  require_address(out, "out");
  require_address(grad, "grad");
  return {channels,           static_cast<T>(slope), at<const T>(out),
          at<const T>(scale), at<const T>(extra),    at<T>(grad)};
}

template <class T>
Kernel3x3<T> kernel_of(Address packed, std::int64_t in, std::int64_t out) {
  require_address(packed, "kernel");
  require(in > 0 && out > 0, "kernel: expected channels");
  return {at<const T>(packed), in, out};
}

template <class T>
void norm(std::int64_t pixels, std::int64_t channels, Address x, Address bias, double slope,
          Address out, Address scale, int threads) {
  require(pixels >= 0, "pixels: expected at least 0");
  if (pixels == 0) return;
  require_address(x, "x");
  ops<T>().progressive->norm(pixels, at<const T>(x),
                             pixel_norm_of<T>(channels, bias, slope, out, scale), threads);
}

template <class T>
void norm_grad(std::int64_t pixels, std::int64_t channels, Address x, double slope, Address out,
               Address scale, Address grad, int threads) {
  require(pixels >= 0, "pixels: expected at least 0");
  if (pixels == 0) return;
  require_address(x, "x");
  ops<T>().progressive->norm_grad(
      pixels, at<T>(x), pixel_norm_grad_of<T>(channels, slope, out, scale, 0, grad), threads);
}

template <class T>
using Layer = LayerOps<T> ProgressiveOps<T>::*;

template <class T, Layer<T> kLayer>
std::int64_t layer_arena(std::int64_t count, std::int64_t height, std::int64_t width,
                         std::int64_t in, std::int64_t out) {
  require(in > 0 && out > 0, "channels: expected at least 1");
  return (ops<T>().progressive->*kLayer).arena(cells_of(count, height, width), in, out);
}

template <class T, Layer<T> kLayer>
void layer_forward(std::int64_t count, std::int64_t height, std::int64_t width, Address images,
                   Address kernel, std::int64_t in, std::int64_t out_channels, Address bias,
                   double slope, Address out, Address scale, Address arena, int threads) {
  const Cells cells = cells_of(count, height, width);
  if (count == 0) return;
  require_address(images, "images");
  require_address(arena, "arena");
  const std::vector<T> zeros(static_cast<std::size_t>(in));
  (ops<T>().progressive->*kLayer)
      .forward(cells, at<const T>(images), kernel_of<T>(kernel, in, out_channels),
               pixel_norm_of<T>(out_channels, bias, slope, out, scale), zeros.data(),
               at<T>(arena), threads);
}

template <class T, Layer<T> kLayer>
void layer_backward(std::int64_t count, std::int64_t height, std::int64_t width, Address images,
                    Address kernel, std::int64_t in, std::int64_t out_channels, double slope,
                    Address out, Address scale, Address extra, Address grad, Address arena,
                    int threads) {
  const Cells cells = cells_of(count, height, width);
  if (count == 0) return;
  require_address(images, "images");
  require_address(arena, "arena");
  const std::vector<T> zeros(static_cast<std::size_t>(in));
  (ops<T>().progressive->*kLayer)
      .backward(cells, at<const T>(images), kernel_of<T>(kernel, in, out_channels),
                pixel_norm_grad_of<T>(out_channels, slope, out, scale, extra, grad), zeros.data(),
                at<T>(arena), threads);
}

template <class T>
void colour_misfit(const std::string& kind, std::int64_t rows, std::int64_t colours,
                   std::int64_t height, std::int64_t width, std::int64_t factor,
                   std::int64_t observations, std::int64_t measured, Address observation,
                   Address target, Address mask, std::int64_t mask_stride, Address weight,
                   std::int64_t weight_stride, bool weight_elementwise, std::int64_t channels,
                   Address colour_weight, Address colour_bias, bool bounded, double slope,
                   Address out, Address scale, Address grad, Address energy, int threads) {
  if (rows == 0) return;
  for (const Address each : {observation, target, weight, colour_weight, colour_bias, energy}) {
    require_address(each, "colour_misfit");
  }
  require(threads > 0, "threads: expected at least 1");
  Misfit<T> m{kind_of(kind),
              rows,
              colours,
              height,
              width,
              factor,
              measured,
              nullptr,
              at<const std::int64_t>(observation),
              at<const T>(target),
              at<const std::uint8_t>(mask),
              mask_stride,
              at<const T>(weight),
              weight_stride,
              weight_elementwise,
              at<double>(energy),
              nullptr,
              nullptr,
              1};
  require_misfit(m, observations);
  const PixelNormGrad<T> to = pixel_norm_grad_of<T>(channels, slope, out, scale, 0, grad);
  const ProgressiveOps<T>& progressive = *ops<T>().progressive;
  m.segments = progressive.colour_bands(m);
  std::vector<double> partials(m.segments > 1 ? rows * m.segments : 0);
  m.partials = partials.data();
  std::vector<T> arena(
      static_cast<std::size_t>(progressive.colour_arena(m, channels, threads)));
  progressive.colour_misfit(
      m, {at<const T>(colour_weight), at<const T>(colour_bias), bounded}, to, arena.data(),
      threads);
}

// Raw noise, for the tests of each instruction set and of the device.

NoiseKind noise_kind_of(const std::string& name) {
  if (name == "words") return NoiseKind::words;
  if (name == "uniforms") return NoiseKind::uniforms;
  if (name == "normals") return NoiseKind::normals;
  throw py::value_error("kind: expected words, uniforms or normals, got " + name);
}

template <class T>
void fill_noise(NoiseKind kind, const Shape& shape, const Noise& noise, std::uint32_t purpose,
                void* out, int threads) {
  const HmcOps<T>& hmc = *ops<T>().hmc;
  if (kind == NoiseKind::words) {
    hmc.words(shape, noise, purpose, static_cast<std::uint32_t*>(out));
  } else if (kind == NoiseKind::uniforms) {
    hmc.uniforms(shape, noise, purpose, static_cast<T*>(out));
  } else {
    hmc.normals(shape, noise, purpose, static_cast<T*>(out), threads);
  }
}

void noise(const std::string& kind, bool is_double, std::uint32_t purpose, std::int64_t observations,
           std::int64_t chains, std::int64_t size, std::uint64_t seed, Address transition,
           Address observation, Address out, int threads) {
  const Shape shape{observations, chains, size};
  require_shape(shape);
  if (is_empty(shape)) return;
  require_address(out, "out");
  const Noise noise = noise_of(seed, transition, observation, observations);
  auto fill = is_double ? fill_noise<double> : fill_noise<float>;
  fill(noise_kind_of(kind), shape, noise, purpose, at<void>(out), threads);
}

void noise_on_device(const std::string& kind, bool is_double, std::uint32_t purpose,
                     std::int64_t observations, std::int64_t chains, std::int64_t size,
                     std::uint64_t seed, Address transition, Address observation, Address out,
                     Address stream) {
#if defined(COGEN_WITH_CUDA)
  require_shape({observations, chains, size});
  require_address(out, "out");
  const char* error = noise_cuda({noise_kind_of(kind), is_double, purpose, seed, observations,
                                  chains, size, at<const std::int64_t>(transition),
                                  at<const std::int64_t>(observation), at<void>(out),
                                  at<void>(stream)});
  if (error) throw std::runtime_error(std::string("noise_cuda: ") + error);
#else
  (void)kind, (void)is_double, (void)purpose, (void)observations, (void)chains, (void)size;
  (void)seed, (void)transition, (void)observation, (void)out, (void)stream;
  throw std::runtime_error("noise_cuda: this extension was built without CUDA");
#endif
}

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

template <class T, Layer<T> kLayer>
void def_layer(py::module_& module, const std::string& name, const std::string& suffix) {
  module.def((name + "_arena" + suffix).c_str(), &layer_arena<T, kLayer>, ReleaseGil());
  module.def((name + suffix).c_str(), &layer_forward<T, kLayer>, ReleaseGil());
  module.def((name + "_grad" + suffix).c_str(), &layer_backward<T, kLayer>, ReleaseGil());
}

template <class T>
void bind_ops(py::module_& module, const std::string& suffix) {
  module.def(("initial_latents" + suffix).c_str(), &initial_latents<T>, ReleaseGil());
  module.def(("begin_trajectory" + suffix).c_str(), &begin_trajectory<T>, ReleaseGil());
  module.def(("continue_trajectory" + suffix).c_str(), &continue_trajectory<T>, ReleaseGil());
  module.def(("accept_select" + suffix).c_str(), &accept_select<T>, ReleaseGil());
  module.def(("misfit" + suffix).c_str(), &misfit<T>, ReleaseGil());
  module.def(("norm" + suffix).c_str(), &norm<T>, ReleaseGil());
  module.def(("norm_grad" + suffix).c_str(), &norm_grad<T>, ReleaseGil());
  def_layer<T, &ProgressiveOps<T>::convolution>(module, "convolve", suffix);
  def_layer<T, &ProgressiveOps<T>::upsampling>(module, "upsample", suffix);
  module.def(("colour_misfit" + suffix).c_str(), &colour_misfit<T>, ReleaseGil());
  // These release the GIL themselves.
  module.def(("anneal_mlp" + suffix).c_str(), &anneal_mlp<T>);
  module.def(("anneal_mlp_cuda" + suffix).c_str(), &anneal_mlp_on_device<T>);
}

}  // namespace
}  // namespace cogen

PYBIND11_MODULE(_native, module) {
  cogen::bind_ops<float>(module, "_f32");
  cogen::bind_ops<double>(module, "_f64");
  module.def("adapt_step_size", &cogen::adapt_step_size, cogen::ReleaseGil());
  module.def("systematic_ancestors", &cogen::systematic_ancestors, cogen::ReleaseGil());
  module.def("observation_uniforms", &cogen::observation_uniforms, cogen::ReleaseGil());
  module.def("noise", &cogen::noise, cogen::ReleaseGil());
  module.def("noise_cuda", &cogen::noise_on_device, cogen::ReleaseGil());
  module.def("build_info", &cogen::build_info);
  module.def("set_isa", &cogen::set_isa);
}
