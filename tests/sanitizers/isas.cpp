// The instruction sets that were built and that this CPU has.
#include "support.h"

namespace cogen {
namespace driver {
namespace {

static_assert(sizeof(CpuOps<float>) == 5 * sizeof(void*),
              "CpuOps has changed: each table needs a file of checks");

CpuOps<float> plain_ops(float) {
  return {&plain::hmc_float, &plain::misfit_float, &plain::published_float,
          &plain::progressive_float, &plain::convolution_float};
}
CpuOps<double> plain_ops(double) {
  return {&plain::hmc_double, &plain::misfit_double, &plain::published_double,
          &plain::progressive_double, &plain::convolution_double};
}
#if defined(COGEN_WITH_AVX2)
CpuOps<float> avx2_ops(float) {
  return {&avx2::hmc_float, &avx2::misfit_float, &avx2::published_float,
          &avx2::progressive_float, &avx2::convolution_float};
}
CpuOps<double> avx2_ops(double) {
  return {&avx2::hmc_double, &avx2::misfit_double, &avx2::published_double,
          &avx2::progressive_double, &avx2::convolution_double};
}
CpuOps<float> avx512_ops(float) {
  CpuOps<float> ops = avx2_ops(0.0f);
  ops.progressive = &avx512::progressive_float;
  return ops;
}
CpuOps<double> avx512_ops(double) {
  CpuOps<double> ops = avx2_ops(0.0);
  ops.progressive = &avx512::progressive_double;
  return ops;
}
#endif

}  // namespace

template <class T>
std::vector<Isa<T>> usable_isas() {
  std::vector<Isa<T>> isas{{"plain", plain_ops(T())}};
#if defined(COGEN_WITH_AVX2)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back({"avx2", avx2_ops(T())});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
      isas.push_back({"avx512", avx512_ops(T())});
    }
  }
#endif
  return isas;
}

template std::vector<Isa<float>> usable_isas();
template std::vector<Isa<double>> usable_isas();

}  // namespace driver
}  // namespace cogen
