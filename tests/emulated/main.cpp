// Runs what a CUDA device would run on an emulated one, against the CPU. Status 1 and a line for
// each failed case.
#include <cstdio>

#include "checks.h"
#include "support.h"

int main() {
  using namespace cogen::driver;
  check_emulated_published();
  printf("%lld cases, %d failures\n", static_cast<long long>(cases_begun()), failures());
  return failures() == 0 ? 0 : 1;
}
