// Convolutions of users' generators on the CPU, without their matrix products. Compiled once for
// each instruction set, as hmc_cpu.cpp is.
#include "convolution/tap_sums.h"
#include "convolution/winograd_tiles.h"

namespace cogen {
namespace COGEN_ISA {
namespace {

template <class T>
constexpr ConvolutionOps<T> kOps{fill_operands<T>, finish_results<T, PixelNorm<T>>,
                                 finish_results<T, PixelNormGrad<T>>, sum_taps<T>};

}  // namespace

extern const ConvolutionOps<float> convolution_float = kOps<float>;
extern const ConvolutionOps<double> convolution_double = kOps<double>;

}  // namespace COGEN_ISA
}  // namespace cogen
