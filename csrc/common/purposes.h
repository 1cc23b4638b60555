// What a draw is for: the highest eight bits of the first word of a noise counter, whose other 24 number
// the blocks of four dimensions. The definition is `Purpose` in cogen_fast/ops/philox.py;
// tests/test_philox.py holds these numbers to it.
#pragma once

#include <cstdint>

namespace cogen {

constexpr std::uint32_t kLatentPurpose = 0;
constexpr std::uint32_t kMomentumPurpose = 1;
constexpr std::uint32_t kAcceptPurpose = 2;
constexpr std::int64_t kLargestPurpose = 255;
constexpr int kPurposeShift = 24;

}  // namespace cogen
