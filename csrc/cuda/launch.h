// How a kernel reaches a GPU: a launch that reports its error. Implemented by launch.cu, and by the
// emulator.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "cuda/cuda_device.h"
#include "cuda/device.h"

namespace erd {

struct LaunchShape {
  int64_t blocks;
  int32_t threads;
  int64_t shared_bytes = 0;
};

// Bytes that SharedMemory::take<T>(count) uses up.
template <class T>
constexpr int64_t shared_size(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
}

// As many blocks as there is work, but no more than the device can hold: kernels loop over the
// rest.
inline int64_t grid_blocks(const CudaDevice& device, int64_t tiles, int64_t blocks_per_sm) {
  const int64_t most = blocks_per_sm * device.multiprocessors;
  return tiles < most ? tiles : most;
}

#if defined(__CUDACC__)

// Makes `kernel` ready for more than 48 KB of shared memory, launches it, and throws what the
// runtime has to say against it.
void launch_raw(const void* kernel, const CudaDevice& device, const LaunchShape& shape,
                void** arguments);

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const CudaDevice& device, const LaunchShape& shape,
            Parameters... parameters) {
  void* arguments[] = {&parameters...};
  launch_raw(reinterpret_cast<const void*>(kernel), device, shape, arguments);
}

#else

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const CudaDevice& device, const LaunchShape& shape,
            Parameters... parameters) {
  emulation::run(device.compute_capability, shape.blocks, shape.threads, shape.shared_bytes,
                 [&] { kernel(parameters...); });
}

#endif

}  // namespace erd
