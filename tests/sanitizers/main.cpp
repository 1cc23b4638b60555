// Calls every op of kernels.h on arrays of exactly their size.
//
//   PROGRAM               all checks; status 1 and a line for each failed case
//   PROGRAM FAULT [ISA]   one planted fault, see planted.cpp; it must not end with status 0
#include <cstdio>

#include "support.h"

int main(int argc, char** argv) {
  using namespace cogen::driver;
  if (argc > 1) return run_planted(argv[1], argc > 2 ? argv[2] : "plain");
  check_hmc();
  check_misfit();
  check_anneal();
  check_dense();
  check_progressive();
  check_convolution();
  for (const auto& isa : usable_isas<float>()) printf("isa: %s\n", isa.name);
  printf("%lld cases, %d failures\n", static_cast<long long>(cases_begun()), failures());
  return failures() == 0 ? 0 : 1;
}
