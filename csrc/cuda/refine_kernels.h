// The refiner's kernels, one function each; refine.cu chooses among them. Those with a
// *_kernel_fits take calls that fit only; run_refine_simt throws std::runtime_error where one does
// not.
#pragma once

#include "core/calls.h"
#include "cuda/launch.h"

namespace erd {

// Plain multiply-adds in the call's own scalar type (refine_simt.cu): every device, number of
// joints, block and kind of features, any width whose activations fit into shared memory.
void run_refine_simt(const RefineCall& call, const CudaDevice& device);

// The collapsed linear block on tensor cores, for the precisions fp16, bf16 and split: for many
// poses (refine_throughput.cu) and for few (refine_latency.cu).
bool throughput_kernel_fits(const RefineCall& call, const CudaDevice& device);
void run_refine_throughput(const RefineCall& call, const CudaDevice& device);
bool latency_kernel_fits(const RefineCall& call, const CudaDevice& device);
void run_refine_latency(const RefineCall& call, const CudaDevice& device);

// The same on Hopper with warpgroup products, fp16 and bf16 only, from weights of an order of their
// own (fragments_wgmma.h). Only where the library was built for sm_90a.
bool wgmma_kernel_fits(const RefineCall& call, const CudaDevice& device);
void run_refine_wgmma(const RefineCall& call, const CudaDevice& device);

// The relu block on tensor cores (refine_relu.cu), for the same precisions.
bool relu_kernel_fits(const RefineCall& call, const CudaDevice& device);
void run_refine_relu(const RefineCall& call, const CudaDevice& device);

}  // namespace erd
