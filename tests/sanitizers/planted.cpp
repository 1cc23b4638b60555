// Planted faults, which show that the checks can fail.
//
//   overrun     an output one entry too short: AddressSanitizer, or the page after it, must see the
//               kernel write
//   overread    an input one entry too short: the same for a read
//   misaligned  an array at an odd address: UndefinedBehaviorSanitizer must see it
//   unwritten   an op that leaves its last chain unwritten: the driver's own checks must see it
#include <cstdio>

#include "support.h"

namespace cogen {
namespace driver {
namespace {

constexpr Shape kShape{2, 5, 7};
constexpr int64_t kChains = kShape.observations * kShape.chains, kEntries = kChains * kShape.size;

// Writes normals to `out`, for the planted faults of outputs.
void write_normals(const HmcOps<float>& hmc, float* out) {
  Array<int64_t> counters(kShape.observations, false);
  for (int64_t b = 0; b < kShape.observations; ++b) counters[b] = b;
  hmc.normals(kShape, {1, counters.data(), counters.data()}, 0, out, 1);
}

void overrun(const CpuOps<float>& ops) {
  Array<float> out(kEntries - 1, false);
  write_normals(*ops.hmc, out.data());
}

void overread(const CpuOps<float>& ops) {
  Array<double> settings(kShape.observations, false);
  Array<float> position(kEntries, false), momentum(kEntries, false), grad(kEntries - 1, false);
  for (int64_t b = 0; b < kShape.observations; ++b) settings[b] = 0.1;
  ops.hmc->continue_trajectory(
      kShape, {settings.data(), settings.data(), settings.data(), 1, nullptr, nullptr},
      {position.data(), momentum.data(), nullptr}, grad.data(), 1);
}

void misaligned(const CpuOps<float>& ops) {
  Array<char> bytes((kEntries + 1) * static_cast<int64_t>(sizeof(float)), false);
  write_normals(*ops.hmc, reinterpret_cast<float*>(bytes.data() + 1));
}

void all_but_the_last_chain(const Shape& shape, const Noise& noise, uint32_t purpose, float* out,
                            int threads) {
  plain::hmc_float.normals({shape.observations, shape.chains - 1, shape.size}, noise, purpose, out,
                           threads);
}

void unwritten(const CpuOps<float>& ops) {
  HmcOps<float> planted = *ops.hmc;
  planted.normals = all_but_the_last_chain;
  check_hmc_table(planted);
}

struct Fault {
  const char* name;
  void (*run)(const CpuOps<float>&);
};

constexpr Fault kFaults[] = {{"overrun", overrun},
                             {"overread", overread},
                             {"misaligned", misaligned},
                             {"unwritten", unwritten}};

}  // namespace

int run_planted(const std::string& fault, const std::string& isa_name) {
  for (const Isa<float>& isa : usable_isas<float>()) {
    if (isa_name != isa.name) continue;
    for (const Fault& each : kFaults) {
      if (fault != each.name) continue;
      begin_case("planted " + fault + " " + isa_name);
      each.run(isa.ops);
      return failures() == 0 ? 0 : 1;
    }
    fprintf(stderr, "no such fault: %s\n", fault.c_str());
    return kUsageStatus;
  }
  fprintf(stderr, "not built, or not on this CPU: %s\n", isa_name.c_str());
  return kUnusableStatus;
}

}  // namespace driver
}  // namespace cogen
