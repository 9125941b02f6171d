#include <cuda_runtime.h>

#include <mutex>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace erd {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("erd_cuda: ") + what +
                           " failed: " + cudaGetErrorString(status));
}

int32_t attribute(cudaDeviceAttr which, int32_t index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, index), "asking the GPU for its properties");
  return value;
}

// Stands for all kernels that are compiled for the same architectures.
__global__ void any_kernel() {}

// The calling thread's current device, put back at the end of a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index) {
    check(cudaGetDevice(&before_), "asking for the current GPU");
    if (before_ != index) check(cudaSetDevice(index), "switching to another GPU");
    changed_ = before_ != index;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace

CudaDevice cuda_device(int32_t index, void* stream) {
  static std::mutex mutex;
  static std::vector<CudaDevice> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto position = static_cast<size_t>(index);
  if (known.size() <= position) known.resize(position + 1, CudaDevice{-1, 0, 0, 0, 0, nullptr});
  CudaDevice& device = known[position];
  if (device.index < 0) {
    const int32_t major = attribute(cudaDevAttrComputeCapabilityMajor, index);
    const int32_t minor = attribute(cudaDevAttrComputeCapabilityMinor, index);
    const DeviceGuard guard(index);
    cudaFuncAttributes code = {};
    check(cudaFuncGetAttributes(&code, any_kernel), "looking for kernels for this GPU");
    device = {index,
              10 * major + minor,
              code.ptxVersion,
              attribute(cudaDevAttrMultiProcessorCount, index),
              attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
              nullptr};
  }
  CudaDevice result = device;
  result.stream = stream;
  return result;
}

void launch_raw(const void* kernel, const CudaDevice& device, const LaunchShape& shape,
                void** arguments) {
  const DeviceGuard guard(device.index);
  if (shape.shared_bytes > 48 * 1024) {
    // The limit belongs to the kernel, not to this launch: always the same, lest one thread lowers
    // it under another one's launch.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(device.shared_bytes)),
          "asking for shared memory");
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(device.stream);
  check(cudaLaunchKernelExC(&config, kernel, arguments), "launching a kernel");
}

}  // namespace erd
