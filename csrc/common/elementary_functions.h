// exp, expm1 and log1p: for float without branches or calls, so that loops over them vectorise; for
// double those of the library.
#pragma once

#include "common/philox.h"

namespace cogen {
namespace COGEN_ISA {

// exp x = scale (1 + part): x = n ln 2 + r with |r| <= ln(2) / 2, scale = 2^n, part = exp r - 1.
struct ExpParts {
  float scale, part;
};

COGEN_HD ExpParts exp_parts(float x) {
  // Beyond these limits the result is 0 or infinite in float, or so close that it makes no
  // difference.
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  // 1.5 * 2^23 is so large that the sum is rounded to a whole number.
  const float shifted = x * 1.442695041f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r * r + r;
  // The last bits of `shifted` are those of n. If x is NaN, they are of no use, but p is NaN too.
  const uint32_t exponent = static_cast<uint32_t>(bits_of(shifted)) + 127u;
  return {float_of(static_cast<int32_t>(exponent << 23)), p};
}

COGEN_HD float exp_of(float x) {
  const ExpParts e = exp_parts(x);
  return e.scale * e.part + e.scale;
}

COGEN_HD float expm1_of(float x) {
  const ExpParts e = exp_parts(x);
  return e.scale * e.part + (e.scale - 1.0f);
}

// log(1 + x) for x in [0, 1]; the rounding error of 1 + x is corrected to first order.
COGEN_HD float log1p_of(float x) {
  const float u = 1.0f + x, rest = x - (u - 1.0f);
  return log_of_uniform(u) + rest / u;
}

COGEN_HD double exp_of(double x) { return exp(x); }
COGEN_HD double expm1_of(double x) { return expm1(x); }
COGEN_HD double log1p_of(double x) { return log1p(x); }

}  // namespace COGEN_ISA
}  // namespace cogen
