// The published run for a generator of dense layers on a CUDA device, for the bindings.
#pragma once

#include <string>

#include "common/kernels.h"

namespace cogen {

// Enqueues the run on a stream of the current device, which must have the number `device`. All
// arrays are in the memory of the device; `rule` is in that of the host. Returns what went wrong,
// or nothing.
std::string anneal_mlp_cuda(const MlpRun<float>& run, int device, void* stream);
std::string anneal_mlp_cuda(const MlpRun<double>& run, int device, void* stream);

}  // namespace cogen
