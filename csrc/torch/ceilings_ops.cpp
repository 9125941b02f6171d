// What benchmarks measure the kernels against, as an operator without tensors.
#include "torch/tensors.h"

namespace erd::ops {
namespace {

int64_t multiply_adds(int64_t steps, int64_t tasks) {
  STD_TORCH_CHECK(steps > 0 && tasks > 0, "erd_cuda: steps and tasks must be positive");
  return cpu_kernels().multiply_adds(steps, tasks, torch_parallel_for());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(erd_cuda, m) {
  // Runs `tasks` loops of `steps` steps on torch's threads; returns the floating-point operations.
  m.def("multiply_adds(int steps, int tasks) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CompositeExplicitAutograd, m) {
  m.impl("multiply_adds", TORCH_BOX(&multiply_adds));
}

}  // namespace erd::ops
