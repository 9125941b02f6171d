// The GPU that a call runs on and the stream that its caller works in.
#pragma once

#include "cuda/cuda_device.h"

namespace erd::ops {

// GPU `index` with torch's current stream of the calling thread, so that kernels take their place
// among torch's own, captured graphs and `with torch.cuda.stream(...)` included.
CudaDevice current_cuda_device(int32_t index);

}  // namespace erd::ops
