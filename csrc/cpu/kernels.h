// What the CPU kernels offer to their callers: plain pointers, no torch, no Python. This header is
// compiled once per instruction set and once outside; it holds only plain data.
#pragma once

#include "core/calls.h"
#include "core/training_call.h"

namespace erd {

// Runs body(context, begin, end) over disjoint ranges that cover [0, count), at least `grain` items
// each.
struct ParallelFor {
  void (*run)(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);
};

using GeometryKernel = void (*)(const GeometryCall&, ParallelFor);
using RefineKernel = void (*)(const RefineCall&, ParallelFor);
using RegressorForwardKernel = void (*)(const RegressorForwardCall&, ParallelFor);
using RegressorBackwardKernel = void (*)(const RegressorBackwardCall&, ParallelFor);
// Returns how many floating-point operations it was.
using MultiplyAdds = int64_t (*)(int64_t steps, int64_t tasks, ParallelFor);
using RegressorStepKernel = void (*)(const RegressorStepCall&, ParallelFor);
using RegressorStepWorkspace = int64_t (*)(const RegressorShape&);

// The best variant for this processor, chosen once. `name` is one of portable, avx2, avx512,
// avx512_bf16, neon_bf16.
struct CpuKernels {
  const char* name;
  GeometryKernel geometry;
  RefineKernel refine;
  RegressorForwardKernel regressor_forward;
  RegressorBackwardKernel regressor_backward;
  MultiplyAdds multiply_adds;
  RegressorStepKernel regressor_step;
  RegressorStepWorkspace regressor_step_workspace;  // in bytes
};
const CpuKernels& cpu_kernels();

}  // namespace erd
