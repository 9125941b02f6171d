// What stands in the CPU kernels' place in the emulated operator library: the CUDA kernels, on the
// emulated GPU. The operators are those of a build without CUDA, for CPU tensors.
#include <stdexcept>

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "cuda_emulation/runtime.h"

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

// For tests: how many kernels were launched so far.
extern "C" __attribute__((visibility("default"))) int64_t erd_emulated_launches() {
  return emulation::launches();
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = {"emulated",
                                     emulate<GeometryCall, run_geometry_cuda>,
                                     emulate<RefineCall, run_refine_cuda>,
                                     emulate<RegressorForwardCall, run_regressor_forward_cuda>,
                                     emulate<RegressorBackwardCall, run_regressor_backward_cuda>,
                                     refuse<int64_t, int64_t, int64_t, ParallelFor>,
                                     emulate<RegressorStepCall, run_regressor_step_cuda>,
                                     regressor_step_workspace_cuda};
  return kernels;
}

}  // namespace erd
