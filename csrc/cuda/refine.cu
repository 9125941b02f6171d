// Chooses the refiner's kernel from the call and the device.
#include "cuda/kernels.h"
#include "cuda/refine_kernels.h"

namespace erd {
namespace {

// A block of the latency kernel takes 16 poses. As long as every multiprocessor has one at most, it
// ought to be the faster kernel (not measured on a GPU yet); beyond, weights had better stay in
// shared memory. The two add in different orders: at the crossover a pose's result changes by
// float32 rounding, within one kernel it depends on nothing but the pose.
RefineVariant collapsed_variant(const RefineCall& call, const CudaDevice& device) {
  const bool latency = latency_kernel_fits(call, device);
  if (latency && call.count <= 16 * int64_t{device.multiprocessors}) return RefineVariant::latency;
  if (throughput_kernel_fits(call, device)) return RefineVariant::throughput;
  return latency ? RefineVariant::latency : RefineVariant::simt;
}

}  // namespace

void run_refine_cuda(const RefineCall& call, const CudaDevice& device) {
  if (call.count == 0) return;
  if (call.precision == Precision::native || call.variant == RefineVariant::simt) {
    return run_refine_simt(call, device);
  }
  if (relu_kernel_fits(call, device)) return run_refine_relu(call, device);
  const RefineVariant variant =
      call.variant == RefineVariant::automatic ? collapsed_variant(call, device) : call.variant;
  if (variant == RefineVariant::latency && latency_kernel_fits(call, device)) {
    return run_refine_latency(call, device);
  }
  if (variant == RefineVariant::throughput && throughput_kernel_fits(call, device)) {
    return run_refine_throughput(call, device);
  }
#if defined(ERD_HAVE_SM90A) || !defined(__CUDACC__)
  if (variant == RefineVariant::wgmma && wgmma_kernel_fits(call, device)) {
    return run_refine_wgmma(call, device);
  }
#endif
  run_refine_simt(call, device);
}

}  // namespace erd
