// The residual regressor in train mode, backward: what one block does.
//
// back_through_layers: a block takes a tile of 8 or 16 rows from the output's gradient back to the
// gradient of BatchNorm's output, as in the forward pass, and stores what each layer got.
// sum_parameter_gradients: a block sums one tile of 32 x 32 elements of one of the four weight
// matrices over the batch, and the biases on the way; those of the first layer begin with the sums
// over the batch that BatchNorm's gradients are.
//
// Sums over the batch run in a fixed order: by four interleaved quarters, in groups of 512 rows.
#pragma once

#include "cuda/training_kernels.h"

ERD_NAMESPACE_BEGIN

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

// One tile of rows, from the gradient of its outputs in memory.values.
template <class T, int R>
ERD_DEVICE void back_through_layers(const RegressorBackwardCall& call, int64_t tile,
                                    ChainMemory<T, R>& memory) {
  constexpr int kRows = Share<R>::kRows;
  const int64_t rows = call.shape.rows, width = call.shape.width, outputs = call.shape.outputs;
  const T scale = static_cast<T>(1.0 / (1.0 - call.shape.dropout));
  T* const gradient = gradient_of<T>(call);
  const Share<R> share;
  const int64_t first_row = tile * kRows + share.row;

  // Step 0 comes from the output, step 1 and 2 go through the hidden layers, last to first.
  for (int step = 0; step < 3; ++step) {
    const void* weights = step == 0 ? call.w_out : call.w_hidden[2 - step];
    const int64_t depth = step == 0 ? outputs : width;
    const uint8_t bit = static_cast<uint8_t>(4 >> step);
    for (int64_t pass = 0; pass < width; pass += kPassUnits) {
      T sums[R][4];
      multiply_tile<Weights::by_input>(memory.values, static_cast<const T*>(weights), depth, width,
                                       pass, memory.ring, share, sums);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t unit = pass + share.unit + i;
        if (unit >= width) continue;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int64_t row = first_row + r;
          T passed = T(0);
          if (row < rows) {
            const int64_t at = row * width + unit;
            // This thread stored the gradient of the step before.
            const T total = step == 0 ? sums[r][i] : gradient[at] + sums[r][i];
            passed = (call.passes[at] & bit) ? scale * total : T(0);
            gradient[at] = step == 2 ? passed : total;
            if (step < 2) change_gradient_of<T>(call, 1 - step)[at] = passed;
          }
          if (step < 2) memory.next[unit * kRows + share.row + r] = passed;
        }
      }
    }
    memory.swap();
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
  int64_t end_block() const { return first_block + (units + kTile - 1) / kTile * across(); }
};

enum Matrix : int32_t { kMatrixIn = 0, kMatrixHidden0 = 1, kMatrixHidden1 = 2, kMatrixOut = 3 };
constexpr int kMatrices = 4;
constexpr int kNoGradient = -1;

// A block's work is a tile of a matrix.
struct ParameterTiles {
  MatrixTiles of[kMatrices];

  explicit ParameterTiles(const RegressorShape& shape)
      : of{{shape.width, shape.features, 0},
           {shape.width, shape.width, 0},
           {shape.width, shape.width, 0},
           {shape.outputs, shape.width, 0}} {
    for (int i = 1; i < kMatrices; ++i) of[i].first_block = of[i - 1].end_block();
  }
  int64_t blocks() const { return of[kMatrices - 1].end_block(); }
};
template <class T>
constexpr int64_t parameter_shared_bytes() {
  return 2 * shared_size<T>(kTile * kTile) + shared_size<T>(kQuarters * kTile * kTile) +
         shared_size<T>(kQuarters * kTile) + 2 * shared_size<T>(kTile);
}

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

// `sink` gets what block number `block` sums up: wants(gradient) says whether to go to the trouble,
// take(gradient, at, value) is called once for each element by one thread. BatchNorm's are taken
// while other blocks still ask `call` for gamma.
template <class T, class Sink>
ERD_DEVICE void sum_parameter_gradients(const RegressorBackwardCall& call,
                                        const ParameterTiles& all, int64_t block,
                                        const Sink& sink) {
  const int thread = static_cast<int>(threadIdx.x);
  int matrix = kMatrices - 1;
  while (block < all.of[matrix].first_block) --matrix;
  const MatrixTiles& tiles = all.of[matrix];
  const int64_t tile = block - tiles.first_block;
  const int64_t first_unit = tile / tiles.across() * kTile;
  const int64_t first_input = tile % tiles.across() * kTile;
  const int64_t rows = call.shape.rows, units = tiles.units, inputs = tiles.inputs;

  const T* deltas;  // [N, units]
  const T* values;  // [N, inputs]
  int weight_gradient, bias_gradient = kNoGradient;
  if (matrix == kMatrixIn) {
    deltas = gradient_of<T>(call);
    values = static_cast<const T*>(call.features);
    weight_gradient = kGradWIn;
  } else if (matrix == kMatrixOut) {
    deltas = static_cast<const T*>(call.grad);
    values = hidden_of<T>(call, 2);
    weight_gradient = kGradWOut;
    bias_gradient = kGradBOut;
  } else {
    const int layer = matrix - kMatrixHidden0;
    deltas = change_gradient_of<T>(call, layer);
    values = hidden_of<T>(call, layer);
    weight_gradient = kGradWHidden + layer;
    bias_gradient = kGradBHidden + layer;
  }
  const bool wants_weights = sink.wants(weight_gradient);
  const bool wants_bias =
      first_input == 0 && bias_gradient != kNoGradient && sink.wants(bias_gradient);

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
      sink.take(kGradBeta, unit, beta_sums[thread]);
      sink.take(kGradGamma, unit, gamma_sums[thread]);
    }
  }
  if (!wants_weights && !wants_bias) return;

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
  for (int i = thread; wants_weights && i < kTile * kTile; i += kTrainingThreads) {
    const int64_t unit = first_unit + i / kTile, input = first_input + i % kTile;
    if (unit >= units || input >= inputs) continue;
    T sum = quarters[i];
    for (int q = 1; q < kQuarters; ++q) sum += quarters[q * kTile * kTile + i];
    sink.take(weight_gradient, unit * inputs + input, sum);
  }
  if (wants_bias && thread < kTile && first_unit + thread < units) {
    T sum = bias_quarters[thread];
    for (int q = 1; q < kQuarters; ++q) sum += bias_quarters[q * kTile + thread];
    sink.take(bias_gradient, first_unit + thread, sum);
  }
}

ERD_NAMESPACE_END
