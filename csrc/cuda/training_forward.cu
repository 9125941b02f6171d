// The residual regressor in train mode, forward (core/training_call.h has the equations), in two
// launches.
//
// 1. normalize: a block takes 8 units over all rows of the batch, a thread every 256th row. Mean,
//    then variance from the differences to it, then n.
// 2. layers: a block takes a tile of 8 or 16 rows through dropout, the two hidden layers and the
//    output (training_kernels.h). Values stay in shared memory between layers and are stored for
//    the backward pass.
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "cuda/training_kernels.h"

ERD_NAMESPACE_BEGIN

namespace {

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

template <class T>
ERD_KERNEL(kTrainingThreads, 1)
normalize(RegressorForwardCall call) {
  const int64_t rows = call.shape.rows, features = call.shape.features, width = call.shape.width;
  SharedMemory memory;
  T* weights = memory.take<T>(features * kGroupUnits);  // [F][8]
  T* warps = memory.take<T>(kTrainingThreads / 32 * kGroupUnits);
  const int64_t first = int64_t{blockIdx.x} * kGroupUnits;
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
    for (int64_t f = 0; f < features; ++f) {
      const T value = x[row * features + f];
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

// Everything after BatchNorm's division, for one tile of rows after the other.
template <class T, int R>
ERD_KERNEL(kTrainingThreads, 1)
layers(RegressorForwardCall call) {
  constexpr int kRows = Share<R>::kRows;
  const int64_t rows = call.shape.rows, width = call.shape.width, outputs = call.shape.outputs;
  const bool relu_block = call.block == RegressorBlock::relu;
  const T scale = static_cast<T>(1.0 / (1.0 - call.shape.dropout));
  const uint64_t seed = call.seed == nullptr ? 0 : static_cast<uint64_t>(*call.seed);
  const Dropout dropout(seed, call.shape.dropout, width);
  T* const activations = static_cast<T*>(call.activations);
  const int64_t plane = rows * width;

  const Share<R> share;
  SharedMemory memory;
  const int64_t most = width > outputs ? width : outputs;
  T* values = memory.take<T>(most * kRows);
  T* next = memory.take<T>(most * kRows);
  T* pieces = memory.take<T>(2 * kPieceInputs<T> * kPiecePitch);

  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_row = tile * kRows + share.row;

    for (int64_t first = share.unit; first < width; first += kPassUnits) {
      for (int r = 0; r < R; ++r) {
        const int64_t row = first_row + r;
        const bool drops = call.seed != nullptr && row < rows;
        const uint32_t drawn = drops ? dropout.draw(row, first / 4) : 0x01010101u * kAllPass;
        for (int i = 0; i < 4 && first + i < width; ++i) {
          const int64_t unit = first + i;
          T h = T(0);
          if (row < rows) {
            const T normalized = activations[kNormalized * plane + row * width + unit];
            const T value = static_cast<const T*>(call.gamma)[unit] * normalized +
                            static_cast<const T*>(call.beta)[unit];
            // NaN is not <= 0: it stays visible, as in torch's ReLU.
            const uint32_t passes = drawn >> 8 * i & (value <= T(0) ? kAllPass - 1 : kAllPass);
            h = (passes & 1) ? scale * value : T(0);
            activations[kHidden * plane + row * width + unit] = h;
            call.passes[row * width + unit] = static_cast<uint8_t>(passes);
          }
          values[unit * kRows + share.row + r] = h;
        }
      }
    }

    for (int layer = 0; layer < 2; ++layer) {
      const uint8_t bit = static_cast<uint8_t>(2 << layer);
      for (int64_t pass = 0; pass < width; pass += kPassUnits) {
        T sums[R][4];
        multiply_tile<Weights::by_unit>(values, static_cast<const T*>(call.w_hidden[layer]), width,
                                        width, pass, pieces, share, sums);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t unit = pass + share.unit + i;
          if (unit >= width) continue;
          const T bias = static_cast<const T*>(call.b_hidden[layer])[unit];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const int64_t row = first_row + r;
            const int64_t place = unit * kRows + share.row + r;
            T h = T(0);
            if (row < rows) {
              const T change = sums[r][i] + bias;
              // This thread wrote the byte.
              uint8_t* passes = call.passes + row * width + unit;
              if (relu_block && change <= T(0)) *passes &= static_cast<uint8_t>(~bit);
              h = values[place] + ((*passes & bit) ? scale * change : T(0));
              activations[(kHidden + 1 + layer) * plane + row * width + unit] = h;
            }
            next[place] = h;
          }
        }
      }
      T* const finished = next;
      next = values;
      values = finished;
    }

    for (int64_t pass = 0; pass < outputs; pass += kPassUnits) {
      T sums[R][4];
      multiply_tile<Weights::by_unit>(values, static_cast<const T*>(call.w_out), width, outputs,
                                      pass, pieces, share, sums);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t output = pass + share.unit + i;
        if (output >= outputs) continue;
        const T bias = static_cast<const T*>(call.b_out)[output];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (first_row + r >= rows) continue;
          static_cast<T*>(call.increment)[(first_row + r) * outputs + output] = sums[r][i] + bias;
        }
      }
    }
  }
}

template <class T, int R>
void launch_layers(const RegressorForwardCall& call, const CudaDevice& device) {
  constexpr int kRows = Share<R>::kRows;
  const int64_t shared_bytes = chain_shared_bytes<T>(call.shape, kRows);
  check_chain_fits(shared_bytes, device);
  const int64_t tiles = (call.shape.rows + kRows - 1) / kRows;
  launch(layers<T, R>, device,
         LaunchShape{grid_blocks(device, tiles, 4), kTrainingThreads, shared_bytes}, call);
}

template <class T>
void run_forward(const RegressorForwardCall& call, const CudaDevice& device) {
  const int64_t groups = (call.shape.width + kGroupUnits - 1) / kGroupUnits;
  const int64_t shared_bytes = shared_size<T>(call.shape.features * kGroupUnits) +
                               shared_size<T>(kTrainingThreads / 32 * kGroupUnits);
  check_chain_fits(shared_bytes, device);
  launch(normalize<T>, device, LaunchShape{groups, kTrainingThreads, shared_bytes}, call);
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
