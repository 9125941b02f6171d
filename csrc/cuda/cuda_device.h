// Which GPU to work on, for code that asks for kernels but contains none.
#pragma once

#include <cstdint>

namespace erd {

// One GPU and the stream to work on. Nothing here synchronises.
struct CudaDevice {
  int32_t index;
  int32_t compute_capability;  // 10 * major + minor: 90 is Hopper
  // What the kernels that run on it were written for: a library made for older GPUs alone, 75, runs
  // there without what newer ones have.
  int32_t code_capability;
  int32_t multiprocessors;
  int64_t shared_bytes;  // most dynamic shared memory that a block may ask for
  void* stream;          // cudaStream_t
};

// Properties of GPU `index`, with `stream`. Asked of the driver once.
CudaDevice cuda_device(int32_t index, void* stream);

}  // namespace erd
