// The layers of a progressive GAN on the CPU, and their backward pass, without the dense layer.
// Compiled once for each instruction set, as hmc_cpu.cpp is.
#include "common/parallel.h"
#include "progressive/pixel_norm.h"
#include "progressive/to_rgb_misfit.h"
#include "progressive/upsampled.h"
#include "progressive/winograd.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

// Finishes all pixels of `x`, (pixels, channels). X is const T* for an activation, and T* for its
// gradient, which overwrites it.
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
