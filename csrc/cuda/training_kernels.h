// What the training kernels share: the tile of rows that a block takes through the layers, and the
// matrix product in shared memory.
//
// A block has 8 warps and a tile of 4 R rows. In a product a warp owns 32 neighbouring units and
// all rows of the tile; a thread 4 units and R rows, whose sums stay in registers. Values lie in
// shared memory as [unit][row], so that both operands of a step are read in 16-byte pieces, the
// four row groups and the eight unit groups of a warp each at one memory wavefront. Weights come
// from L2 a few inputs at a time by asynchronous copies, one piece ahead of the sums.
#pragma once

#include "core/dropout.h"
#include "core/training_call.h"
#include "cuda/launch.h"
#include "cuda/vectors.h"

ERD_NAMESPACE_BEGIN

constexpr int kTrainingThreads = 256;
constexpr int kPassUnits = kTrainingThreads;  // units of one pass over a layer
// A unit's piece of weights is 32 bytes, one memory sector. The pitch keeps the scattered stores of
// a transposed piece in different banks.
template <class T>
constexpr int kPieceInputs = 32 / static_cast<int>(sizeof(T));
constexpr int kPiecePitch = kPassUnits + 4;

// Which units and rows of a tile this thread owns.
template <int R>
struct Share {
  static constexpr int kRows = 4 * R;  // of the tile
  int unit;                            // first of 4, within a pass
  int row;                             // first of R, within the tile

  ERD_DEVICE Share() {
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    unit = thread / 32 * 32 + lane % 8 * 4;
    row = lane / 8 * R;
  }
};

// Weights [units, depth] for the forward pass, [depth, units] for the backward pass.
enum class Weights { by_unit, by_input };

// sums[r][i] = sum over k of weights(unit i, k) * values[k][row r], for the thread's rows and units
// first_unit + share.unit + i, in the order of k. Begins with a barrier: what threads wrote to
// `values` before is seen. Ends with one: `values` may be written again.
template <Weights Order, class T, int R>
ERD_DEVICE void multiply_tile(const T* values, const T* weights, int64_t depth, int64_t units,
                              int64_t first_unit, T* pieces, const Share<R>& share,
                              T (&sums)[R][4]) {
  constexpr int kInputs = kPieceInputs<T>;
  constexpr int kPiece = kInputs * kPiecePitch;
  const int thread = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int64_t first_input, T* piece) {
    for (int i = thread; i < kInputs * kPassUnits; i += kTrainingThreads) {
      // Neighbouring threads copy neighbouring memory.
      const int input = Order == Weights::by_unit ? i % kInputs : i / kPassUnits;
      const int unit = Order == Weights::by_unit ? i / kInputs : i % kPassUnits;
      const int64_t k = first_input + input, u = first_unit + unit;
      const bool valid = k < depth && u < units;
      const int64_t at = Order == Weights::by_unit ? u * depth + k : k * units + u;
      copy_async<sizeof(T)>(piece + input * kPiecePitch + unit, weights + (valid ? at : 0), valid);
    }
  };

#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[r][i] = T(0);
  }
  fetch(0, pieces);
  copy_async_commit();
  for (int64_t first = 0, turn = 0; first < depth; first += kInputs, turn ^= 1) {
    if (first + kInputs < depth) fetch(first + kInputs, pieces + (turn ^ 1) * kPiece);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    const T* piece = pieces + turn * kPiece + share.unit;
    const T* column = values + first * Share<R>::kRows + share.row;
    const int inputs = depth - first < kInputs ? static_cast<int>(depth - first) : kInputs;
    for (int k = 0; k < inputs; ++k) {
      const Four<T> weight = as_four(piece + k * kPiecePitch);
      T value[R];
      if constexpr (R == 4) {
        const Four<T> four = as_four(column + k * Share<R>::kRows);
#pragma unroll
        for (int r = 0; r < R; ++r) value[r] = four.v[r];
      } else {
        const Two<T> two = as_two(column + k * Share<R>::kRows);
#pragma unroll
        for (int r = 0; r < R; ++r) value[r] = two.v[r];
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[r][i] += weight.v[i] * value[r];
      }
    }
    __syncthreads();
  }
}

// Shared memory of a kernel that keeps two sets of values of a tile.
template <class T>
int64_t chain_shared_bytes(const RegressorShape& shape, int rows) {
  const int64_t most = shape.width > shape.outputs ? shape.width : shape.outputs;
  return 2 * shared_size<T>(most * rows) + shared_size<T>(2 * kPieceInputs<T> * kPiecePitch);
}

// Tiles of 16 rows reuse weights twice as often as tiles of 8, which give a small batch twice the
// blocks. Results are the same.
template <class T>
int rows_per_tile(const RegressorShape& shape, const CudaDevice& device) {
  const bool large = sizeof(T) == 4 && shape.rows >= 16 * int64_t{device.multiprocessors} &&
                     chain_shared_bytes<T>(shape, 16) <= device.shared_bytes;
  return large ? 16 : 8;
}

// Throws where a tile of this width does not fit into the device's shared memory.
void check_chain_fits(int64_t shared_bytes, const CudaDevice& device);

ERD_NAMESPACE_END
