// The emulated GPU, as launch.h describes one.
#include "cuda/launch.h"

namespace erd {

CudaDevice cuda_device(int32_t index, void* stream) {
  const int capability = emulation::emulated_compute_capability();
  // Two multiprocessors: kernels that loop over the work that is left have to loop.
  return {index, capability, capability, 2, emulation::shared_limit(capability), stream};
}

}  // namespace erd
