// The residual regressor in train mode, backward, in two or three launches.
//
// 1. layers_backward: a block takes a tile of 8 or 16 rows from the output's gradient back to the
//    gradient of BatchNorm's output, as in the forward pass, and stores what each layer got.
// 2. parameter_gradients: a block sums one tile of 32 x 32 elements of one of the four weight
//    matrices over the batch, and the biases on the way; those of the first layer begin with the
//    sums over the batch that BatchNorm's gradients are.
// 3. feature_gradients, where they are wanted: a block takes 8 rows.
//
// Sums over the batch run in a fixed order: by four interleaved quarters, in groups of 512 rows.
#include "cuda/kernels.h"
#include "cuda/training_kernels.h"

ERD_NAMESPACE_BEGIN

namespace {

template <class T>
ERD_DEVICE const T* normalized_of(const RegressorBackwardCall& call) {
  return static_cast<const T*>(call.activations) + kNormalized * call.shape.rows * call.shape.width;
}
template <class T>
ERD_DEVICE const T* hidden_of(const RegressorBackwardCall& call, int layer) {
  return static_cast<const T*>(call.activations) +
         (kHidden + layer) * call.shape.rows * call.shape.width;
}
// The gradient of the hidden state, in the end that of BatchNorm's output.
template <class T>
ERD_DEVICE T* gradient_of(const RegressorBackwardCall& call) {
  return static_cast<T*>(call.workspace);
}
// The gradient of what a hidden layer adds.
template <class T>
ERD_DEVICE T* change_gradient_of(const RegressorBackwardCall& call, int layer) {
  return gradient_of<T>(call) + (1 + layer) * call.shape.rows * call.shape.width;
}

template <class T, int R>
ERD_KERNEL(kTrainingThreads, 1)
layers_backward(RegressorBackwardCall call) {
  constexpr int kRows = Share<R>::kRows;
  const int64_t rows = call.shape.rows, width = call.shape.width, outputs = call.shape.outputs;
  const T scale = static_cast<T>(1.0 / (1.0 - call.shape.dropout));
  T* const gradient = gradient_of<T>(call);

  const Share<R> share;
  SharedMemory memory;
  const int64_t most = width > outputs ? width : outputs;
  T* values = memory.take<T>(most * kRows);
  T* next = memory.take<T>(most * kRows);
  T* pieces = memory.take<T>(2 * kPieceInputs<T> * kPiecePitch);

  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_row = tile * kRows;
    for (int64_t i = threadIdx.x; i < outputs * kRows; i += kTrainingThreads) {
      const int64_t row = first_row + i / outputs, output = i % outputs;
      const bool valid = row < rows;
      values[output * kRows + i / outputs] =
          valid ? static_cast<const T*>(call.grad)[row * outputs + output] : T(0);
    }

    // Step 0 comes from the output, step 1 and 2 go through the hidden layers, last to first.
    for (int step = 0; step < 3; ++step) {
      const void* weights = step == 0 ? call.w_out : call.w_hidden[2 - step];
      const int64_t depth = step == 0 ? outputs : width;
      const uint8_t bit = static_cast<uint8_t>(4 >> step);
      for (int64_t pass = 0; pass < width; pass += kPassUnits) {
        T sums[R][4];
        multiply_tile<Weights::by_input>(values, static_cast<const T*>(weights), depth, width, pass,
                                         pieces, share, sums);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t unit = pass + share.unit + i;
          if (unit >= width) continue;
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const int64_t row = first_row + share.row + r;
            T passed = T(0);
            if (row < rows) {
              const int64_t at = row * width + unit;
              // This thread stored the gradient of the step before.
              const T total = step == 0 ? sums[r][i] : gradient[at] + sums[r][i];
              passed = (call.passes[at] & bit) ? scale * total : T(0);
              gradient[at] = step == 2 ? passed : total;
              if (step < 2) change_gradient_of<T>(call, 1 - step)[at] = passed;
            }
            if (step < 2) next[unit * kRows + share.row + r] = passed;
          }
        }
      }
      T* const finished = next;
      next = values;
      values = finished;
    }
  }
}

// BatchNorm's backward pass: from the gradient of its output to that of its input.
template <class T>
struct NormGradient {
  T factor, mean, slope;

  ERD_DEVICE NormGradient(const RegressorBackwardCall& call, int64_t unit, T beta_gradient,
                          T gamma_gradient) {
    const T count = static_cast<T>(call.shape.rows);
    factor =
        static_cast<const T*>(call.gamma)[unit] * static_cast<const T*>(call.inverse_std)[unit];
    mean = beta_gradient / count;
    slope = gamma_gradient / count;
  }
  ERD_DEVICE T operator()(T gradient, T normalized) const {
    return factor * (gradient - mean - normalized * slope);
  }
};

constexpr int kTile = 32;
constexpr int kQuarters = 4;
constexpr int kGroupRows = 512;

