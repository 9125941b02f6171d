// What the CUDA kernels offer to their callers. No call synchronises or allocates; errors of a
// launch are thrown as std::runtime_error.
#pragma once

#include "core/calls.h"
#include "core/training_call.h"
#include "cuda/cuda_device.h"

namespace erd {

// project, residual and solve_root: forward, backward, double backward (geometry.cu).
void run_geometry_cuda(const GeometryCall& call, const CudaDevice& device);

// The fused refiner: picks the kernel from the call and the device (refine.cu).
void run_refine_cuda(const RefineCall& call, const CudaDevice& device);

// One regressor in train mode (training_forward.cu, training_backward.cu).
void run_regressor_forward_cuda(const RegressorForwardCall& call, const CudaDevice& device);
void run_regressor_backward_cuda(const RegressorBackwardCall& call, const CudaDevice& device);

// A whole step of training it (training_step.cu), in workspace of so many bytes.
void run_regressor_step_cuda(const RegressorStepCall& call, const CudaDevice& device);
int64_t regressor_step_workspace_cuda(const RegressorShape& shape);

}  // namespace erd
