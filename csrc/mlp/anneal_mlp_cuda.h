// Runs for a generator of dense layers in one launch each on a CUDA device.
#pragma once

#include <string>

#include "common/kernels.h"

namespace cogen {

// Enqueues the run on the stream of the current device, which must be number `device`. All arrays
// are the device's; `rule` is the host's. Empty, or what went wrong.
std::string anneal_mlp_cuda(const MlpRun<float>& run, int device, void* stream);
std::string anneal_mlp_cuda(const MlpRun<double>& run, int device, void* stream);

}  // namespace cogen