// One of the four weight matrices, cut into tiles.
struct MatrixTiles {
  int64_t units, inputs;
  int64_t first_block;

  ERD_HD int64_t across() const { return (inputs + kTile - 1) / kTile; }
  ERD_HD int64_t blocks() const { return (units + kTile - 1) / kTile * across(); }
};

enum Matrix : int32_t { kMatrixIn = 0, kMatrixHidden0 = 1, kMatrixHidden1 = 2, kMatrixOut = 3 };
constexpr int kMatrices = 4;

struct ParameterGradients {
  RegressorBackwardCall call;
  MatrixTiles tiles[kMatrices];
};

// For each of the tile's units: the sum of BatchNorm's gradient over the batch, and of that times
// n. Thread t sums every eighth row of unit t % 32.
template <class T>
ERD_DEVICE void sum_norm_gradients(const RegressorBackwardCall& call, int64_t first_unit, T* parts,
                                   T* beta_sums, T* gamma_sums) {
  constexpr int kParts = kTrainingThreads / kTile;
  const int thread = static_cast<int>(threadIdx.x);
  const int own = thread % kTile, part = thread / kTile;
  const int64_t rows = call.shape.rows, width = call.shape.width, unit = first_unit + own;
  T beta_total = T(0), gamma_total = T(0);
  for (int64_t group = 0; group < rows && unit < width; group += kGroupRows) {
    T beta_sum = T(0), gamma_sum = T(0);
    for (int64_t row = group + part; row < rows && row < group + kGroupRows; row += kParts) {
      const T gradient = gradient_of<T>(call)[row * width + unit];
      beta_sum += gradient;
      gamma_sum += gradient * normalized_of<T>(call)[row * width + unit];
    }
    beta_total += beta_sum;
    gamma_total += gamma_sum;
  }
  parts[part * kTile + own] = beta_total;
  parts[(kParts + part) * kTile + own] = gamma_total;
  __syncthreads();
  if (thread < 2 * kTile) {
    const T* column = parts + thread / kTile * kParts * kTile + own;
    T sum = column[0];
    for (int i = 1; i < kParts; ++i) sum += column[i * kTile];
    (thread < kTile ? beta_sums : gamma_sums)[own] = sum;
  }
  __syncthreads();
}

