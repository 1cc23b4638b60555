#include "mlp/anneal_mlp_launch.h"

namespace cogen {

std::string anneal_mlp_cuda(const MlpRun<float>& run, int device, void* stream) {
  return anneal_on_device(run, device, stream);
}

}  // namespace cogen
