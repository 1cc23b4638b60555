// The z-gradient of a progressive GAN on CPU, but for the dense layer.
// Compiled once per instruction set (COGEN_ISA), as hmc_cpu.cpp is.
#include "progressive/pixel_norm.h"
#include "progressive/to_rgb_misfit.h"
#include "common/parallel.h"
#include "progressive/upsampled.h"
#include "progressive/winograd.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

// `x` is (pixels, channels): const T* for an activation, scratch for its gradient.
template <class X, class Finish>
void finish_all(int64_t pixels, X x, const Finish& to, int threads) {
  for_each_unit(pixels, threads_for(pixels * to.channels, pixels, threads),
                [&](int64_t pixel) { finish(to, x + pixel * to.channels, pixel); });
}

template <class T>
constexpr ProgressiveOps<T> kOps{
    finish_all<const T*, PixelNorm<T>>,
    finish_all<T*, PixelNormGrad<T>>,
    {convolve_arena<T>, convolve<T, PixelNorm<T>>, convolve<T, PixelNormGrad<T>>},
    {upsample_arena<T>, upsample<T>, upsample_grad<T>},
    to_rgb_arena<T>,
    to_rgb_bands<T>,
    to_rgb_misfit<T>,
};

}  // namespace

extern const ProgressiveOps<float> progressive_float = kOps<float>;
extern const ProgressiveOps<double> progressive_double = kOps<double>;

}  // namespace COGEN_ISA
}  // namespace cogen