template <class T>
ERD_KERNEL(kTrainingThreads, 1)
parameter_gradients(ParameterGradients problem) {
  const RegressorBackwardCall& call = problem.call;
  const int thread = static_cast<int>(threadIdx.x);
  int matrix = kMatrices - 1;
  while (int64_t{blockIdx.x} < problem.tiles[matrix].first_block) --matrix;
  const MatrixTiles& tiles = problem.tiles[matrix];
  const int64_t tile = int64_t{blockIdx.x} - tiles.first_block;
  const int64_t first_unit = tile / tiles.across() * kTile;
  const int64_t first_input = tile % tiles.across() * kTile;
  const int64_t rows = call.shape.rows, units = tiles.units, inputs = tiles.inputs;

  const T* deltas;  // [N, units]
  const T* values;  // [N, inputs]
  T* weight_gradient;
  T* bias_gradient = nullptr;
  if (matrix == kMatrixIn) {
    deltas = gradient_of<T>(call);
    values = static_cast<const T*>(call.features);
    weight_gradient = static_cast<T*>(call.gradients[kGradWIn]);
  } else if (matrix == kMatrixOut) {
    deltas = static_cast<const T*>(call.grad);
    values = hidden_of<T>(call, 2);
    weight_gradient = static_cast<T*>(call.gradients[kGradWOut]);
    bias_gradient = static_cast<T*>(call.gradients[kGradBOut]);
  } else {
    const int layer = matrix - kMatrixHidden0;
    deltas = change_gradient_of<T>(call, layer);
    values = hidden_of<T>(call, layer);
    weight_gradient = static_cast<T*>(call.gradients[kGradWHidden + layer]);
    bias_gradient = static_cast<T*>(call.gradients[kGradBHidden + layer]);
  }

  SharedMemory memory;
  T* delta_tile = memory.take<T>(kTile * kTile);  // [row][unit]
  T* value_tile = memory.take<T>(kTile * kTile);  // [row][input]
  T* quarters = memory.take<T>(kQuarters * kTile * kTile);
  T* bias_quarters = memory.take<T>(kQuarters * kTile);
  T* beta_sums = memory.take<T>(kTile);
  T* gamma_sums = memory.take<T>(kTile);

  if (matrix == kMatrixIn) {
    sum_norm_gradients(call, first_unit, quarters, beta_sums, gamma_sums);
    const int64_t unit = first_unit + thread;
    if (first_input == 0 && thread < kTile && unit < units) {
      static_cast<T*>(call.gradients[kGradBeta])[unit] = beta_sums[thread];
      static_cast<T*>(call.gradients[kGradGamma])[unit] = gamma_sums[thread];
    }
  }
  if (weight_gradient == nullptr && (bias_gradient == nullptr || first_input > 0)) return;

  // A thread owns 4 units and 4 inputs, and every fourth row.
  const int quarter = thread / 64;
  const int own_unit = thread % 64 / 8 * 4, own_input = thread % 8 * 4;
  T total[4][4] = {}, sums[4][4] = {}, bias_total[4] = {}, bias_sums[4] = {};
  for (int64_t first_row = 0; first_row < rows; first_row += kTile) {
    for (int i = thread; i < kTile * kTile; i += kTrainingThreads) {
      const int64_t row = first_row + i / kTile;
      const int64_t unit = first_unit + i % kTile, input = first_input + i % kTile;
      T delta = T(0), value = T(0);
      if (row < rows && unit < units) {
        delta = deltas[row * units + unit];
        if (matrix == kMatrixIn) {
          const NormGradient<T> through_norm(call, unit, beta_sums[i % kTile],
                                             gamma_sums[i % kTile]);
          delta = through_norm(delta, normalized_of<T>(call)[row * units + unit]);
        }
      }
      if (row < rows && input < inputs) value = values[row * inputs + input];
      delta_tile[i] = delta;
      value_tile[i] = value;
    }
    __syncthreads();
#pragma unroll
    for (int row = 0; row < kTile; row += kQuarters) {
      const int at = (row + quarter) * kTile;
      const Four<T> delta = as_four(delta_tile + at + own_unit);
      const Four<T> value = as_four(value_tile + at + own_input);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        bias_sums[u] += delta.v[u];
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[u][i] += delta.v[u] * value.v[i];
      }
    }
    __syncthreads();
    if (first_row % kGroupRows == kGroupRows - kTile || first_row + kTile >= rows) {
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        bias_total[u] += bias_sums[u];
        bias_sums[u] = T(0);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[u][i] += sums[u][i];
          sums[u][i] = T(0);
        }
      }
    }
  }

  for (int u = 0; u < 4; ++u) {
    if (own_input == 0) bias_quarters[quarter * kTile + own_unit + u] = bias_total[u];
    for (int i = 0; i < 4; ++i) {
      quarters[(quarter * kTile + own_unit + u) * kTile + own_input + i] = total[u][i];
    }
  }
  __syncthreads();
  for (int i = thread; i < kTile * kTile && weight_gradient != nullptr; i += kTrainingThreads) {
    const int64_t unit = first_unit + i / kTile, input = first_input + i % kTile;
    if (unit >= units || input >= inputs) continue;
    T sum = quarters[i];
    for (int q = 1; q < kQuarters; ++q) sum += quarters[q * kTile * kTile + i];
    weight_gradient[unit * inputs + input] = sum;
  }
  if (thread < kTile && first_unit + thread < units && first_input == 0 &&
      bias_gradient != nullptr) {
    T sum = bias_quarters[thread];
    for (int q = 1; q < kQuarters; ++q) sum += bias_quarters[q * kTile + thread];
    bias_gradient[first_unit + thread] = sum;
  }
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
  constexpr int kRows = Share<R>::kRows;
  const int64_t shared_bytes = chain_shared_bytes<T>(call.shape, kRows);
  check_chain_fits(shared_bytes, device);
  const int64_t tiles = (call.shape.rows + kRows - 1) / kRows;
  launch(layers_backward<T, R>, device,
         LaunchShape{grid_blocks(device, tiles, 4), kTrainingThreads, shared_bytes}, call);
}

template <class T>
void launch_parameter_gradients(const RegressorBackwardCall& call, const CudaDevice& device) {
  const int64_t width = call.shape.width;
  ParameterGradients problem;
  problem.call = call;
  problem.tiles[kMatrixIn] = {width, call.shape.features, 0};
  problem.tiles[kMatrixHidden0] = {width, width, 0};
  problem.tiles[kMatrixHidden1] = {width, width, 0};
  problem.tiles[kMatrixOut] = {call.shape.outputs, width, 0};
  int64_t blocks = 0;
  for (MatrixTiles& tiles : problem.tiles) {
    tiles.first_block = blocks;
    blocks += tiles.blocks();
  }
  const int64_t shared_bytes = 2 * shared_size<T>(kTile * kTile) +
                               shared_size<T>(kQuarters * kTile * kTile) +
                               shared_size<T>(kQuarters * kTile) + 2 * shared_size<T>(kTile);
  launch(parameter_gradients<T>, device, LaunchShape{blocks, kTrainingThreads, shared_bytes},
         problem);
}

template <class T>
void run_backward(const RegressorBackwardCall& call, const CudaDevice& device) {
  if (sizeof(T) == 4 && rows_per_tile<T>(call.shape, device) == 16) {
    if constexpr (sizeof(T) == 4) launch_layers<T, 4>(call, device);
  } else {
    launch_layers<T, 2>(call, device);
  }
  launch_parameter_gradients<T>(call, device);
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
