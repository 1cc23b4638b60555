// The kernels and their arguments. The kernels for one instruction set are tables of plain function
// pointers. There is no inline function here: the linker could keep its code for one instruction
// set and use it for all.
//
// Arrays are dense and row-major: B observations x N chains x d dimensions. None overlap, except
// where a comment says so.
#pragma once

#include <stdint.h>

namespace cogen {

struct Shape {
  int64_t observations, chains, size;
};

// Where the noise of B observations stands: the key, and two words of each one's counter, (B,),
// which have been verified to fit in 32 bits.
struct Noise {
  uint64_t seed;
  const int64_t* transition;
  const int64_t* observation;
};

// What a transition is made with. The potential is beta E + prior_weight |z|^2 / 2.
template <class T>
struct Settings {
  const double* beta;          // (B,)
  const double* prior_weight;  // (B,)
  const double* step_size;     // (B, steps_each)
  int64_t steps_each;          // step sizes of an observation: 1, or one for each of its N chains
  const T* inverse_mass;       // (B, d), or null for the identity
  const bool* active;          // (B,), which observations move, or null for all
};

template <class T>
struct State {
  const T* latents;      // (B, N, d)
  const double* energy;  // (B, N)
  const T* grad;         // (B, N, d)
};

template <class T>
struct Proposal {
  T* position;          // (B, N, d)
  T* momentum;          // (B, N, d)
  double* hamiltonian;  // (B, N)
};

// What is left after the Metropolis test, of the shapes of State, and what happened in it, (B, N).
template <class T>
struct Selected {
  T* latents;
  double* energy;
  T* grad;
  double* probability;
  bool* accepted;
  double* change;
};

// The constants of the published step-size rule.
struct StepRule {
  double target, decay, increase, decrease, minimum, maximum;
};

// One application of that rule.
struct Adaptation {
  const double* step_size;    // (B,)
  const double* running;      // (B,)
  const double* probability;  // (B, N)
  const bool* active;         // (B,) or null
  StepRule rule;
  double* new_step_size;
  double* new_running;
};

template <class T>
struct HmcOps {
  // All four words of each block of noise, (B, N, ceil(d/4), 4).
  void (*words)(const Shape&, const Noise&, uint32_t purpose, uint32_t* out);
  void (*uniforms)(const Shape&, const Noise&, uint32_t purpose, T* out);
  void (*normals)(const Shape&, const Noise&, uint32_t purpose, T* out, int threads);
  void (*begin_trajectory)(const Shape&, const Noise&, const Settings<T>&, const State<T>&,
                           const Proposal<T>&, int threads);
  void (*continue_trajectory)(const Shape&, const Settings<T>&, const Proposal<T>&, const T* grad,
                              int threads);
  void (*accept_select)(const Shape&, const Noise&, const Settings<T>&, const State<T>& current,
                        const Proposal<T>&, const State<T>& proposed, const Selected<T>&,
                        int threads);
  void (*adapt_step_size)(int64_t observations, int64_t chains, const Adaptation&);
};

enum class MisfitKind { mask, pool, stride };

// The misfit of n outputs (C, H, W), of each of which M values are measured, with B observations.
// For the kind `mask` an output counts as (1, 1, M). A stride is 0 if one row serves all
// observations.
template <class T>
struct Misfit {
  MisfitKind kind;
  int64_t rows, channels, height, width, factor, measured;
  const T* outputs;            // (n, C, H, W)
  const int64_t* observation;  // (n,), already checked
  const T* target;             // (B, M)
  const uint8_t* mask;         // (1 or B, M) or null
  int64_t mask_stride;
  const T* weight;  // (1 or B, 1 or M)
  int64_t weight_stride;
  bool weight_elementwise;
  double* energy;    // (n,)
  T* grad;           // (n, C, H, W)
  double* partials;  // (n, segments), or null for one segment
  int64_t segments;
};

template <class T>
struct MisfitOps {
  int64_t (*segments)(const Misfit<T>&);
  void (*misfit)(const Misfit<T>&, int threads);
};

// --- a progressive GAN, whose images are channels last: (images, height, width, channels) --------

constexpr double kNormEpsilon = 1e-8;  // Karras et al. 2018, section 4.2

// Bias, leaky ReLU and, if `scale` is not null, pixel norm.
template <class T>
struct PixelNorm {
  int64_t channels;
  const T* bias;  // (channels,)
  T slope;
  T* out;    // (pixels, channels)
  T* scale;  // (pixels,), what the norm multiplies by, or null
};

// The gradient of the same, from what it wrote.
template <class T>
struct PixelNormGrad {
  int64_t channels;
  T slope;
  const T* out;
  const T* scale;
  const T* extra;  // (pixels, channels), is added to the gradient with respect to `out`, or null
  T* grad;         // (pixels, channels), may be the memory of `out`
};

// `count` images of height x width cells. A cell is 2x2 pixels, or one pixel before upsampling.
struct Cells {
  int64_t count, height, width;
};

// A panel is the packed weights of neighbouring outputs, with so many bytes for each input.
constexpr int64_t kPanelBytes = 64;

// The weights of a 3x3 convolution as packed matrices (in, out), see matrix_products.h: 16 of them
// for winograd.h, 9 for upsampled.h. Images are multiplied by them in a transformed form.
template <class T>
struct Kernel3x3 {
  const T* packed;
  int64_t in, out;
};

// The 1x1 convolution to the channels of an image (Karras et al.'s toRGB), and tanh or not.
template <class T>
struct ToRgb {
  const T* weight;  // (image channels, channels)
  const T* bias;    // (image channels,)
  bool bounded;
};

// A 3x3 convolution with what follows it, and its backward pass. `forward` goes from images of
// `in` channels to the activation of `out`. `backward` goes from the gradient with respect to the
// convolution's output to that with respect to the output of the convolution before; its kernel is
// made for that. `zeros` holds a zero for each channel of the images read; the memory `arena` has
// as many numbers as the function of that name returns.
template <class T>
struct LayerOps {
  int64_t (*arena)(const Cells&, int64_t in, int64_t out);
  void (*forward)(const Cells&, const T* images, const Kernel3x3<T>&, const PixelNorm<T>&,
                  const T* zeros, T* arena, int threads);
  void (*backward)(const Cells&, const T* grad, const Kernel3x3<T>&, const PixelNormGrad<T>&,
                   const T* zeros, T* arena, int threads);
};

template <class T>
struct ProgressiveOps {
  void (*norm)(int64_t pixels, const T* x, const PixelNorm<T>&, int threads);
  void (*norm_grad)(int64_t pixels, T* x, const PixelNormGrad<T>&, int threads);
  LayerOps<T> convolution;
  LayerOps<T> upsampling;  // from cells of one pixel to cells of 2x2
  // The misfit of images that are computed but not stored: its `outputs` and `grad` are not used.
  int64_t (*to_rgb_arena)(const Misfit<T>&, int64_t channels, int threads);
  int64_t (*to_rgb_bands)(const Misfit<T>&);
  void (*to_rgb_misfit)(const Misfit<T>&, const ToRgb<T>&, const PixelNormGrad<T>&, T* arena,
                        int threads);
};

// --- convolutions of users' generators, of channels-last images: csrc/convolution ----------------

// The tiles of `count` images, high x wide for each, for correlations with `taps` taps along each
// side. A tile has `outputs` pixels along each side after the products, and outputs + taps - 1
// before them: pixel (r, c) of tile (i, j) is in row step (outputs i + r) + top and column step
// (outputs j + c) + left of its image.
struct TileGrid {
  int64_t count, high, wide, taps, outputs;
  int64_t step, top, left;

