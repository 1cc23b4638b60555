#include "common/instruction_sets.h"

#include <atomic>
#include <vector>

namespace py = pybind11;

namespace cogen {
namespace {

struct Isa {
  const char* name;
  CpuOps<float> ops_float;
  CpuOps<double> ops_double;
};

const Isa kPlain{"plain",
                 {&plain::hmc_float, &plain::misfit_float, &plain::published_float,
                  &plain::progressive_float, &plain::convolution_float},
                 {&plain::hmc_double, &plain::misfit_double, &plain::published_double,
                  &plain::progressive_double, &plain::convolution_double}};
#if defined(COGEN_WITH_AVX2)
const Isa kAvx2{"avx2",
                {&avx2::hmc_float, &avx2::misfit_float, &avx2::published_float,
                 &avx2::progressive_float, &avx2::convolution_float},
                {&avx2::hmc_double, &avx2::misfit_double, &avx2::published_double,
                 &avx2::progressive_double, &avx2::convolution_double}};
// Matrix products alone are faster for longer vectors.
const Isa kAvx512{"avx512",
                  {&avx2::hmc_float, &avx2::misfit_float, &avx2::published_float,
                   &avx512::progressive_float, &avx2::convolution_float},
                  {&avx2::hmc_double, &avx2::misfit_double, &avx2::published_double,
                   &avx512::progressive_double, &avx2::convolution_double}};
#endif

std::vector<const Isa*> built() {
  return {
      &kPlain,
#if defined(COGEN_WITH_AVX2)
      &kAvx2,
      &kAvx512,
#endif
  };
}

std::vector<const Isa*> usable() {
  std::vector<const Isa*> found{&kPlain};
#if defined(COGEN_WITH_AVX2)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
  found.push_back(&kAvx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&kAvx512);
  }
#endif
  return found;
}

std::atomic<const Isa*> current{usable().back()};

py::tuple names(const std::vector<const Isa*>& isas) {
  py::list list;
  for (const Isa* isa : isas) list.append(isa->name);
  return py::tuple(list);
}

}  // namespace

template <>
const CpuOps<float>& ops<float>() {
  return current.load(std::memory_order_relaxed)->ops_float;
}
template <>
const CpuOps<double>& ops<double>() {
  return current.load(std::memory_order_relaxed)->ops_double;
}

py::tuple built_isas() { return names(built()); }
py::tuple usable_isas() { return names(usable()); }
const char* current_isa() { return current.load()->name; }

void set_isa(const std::string& name) {
  for (const Isa* isa : usable()) {
    if (name == isa->name) {
      current = isa;
      return;
    }
  }
  throw py::value_error("isa: " + name + " was not built or cannot run on this CPU");
}

}  // namespace cogen
