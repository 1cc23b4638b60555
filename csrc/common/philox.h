// Counter-based noise for host and device. The definition is cogen_fast/ops/philox.py: the integers
// are those of Philox-4x32-10 (Salmon et al., 2011) and of Triton's tl.philox; the maps from
// integers to uniforms and normals are this package's own.
//
// Everything here is inline, in a namespace that is named after the instruction set of the
// including file. Otherwise the linker could keep a function's code for one instruction set and use
// it for all.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef COGEN_ISA
#error "COGEN_ISA must name the namespace of this translation unit"
#endif

// COGEN_HD is for small functions, COGEN_HD_LARGE for those that a CPU's compiler may call instead
// of inlining. On a device both are inlined, because an array that is passed to a call cannot stay
// in registers; COGEN_HD_CALLED is for functions that take no arrays and are called from many
// places.
#if defined(__CUDACC__)
#define COGEN_HD __host__ __device__ __forceinline__
#define COGEN_HD_LARGE COGEN_HD
#define COGEN_HD_CALLED inline __host__ __device__ __noinline__
#elif defined(__GNUC__)
// Loops over these functions are vectorised only if they are inlined, so the compiler's limits on
// inlining are overruled.
#define COGEN_HD inline __attribute__((always_inline))
#define COGEN_HD_LARGE inline
#define COGEN_HD_CALLED inline
#else
#define COGEN_HD inline
#define COGEN_HD_LARGE inline
#define COGEN_HD_CALLED inline
#endif

namespace cogen {
namespace COGEN_ISA {

struct Words {
  uint32_t w[4];
};

// One block of noise: four words from the counter (c0, c1, c2, c3) and a 64-bit key, low word
// first.
COGEN_HD Words philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// A uniform from the upper 23 bits of a word: an odd multiple of 2^-24, which is exact in float and
// never 0 or 1. The cast goes through a signed integer because AVX2 has no conversion from
// unsigned.
template <class T>
COGEN_HD T to_uniform(uint32_t word) {
  return (static_cast<T>(static_cast<int32_t>(word >> 9)) + T(0.5)) * T(1.0 / 8388608.0);
}

COGEN_HD float float_of(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

COGEN_HD int32_t bits_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// log u for u in (0, 1), within 2 float roundings: u = m 2^e with m in [sqrt(1/2), sqrt(2)), then
// a minimax polynomial in m - 1. There is no branch and no call, so that loops over it vectorise.
COGEN_HD float log_of_uniform(float u) {
  const int32_t e = (bits_of(u) - 0x3f3504f3) >> 23;
  const float f = float_of(bits_of(u) - e * (1 << 23)) - 1.0f;
  float p = 6.746643496e-02f;
  p = p * f - 1.167565631e-01f;
  p = p * f + 1.188816338e-01f;
  p = p * f - 1.240558831e-01f;
  p = p * f + 1.421955215e-01f;
  p = p * f - 1.666799588e-01f;
  p = p * f + 2.000211867e-01f;
  p = p * f - 2.500000960e-01f;
  p = p * f + 3.333331260e-01f;
  const float square = f * f;
  const float exponent = static_cast<float>(e);
  // ln 2 in two parts: the first has few enough bits for an exact product with e.
  const float tail = exponent * -2.12194440e-4f + (square * f * p - 0.5f * square);
  return exponent * 0.693359375f + (tail + f);
}

COGEN_HD double log_of_uniform(double u) { return log(u); }

// cos and sin of t turns, t in (0, 1). The reduction to an eighth of a turn is exact because t has
// 24 bits; minimax polynomials and a selection by quadrant follow.
COGEN_HD void cos_sin_turns(float t, float* cosine, float* sine) {
  const int32_t quadrant = static_cast<int32_t>(4.0f * t + 0.5f);
  const float r = t - 0.25f * static_cast<float>(quadrant);
  const float s = r * r;
  float p = -7.524006298e+01f, q = 5.924596344e+01f;
  p = p * s + 8.158812461e+01f;
  q = q * s - 8.544374171e+01f;
  p = p * s - 4.134162804e+01f;
  q = q * s + 6.493932647e+01f;
  p = p * s + 6.283185220e+00f;
  q = q * s - 1.973920869e+01f;
  const int32_t sin_r = bits_of(p * r), cos_r = bits_of(q * s + 1.0f);
  const int32_t swap = -(quadrant & 1);
  const int32_t cos_sign = ((quadrant + 1) & 2) << 30, sin_sign = (quadrant & 2) << 30;
  *cosine = float_of(((sin_r & swap) | (cos_r & ~swap)) ^ cos_sign);
  *sine = float_of(((cos_r & swap) | (sin_r & ~swap)) ^ sin_sign);
}

COGEN_HD void cos_sin_turns(double t, double* cosine, double* sine) {
  const double angle = 6.283185307179586 * t;
  *cosine = cos(angle);
  *sine = sin(angle);
}

COGEN_HD float square_root(float value) { return sqrtf(value); }
COGEN_HD double square_root(double value) { return sqrt(value); }

// Two standard normals by Box-Muller.
template <class T>
COGEN_HD void normal_pair(uint32_t radius_word, uint32_t turn_word, T* first, T* second) {
  const T radius = square_root(T(-2) * log_of_uniform(to_uniform<T>(radius_word)));
  T cosine, sine;
  cos_sin_turns(to_uniform<T>(turn_word), &cosine, &sine);
  *first = radius * cosine;
  *second = radius * sine;
}

}  // namespace COGEN_ISA
}  // namespace cogen