  int64_t tiles() const { return count * high * wide; }
};

// `count` images of height x width pixels.
struct Extent {
  int64_t count, height, width;
};

// Images of height x width pixels to read; pixels outside are zeros.
template <class T>
struct TileImages {
  const T* first;
  int64_t height, width, channels;
};

// `fill` writes the operands (slots, tiles, stride) of the products from `to` on, as many as the
// images have channels for each slot and tile. `finish` turns results (slots, tiles, channels) into
// those pixels of an activation of height x width pixels that lie inside; `finish_grad` does so for
// a gradient. `zeros` holds a zero for each channel; `pixels` is memory for a tile of each thread.
//
// `sum_taps` adds up the products (count, height, width, 16, channels) of each input pixel with the
// weights of a transposed convolution of stride 2 in order, to an activation of twice the height and
// width without a norm.
template <class T>
struct ConvolutionOps {
  void (*fill)(const TileGrid&, const TileImages<T>&, const T* zeros, T* to, int64_t stride,
               int threads);
  void (*finish)(const TileGrid&, const T* results, const PixelNorm<T>&, int64_t height,
                 int64_t width, T* pixels, int threads);
  void (*finish_grad)(const TileGrid&, const T* results, const PixelNormGrad<T>&, int64_t height,
                      int64_t width, T* pixels, int threads);
  void (*sum_taps)(const Extent&, const T* products, const PixelNorm<T>&, int threads);
};

// --- a generator of dense layers -----------------------------------------------------------------

constexpr int kMostLayers = 8, kMostWidth = 256;
// Widths are padded with zeros to multiples of this, which fill whole vectors.
constexpr int kPadding = 8;

enum class Activation : int { identity, relu, leaky_relu, tanh, sigmoid, softplus, elu };

// Layer k maps width[k] units to width[k + 1]. `weight` is (in, padded out) and `back` its
// transpose (out, padded in), so that forwards and backwards neighbouring outputs of a product have
// neighbouring weights. `bias` is (padded out,).
template <class T>
struct Mlp {
  int layers;
  int width[kMostLayers + 1];
  Activation activation[kMostLayers];
  T slope;  // of the leaky ReLU
  const T* weight[kMostLayers];
  const T* bias[kMostLayers];
  const T* back[kMostLayers];
};

// What is observed of B outputs of M values. A stride is 0 if one row serves all observations.
template <class T>
struct MlpObserved {
  const T* target;  // (B, M)
  const uint8_t* mask;  // (1 or B, M) or null
  int64_t mask_stride;
  const T* weight;  // (1 or B, 1 or M)
  int64_t weight_stride;
  bool weight_elementwise;
};

// A part of the published run: `steps` temperatures, which follow the inverse temperature `beta`.
// The arrays of the state are read and written.
template <class T>
struct MlpRun {
  Shape shape;
  Mlp<T> net;
  MlpObserved<T> observed;
  Noise noise;          // before the first transition
  T* latents;           // (B, N, d)
  double* energy;       // (B, N)
  T* grad;              // (B, N, d)
  double* log_weights;  // (B, N) or null
  double* step_size;    // (B,), or (B, N) where step_per_chain
  double* running;      // running acceptance rate, of the shape of step_size
  int64_t* non_finite;  // (B, N)
  double beta;
  const double* betas;  // (steps,)
  int64_t steps, hmc_steps, leapfrog_steps;
  bool paper_form, step_per_chain;
  const StepRule* rule;  // null if step sizes stay as they are
  double *acceptance, *step_used, *energy_mean, *energy_std;  // (steps, B) each
  T* trace;                                                    // (steps, B, N, d) or null
};

// `arena` has as many bytes as `arena_bytes` returns, aligned to 64.
template <class T>
struct PublishedOps {
  int64_t (*arena_bytes)(const MlpRun<T>&, int threads);
  void (*anneal)(const MlpRun<T>&, char* arena, int threads);
};

template <class T>
struct CpuOps {
  const HmcOps<T>* hmc;
  const MisfitOps<T>* misfit;
  const PublishedOps<T>* published;
  const ProgressiveOps<T>* progressive;
  const ConvolutionOps<T>* convolution;
};

// Systematic resampling, see cogen_fast/ops/reference.py; `wanted` is null if all observations are
// resampled.
void systematic(int64_t observations, int64_t chains, const double* log_weights,
                const double* uniform, const bool* wanted, int64_t* out);

#define COGEN_DECLARE_ISA(isa)                            \
  namespace isa {                                         \
  extern const HmcOps<float> hmc_float;                   \
  extern const HmcOps<double> hmc_double;                 \
  extern const MisfitOps<float> misfit_float;             \
  extern const MisfitOps<double> misfit_double;           \
  extern const PublishedOps<float> published_float;       \
  extern const PublishedOps<double> published_double;     \
  extern const ProgressiveOps<float> progressive_float;   \
  extern const ProgressiveOps<double> progressive_double; \
  extern const ConvolutionOps<float> convolution_float;   \
  extern const ConvolutionOps<double> convolution_double; \
  }

COGEN_DECLARE_ISA(plain)
#if defined(COGEN_WITH_AVX2)
COGEN_DECLARE_ISA(avx2)
namespace avx512 {  // the others are those of avx2
extern const ProgressiveOps<float> progressive_float;
extern const ProgressiveOps<double> progressive_double;
}  // namespace avx512
#endif

#undef COGEN_DECLARE_ISA

}  // namespace cogen
