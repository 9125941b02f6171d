// The residual regressor in train mode, forward, in two launches (training_forward.cuh).
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "cuda/training_forward.cuh"

ERD_NAMESPACE_BEGIN

namespace {

template <class T>
ERD_KERNEL(kTrainingThreads, 1)
normalize(RegressorForwardCall call) {
  normalize_units<T>(call, int64_t{blockIdx.x} * kGroupUnits, [](int64_t row) { return row; });
}

template <class T, int R>
ERD_KERNEL(kTrainingThreads, 1)
layers(ERD_CONSTANT RegressorForwardCall call, int ring_size) {
  const int64_t rows = call.shape.rows, outputs = call.shape.outputs;
  ChainMemory<T, R> memory(call.shape, ring_size);
  const int64_t tiles = (rows + Share<R>::kRows - 1) / Share<R>::kRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const ForwardTile<T, R> forward(call, tile);
    forward.first_layer(call.seed, memory);
    forward.template hidden_layers<Weights::by_unit>(
        [&](int layer) { return call.w_hidden[layer]; }, memory);
    forward.template output_layer<Weights::by_unit>(
        static_cast<const T*>(call.w_out), memory,
        [&](int64_t row, int64_t output, T value, int64_t) {
          if (row < rows) static_cast<T*>(call.increment)[row * outputs + output] = value;
        });
  }
}

template <class T, int R>
void launch_layers(const RegressorForwardCall& call, const CudaDevice& device) {
  const ChainLaunch chain = chain_launch<T, R>(call.shape, device);
  launch(layers<T, R>, device, chain.shape, call, chain.ring_size);
}

template <class T>
void run_forward(const RegressorForwardCall& call, const CudaDevice& device) {
  const int64_t shared_bytes = normalize_shared_bytes<T>(call.shape);
  check_chain_fits(shared_bytes, device);
  launch(normalize<T>, device, LaunchShape{unit_groups(call.shape), kTrainingThreads, shared_bytes},
         call);
  if (sizeof(T) == 4 && rows_per_tile<T>(call.shape, device) == 16) {
    if constexpr (sizeof(T) == 4) launch_layers<T, 4>(call, device);
  } else {
    launch_layers<T, 2>(call, device);
  }
}

}  // namespace

void check_chain_fits(int64_t shared_bytes, const CudaDevice& device) {
  if (shared_bytes <= device.shared_bytes) return;
  throw std::runtime_error("erd_cuda: training this width needs " + std::to_string(shared_bytes) +
                           " bytes of shared memory a block, the GPU has " +
                           std::to_string(device.shared_bytes));
}

ERD_NAMESPACE_END

namespace erd {

void run_regressor_forward_cuda(const RegressorForwardCall& call, const CudaDevice& device) {
  if (call.shape.scalar == ScalarType::float32) {
    run_forward<float>(call, device);
  } else {
    run_forward<double>(call, device);
  }
}

}  // namespace erd
