// Transposed convolutions of stride 2 with 4x4 kernels on the CPU, without their matrix products.
// Compiled once for each instruction set, as hmc_cpu.cpp is.
#include "convolution/tap_sums.h"
#include "convolution/two_taps.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

template <class T>
constexpr TransposedOps<T> kOps{fill_two_taps<T>, finish_two_taps<T, PixelNorm<T>>,
                             finish_two_taps<T, PixelNormGrad<T>>, sum_taps<T>};

}  // namespace

extern const TransposedOps<float> transposed_float = kOps<float>;
extern const TransposedOps<double> transposed_double = kOps<double>;

}  // namespace COGEN_ISA
}  // namespace cogen
