// The residual regressor in train mode, forward: what one block does. core/training_call.h has the
// equations.
//
// normalize_units: a block takes 8 units over all rows of the batch, a thread every 256th row.
// Mean, then variance from the differences to it, then n. ForwardTile: a block takes a tile of 8 or
// 16 rows through dropout, the two hidden layers and the output (training_kernels.h). Values stay
// in shared memory between layers and are stored for the backward pass.
#pragma once

#include "cuda/training_kernels.h"

ERD_NAMESPACE_BEGIN

constexpr int kGroupUnits = 8;

ERD_DEVICE float inverse_root(float x) { return 1.0f / sqrtf(x); }
ERD_DEVICE double inverse_root(double x) { return 1.0 / sqrt(x); }

// values[i] summed over the block's threads, the same in all of them. In the order of a tree.
template <class T>
ERD_DEVICE void sum_over_block(T (&values)[kGroupUnits], T* warps) {
#pragma unroll
  for (int i = 0; i < kGroupUnits; ++i) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      values[i] += __shfl_xor_sync(0xffffffffu, values[i], lanes);
    }
  }
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (thread % 32 == 0) {
    for (int i = 0; i < kGroupUnits; ++i) warps[thread / 32 * kGroupUnits + i] = values[i];
  }
  __syncthreads();
  for (int i = 0; i < kGroupUnits; ++i) {
    values[i] = warps[i];
    for (int warp = 1; warp < kTrainingThreads / 32; ++warp) {
      values[i] += warps[warp * kGroupUnits + i];
    }
  }
}

inline int64_t unit_groups(const RegressorShape& shape) {
  return (shape.width + kGroupUnits - 1) / kGroupUnits;
}
template <class T>
int64_t normalize_shared_bytes(const RegressorShape& shape) {
  return shared_size<T>(shape.features * kGroupUnits) +
         shared_size<T>(kTrainingThreads / 32 * kGroupUnits);
}

// Units first to first + kGroupUnits. row_of(i) says which row of call.features is the batch's
// i-th.
template <class T, class RowOf>
ERD_DEVICE void normalize_units(const RegressorForwardCall& call, int64_t first,
                                const RowOf& row_of) {
  const int64_t rows = call.shape.rows, features = call.shape.features, width = call.shape.width;
  SharedMemory memory;
  T* weights = memory.take<T>(features * kGroupUnits);  // [F][8]
  T* warps = memory.take<T>(kTrainingThreads / 32 * kGroupUnits);
  const int units = width - first < kGroupUnits ? static_cast<int>(width - first) : kGroupUnits;
  const T* w_in = static_cast<const T*>(call.w_in) + first * features;
  const T* x = static_cast<const T*>(call.features);
  T* z = static_cast<T*>(call.activations) + first;

  for (int64_t i = threadIdx.x; i < features * kGroupUnits; i += kTrainingThreads) {
    const int64_t unit = i % kGroupUnits, feature = i / kGroupUnits;
    weights[i] = unit < units ? w_in[unit * features + feature] : T(0);
  }
  __syncthreads();

  // The bias moves the mean and nothing else: z is kept without it. Every block reads all of x,
  // which at the paper's 200 rows of 34 features is little.
  T mean[kGroupUnits] = {};
  for (int64_t row = threadIdx.x; row < rows; row += kTrainingThreads) {
    T sums[kGroupUnits] = {};
    const T* own = x + row_of(row) * features;
    for (int64_t f = 0; f < features; ++f) {
      const T value = own[f];
#pragma unroll
      for (int i = 0; i < kGroupUnits; ++i) sums[i] += value * weights[f * kGroupUnits + i];
    }
#pragma unroll
    for (int i = 0; i < kGroupUnits; ++i) {
      if (i < units) z[row * width + i] = sums[i];
      mean[i] += sums[i];
    }
  }
  sum_over_block(mean, warps);
  const T count = static_cast<T>(rows);
#pragma unroll
  for (int i = 0; i < kGroupUnits; ++i) mean[i] /= count;

  // Differences to the mean: no digits cancel, however large it is. Their own mean is what the mean
  // was rounded by.
  T rest[kGroupUnits] = {}, squares[kGroupUnits] = {};
  for (int64_t row = threadIdx.x; row < rows; row += kTrainingThreads) {
#pragma unroll
    for (int i = 0; i < kGroupUnits; ++i) {
      if (i < units) {
        const T difference = z[row * width + i] - mean[i];
        rest[i] += difference;
        squares[i] += difference * difference;
      }
    }
  }
  sum_over_block(rest, warps);
  sum_over_block(squares, warps);
#pragma unroll
  for (int i = 0; i < kGroupUnits; ++i) {
    rest[i] /= count;
    const T variance = squares[i] / count - rest[i] * rest[i];
    // From here on the unit's factor.
    squares[i] = inverse_root(variance + static_cast<T>(call.eps));
    if (threadIdx.x == 0 && i < units) {
      const T bias = static_cast<const T*>(call.b_in)[first + i];
      static_cast<T*>(call.mean)[first + i] = mean[i] + rest[i] + bias;
      static_cast<T*>(call.variance)[first + i] = variance * (count / (count - T(1)));
      static_cast<T*>(call.inverse_std)[first + i] = squares[i];
    }
  }
  for (int64_t row = threadIdx.x; row < rows; row += kTrainingThreads) {
#pragma unroll
    for (int i = 0; i < kGroupUnits; ++i) {
      if (i < units) {
        T* value = z + row * width + i;
        *value = (*value - mean[i] - rest[i]) * squares[i];
      }
    }
  }
}

