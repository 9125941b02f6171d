// The emulated array module has no CPU kernels: a call that asked for them by mistake would hide
// that the CUDA kernels did not run.
#include <stdexcept>

#include "cpu/kernels.h"

namespace erd {
namespace {

template <class Result, class... Arguments>
Result refuse(Arguments...) {
  throw std::runtime_error("CUDA emulation: a CPU kernel was called");
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = {"emulated",
                                     refuse<void, const GeometryCall&, ParallelFor>,
                                     refuse<void, const RefineCall&, ParallelFor>,
                                     refuse<void, const RegressorForwardCall&, ParallelFor>,
                                     refuse<void, const RegressorBackwardCall&, ParallelFor>,
                                     refuse<int64_t, int64_t, int64_t, ParallelFor>,
                                     refuse<void, const RegressorStepCall&, ParallelFor>,
                                     refuse<int64_t, const RegressorShape&>};
  return kernels;
}

}  // namespace erd
