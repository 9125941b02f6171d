// What stands in the CPU kernels' place in the emulated operator library: the CUDA kernels, on the
// emulated GPU. The operators are those of a build without CUDA, for CPU tensors.
#include <stdexcept>

#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace erd {
namespace {

template <class Call, void (*Kernel)(const Call&, const CudaDevice&)>
void emulate(const Call& call, ParallelFor) {
  Kernel(call, cuda_device(0, nullptr));
}

// What only the CPU has.
template <class Result, class... Arguments>
Result refuse(Arguments...) {
  throw std::runtime_error("CUDA emulation: a kernel was called that GPUs do not have");
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = {"emulated",
                                     emulate<GeometryCall, run_geometry_cuda>,
                                     emulate<RefineCall, run_refine_cuda>,
                                     emulate<RegressorForwardCall, run_regressor_forward_cuda>,
                                     emulate<RegressorBackwardCall, run_regressor_backward_cuda>,
                                     refuse<int64_t, int64_t, int64_t, ParallelFor>,
                                     refuse<void, const RegressorStepCall&, ParallelFor>,
                                     refuse<int64_t, const RegressorShape&>};
  return kernels;
}

}  // namespace erd