// Everything after BatchNorm's division, for one tile of rows.
template <class T, int R>
class ForwardTile {
 public:
  static constexpr int kRows = Share<R>::kRows;

  ERD_DEVICE ForwardTile(const RegressorForwardCall& call, int64_t tile)
      : call_(call),
        rows_(call.shape.rows),
        width_(call.shape.width),
        first_row_(tile * kRows + share_.row),
        scale_(static_cast<T>(1.0 / (1.0 - call.shape.dropout))) {}

  // memory.values become h_0. `seed` is nullptr where nothing is dropped.
  ERD_DEVICE void first_layer(const int64_t* seed, const ChainMemory<T, R>& memory) const {
    const Dropout dropout(seed == nullptr ? 0 : static_cast<uint64_t>(*seed), call_.shape.dropout,
                          width_);
    for (int64_t first = share_.unit; first < width_; first += kPassUnits) {
      for (int r = 0; r < R; ++r) {
        const int64_t row = first_row_ + r;
        const bool drops = seed != nullptr && row < rows_;
        const uint32_t drawn = drops ? dropout.draw(row, first / 4) : 0x01010101u * kAllPass;
        for (int i = 0; i < 4 && first + i < width_; ++i) {
          const int64_t unit = first + i;
          T h = T(0);
          if (row < rows_) {
            const T normalized = plane(kNormalized)[row * width_ + unit];
            const T value = static_cast<const T*>(call_.gamma)[unit] * normalized +
                            static_cast<const T*>(call_.beta)[unit];
            // NaN is not <= 0: it stays visible, as in torch's ReLU.
            const uint32_t passes = drawn >> 8 * i & (value <= T(0) ? kAllPass - 1 : kAllPass);
            h = (passes & 1) ? scale_ * value : T(0);
            plane(kHidden)[row * width_ + unit] = h;
            call_.passes[row * width_ + unit] = static_cast<uint8_t>(passes);
          }
          memory.values[unit * kRows + share_.row + r] = h;
        }
      }
    }
  }

  // memory.values go from h_0 to h_2. weights_of(layer) is [H, H], or [H, padded H] by input.
  template <Weights Order, class WeightsOf>
  ERD_DEVICE void hidden_layers(const WeightsOf& weights_of, ChainMemory<T, R>& memory) const {
    const bool relu_block = call_.block == RegressorBlock::relu;
    const int64_t columns = Order == Weights::by_unit ? width_ : padded_width(width_);
    for (int layer = 0; layer < 2; ++layer) {
      const uint8_t bit = static_cast<uint8_t>(2 << layer);
      for (int64_t pass = 0; pass < width_; pass += kPassUnits) {
        T sums[R][4];
        multiply_tile<Order>(memory.values, static_cast<const T*>(weights_of(layer)), width_,
                             columns, pass, memory.ring, share_, sums);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t unit = pass + share_.unit + i;
          if (unit >= width_) continue;
          const T bias = static_cast<const T*>(call_.b_hidden[layer])[unit];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const int64_t row = first_row_ + r;
            const int64_t place = unit * kRows + share_.row + r;
            T h = T(0);
            if (row < rows_) {
              const T change = sums[r][i] + bias;
              // This thread wrote the byte.
              uint8_t* passes = call_.passes + row * width_ + unit;
              if (relu_block && change <= T(0)) *passes &= static_cast<uint8_t>(~bit);
              h = memory.values[place] + ((*passes & bit) ? scale_ * change : T(0));
              plane(kHidden + 1 + layer)[row * width_ + unit] = h;
            }
            memory.next[place] = h;
          }
        }
      }
      memory.swap();
    }
  }

  // Calls take(row, output, value, place) for the increments of this thread's rows, where `place`
  // is that of the number in memory.next. Weights [O, H], or [H, padded O] by input.
  template <Weights Order, class Take>
  ERD_DEVICE void output_layer(const T* weights, const ChainMemory<T, R>& memory,
                               const Take& take) const {
    const int64_t outputs = call_.shape.outputs;
    const int64_t columns = Order == Weights::by_unit ? outputs : padded_width(outputs);
    for (int64_t pass = 0; pass < outputs; pass += kPassUnits) {
      T sums[R][4];
      multiply_tile<Order>(memory.values, weights, width_, columns, pass, memory.ring, share_,
                           sums);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t output = pass + share_.unit + i;
        if (output >= outputs) continue;
        const T bias = static_cast<const T*>(call_.b_out)[output];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          take(first_row_ + r, output, sums[r][i] + bias, output * kRows + share_.row + r);
        }
      }
    }
  }

 private:
  ERD_DEVICE T* plane(int which) const {
    return static_cast<T*>(call_.activations) + which * rows_ * width_;
  }

  const RegressorForwardCall& call_;
  const Share<R> share_;
  const int64_t rows_, width_;
  const int64_t first_row_;  // of this thread's
  const T scale_;
};

ERD_NAMESPACE_END
