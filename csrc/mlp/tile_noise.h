// The noise of the chains of a tile: standard normals for their momenta, a uniform for each test.
// cogen_fast/ops/philox.py is the definition.
#pragma once

#include "common/philox.h"
#include "common/purposes.h"
#include "common/simd_pack.h"

namespace cogen {
namespace COGEN_ISA {

// The key of one observation's noise and the words of its counter that all its chains share.
struct NoiseStream {
  uint64_t seed;
  uint32_t transition, observation;
};

// Standard normals for four neighbouring dimensions of a tile's chains.
template <class T>
COGEN_HD_LARGE void normals_of(const NoiseStream& stream, uint32_t purpose, uint32_t block,
                               uint32_t first_chain, T (&out)[4][Lanes<T>::kCount]) {
  constexpr int lanes = Lanes<T>::kCount;
  uint32_t words[4][lanes];
  COGEN_SIMD
  for (int l = 0; l < lanes; ++l) {
    const Words w = philox(stream.seed, (purpose << kPurposeShift) | block, stream.transition,
                           first_chain + static_cast<uint32_t>(l), stream.observation);
    words[0][l] = w.w[0];
    words[1][l] = w.w[1];
    words[2][l] = w.w[2];
    words[3][l] = w.w[3];
  }
  COGEN_SIMD
  for (int l = 0; l < lanes; ++l) {
    normal_pair(words[0][l], words[1][l], &out[0][l], &out[1][l]);
    normal_pair(words[2][l], words[3][l], &out[2][l], &out[3][l]);
  }
}

// The uniform by which each chain of a tile accepts or rejects.
template <class T>
COGEN_HD_LARGE void draw_uniforms(const NoiseStream& stream, uint32_t first_chain,
                                  double (&out)[Lanes<T>::kCount]) {
  COGEN_SIMD
  for (int l = 0; l < Lanes<T>::kCount; ++l) {
    const Words w = philox(stream.seed, kAcceptPurpose << kPurposeShift, stream.transition,
                           first_chain + static_cast<uint32_t>(l), stream.observation);
    out[l] = to_uniform<double>(w.w[0]);
  }
}

}  // namespace COGEN_ISA
}  // namespace cogen
