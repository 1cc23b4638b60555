// Runs the code of a CUDA device on an emulated one and compares it with the CPU. The status is 1,
// with a line for each failed case, if any case fails.
#include <cstdio>

#include "checks.h"
#include "support.h"

int main() {
  using namespace cogen::driver;
  check_emulated_published();
  printf("%lld cases, %d failures\n", static_cast<long long>(cases_begun()), failures());
  return failures() == 0 ? 0 : 1;
}
