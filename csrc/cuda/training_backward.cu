// The residual regressor in train mode, backward, in two or three launches: those of
// training_backward.cuh, and feature_gradients, where they are wanted: a block takes 8 rows.
#include "cuda/kernels.h"
#include "cuda/training_backward.cuh"

ERD_NAMESPACE_BEGIN

namespace {

template <class T, int R>
ERD_KERNEL(kTrainingThreads, 1)
layers_backward(RegressorBackwardCall call, int ring_size) {
  constexpr int kRows = Share<R>::kRows;
  const int64_t rows = call.shape.rows, outputs = call.shape.outputs;
  ChainMemory<T, R> memory(call.shape, ring_size);
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    for (int64_t i = threadIdx.x; i < outputs * kRows; i += kTrainingThreads) {
      const int64_t row = tile * kRows + i / outputs, output = i % outputs;
      memory.values[output * kRows + i / outputs] =
          row < rows ? static_cast<const T*>(call.grad)[row * outputs + output] : T(0);
    }
    back_through_layers(call, tile, memory);
  }
}

// Stores the gradients that there is memory for.
template <class T>
struct StoredGradients {
  const RegressorBackwardCall& call;

  ERD_DEVICE bool wants(int gradient) const { return call.gradients[gradient] != nullptr; }
  ERD_DEVICE void take(int gradient, int64_t at, T value) const {
    static_cast<T*>(call.gradients[gradient])[at] = value;
  }
};

template <class T>
ERD_KERNEL(kTrainingThreads, 1)
parameter_gradients(ERD_CONSTANT RegressorBackwardCall call, ERD_CONSTANT ParameterTiles tiles) {
  sum_parameter_gradients<T>(call, tiles, int64_t{blockIdx.x}, StoredGradients<T>{call});
}

constexpr int kFeatureRows = 8;

template <class T>
ERD_KERNEL(kTrainingThreads, 1)
feature_gradients(RegressorBackwardCall call) {
  const int64_t rows = call.shape.rows, width = call.shape.width, features = call.shape.features;
  SharedMemory memory;
  T* deltas = memory.take<T>(kFeatureRows * width);
  const int64_t tiles = (rows + kFeatureRows - 1) / kFeatureRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_row = tile * kFeatureRows;
    for (int64_t i = threadIdx.x; i < kFeatureRows * width; i += kTrainingThreads) {
      const int64_t at = first_row * width + i, unit = i % width;
      if (at >= rows * width) break;
      const NormGradient<T> through_norm(call, unit,
                                         static_cast<const T*>(call.gradients[kGradBeta])[unit],
                                         static_cast<const T*>(call.gradients[kGradGamma])[unit]);
      deltas[i] = through_norm(gradient_of<T>(call)[at], normalized_of<T>(call)[at]);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < kFeatureRows * features; i += kTrainingThreads) {
      const int64_t row = i / features, feature = i % features;
      if (first_row + row >= rows) break;
      const T* delta = deltas + row * width;
      const T* weight = static_cast<const T*>(call.w_in) + feature;
      T sum = T(0);
      for (int64_t unit = 0; unit < width; ++unit) sum += delta[unit] * weight[unit * features];
      static_cast<T*>(call.gradients[kGradFeatures])[(first_row + row) * features + feature] = sum;
    }
    __syncthreads();
  }
}

template <class T, int R>
void launch_layers(const RegressorBackwardCall& call, const CudaDevice& device) {
  const ChainLaunch chain = chain_launch<T, R>(call.shape, device);
  launch(layers_backward<T, R>, device, chain.shape, call, chain.ring_size);
}

template <class T>
void run_backward(const RegressorBackwardCall& call, const CudaDevice& device) {
  if (sizeof(T) == 4 && rows_per_tile<T>(call.shape, device) == 16) {
    if constexpr (sizeof(T) == 4) launch_layers<T, 4>(call, device);
  } else {
    launch_layers<T, 2>(call, device);
  }
  const ParameterTiles tiles(call.shape);
  launch(parameter_gradients<T>, device,
         LaunchShape{tiles.blocks(), kTrainingThreads, parameter_shared_bytes<T>()}, call, tiles);
  if (call.gradients[kGradFeatures] != nullptr) {
    const int64_t shared_bytes = shared_size<T>(kFeatureRows * call.shape.width);
    const int64_t tiles = (call.shape.rows + kFeatureRows - 1) / kFeatureRows;
    launch(feature_gradients<T>, device,
           LaunchShape{grid_blocks(device, tiles, 8), kTrainingThreads, shared_bytes}, call);
  }
}

}  // namespace

ERD_NAMESPACE_END

namespace erd {

void run_regressor_backward_cuda(const RegressorBackwardCall& call, const CudaDevice& device) {
  if (call.shape.scalar == ScalarType::float32) {
    run_backward<float>(call, device);
  } else {
    run_backward<double>(call, device);
  }
}

}  // namespace erd
