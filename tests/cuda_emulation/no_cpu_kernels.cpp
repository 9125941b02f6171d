// The emulated array module has no CPU kernels: a call that asked for them by mistake would hide
// that the CUDA kernels did not run.
#include <stdexcept>

#include "cpu/kernels.h"

namespace erd {
namespace {

template <class Call>
void refuse(const Call&, ParallelFor) {
  throw std::runtime_error("CUDA emulation: a CPU kernel was called");
}

int64_t refuse_multiply_adds(int64_t, int64_t, ParallelFor) {
  throw std::runtime_error("CUDA emulation: a CPU kernel was called");
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = {"emulated", refuse<GeometryCall>, refuse<RefineCall>,
                                     refuse<RegressorForwardCall>, refuse<RegressorBackwardCall>,
                                     refuse_multiply_adds};
  return kernels;
}

}  // namespace erd
