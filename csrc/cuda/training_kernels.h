// What the training kernels share: the tile of rows that a block takes through the layers, and the
// matrix product in shared memory.
//
// A block has 8 warps and a tile of 4 R rows. In a product a warp owns 32 neighbouring units and
// all rows of the tile; a thread 4 units and R rows, whose sums stay in registers. Values lie in
// shared memory as [unit][row], so that both operands of a step are read in 16-byte pieces, the
// four row groups and the eight unit groups of a warp each at one memory wavefront. Weights come
// from L2 a few inputs at a time by asynchronous copies, into a ring of pieces ahead of the sums.
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
// Pieces of the ring. L2 answers after some 700 clocks, in which an SM could read 45 KB: a block
// that is alone on its SM has to ask for that much at once. Where blocks share an SM, two will do.
constexpr int kDeepRing = 8;
constexpr int kShallowRing = 2;

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

// Weights [units, depth] or [depth, units].
enum class Weights { by_unit, by_input };

// The ring that weights go through, in shared memory.
template <class T>
struct WeightRing {
  static constexpr int kInputs = kPieceInputs<T>;
  static constexpr int kPiece = kInputs * kPiecePitch;
  T* pieces;  // [size][kInputs][kPiecePitch]
  int size;   // kDeepRing or kShallowRing

  // Asks for the inputs from first_input on, of units first_unit to first_unit + kPassUnits.
  template <Weights Order>
  ERD_DEVICE void fetch(const T* weights, int64_t depth, int64_t units, int64_t first_unit,
                        int64_t first_input, int turn) const {
    const int thread = static_cast<int>(threadIdx.x);
    T* const piece = pieces + turn * kPiece;
    if constexpr (Order == Weights::by_input) {
      constexpr int kNumbers = 16 / static_cast<int>(sizeof(T));
      const bool wide = units % kNumbers == 0 && reinterpret_cast<uintptr_t>(weights) % 16 == 0;
      if (wide) {
        for (int i = thread; i < kInputs * kPassUnits / kNumbers; i += kTrainingThreads) {
          const int input = i / (kPassUnits / kNumbers);
          const int unit = i % (kPassUnits / kNumbers) * kNumbers;
          const int64_t k = first_input + input, u = first_unit + unit;
          const bool valid = k < depth && u < units;
          copy_async<16>(piece + input * kPiecePitch + unit, weights + (valid ? k * units + u : 0),
                         valid);
        }
        return;
      }
    }
    for (int i = thread; i < kInputs * kPassUnits; i += kTrainingThreads) {
      // Neighbouring threads copy neighbouring memory.
      const int input = Order == Weights::by_unit ? i % kInputs : i / kPassUnits;
      const int unit = Order == Weights::by_unit ? i / kInputs : i % kPassUnits;
      const int64_t k = first_input + input, u = first_unit + unit;
      const bool valid = k < depth && u < units;
      const int64_t at = Order == Weights::by_unit ? u * depth + k : k * units + u;
      copy_async<sizeof(T)>(piece + input * kPiecePitch + unit, weights + (valid ? at : 0), valid);
    }
  }

  // Until the oldest piece that was asked for is there, for this thread's part of it.
  ERD_DEVICE void wait() const {
    if (size == kDeepRing) {
      copy_async_wait<kDeepRing - 2>();
    } else {
      copy_async_wait<kShallowRing - 2>();
    }
  }
};

// sums[r][i] = sum over k of weights(unit i, k) * values[k][row r], for the thread's rows and units
// first_unit + share.unit + i, in the order of k. Has a barrier before it reads `values`: what
// threads wrote there before is seen. Ends with one: `values` may be written again.
template <Weights Order, class T, int R>
ERD_DEVICE void multiply_tile(const T* values, const T* weights, int64_t depth, int64_t units,
                              int64_t first_unit, const WeightRing<T>& ring, const Share<R>& share,
                              T (&sums)[R][4]) {
  constexpr int kInputs = WeightRing<T>::kInputs;
  const auto fetch = [&](int64_t first_input, int turn) {
    if (first_input < depth) {
      ring.template fetch<Order>(weights, depth, units, first_unit, first_input, turn);
    }
    copy_async_commit();
  };
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[r][i] = T(0);
  }
  for (int turn = 0; turn + 1 < ring.size; ++turn) fetch(turn * kInputs, turn);

  int turn = 0;
  for (int64_t first = 0; first < depth; first += kInputs) {
    ring.wait();
    // All parts of this piece are there, and nobody reads the one before any more.
    __syncthreads();
    fetch(first + (ring.size - 1) * kInputs, turn == 0 ? ring.size - 1 : turn - 1);
    const T* piece = ring.pieces + turn * WeightRing<T>::kPiece + share.unit;
    const T* column = values + first * Share<R>::kRows + share.row;
    const auto add_input = [&](int k) {
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
    };
    if (depth - first >= kInputs) {
#pragma unroll
      for (int k = 0; k < kInputs; ++k) add_input(k);
    } else {
      for (int k = 0; k < depth - first; ++k) add_input(k);
    }
    turn = turn + 1 == ring.size ? 0 : turn + 1;
  }
  __syncthreads();
}

// The shared memory of a kernel that takes a tile through the layers.
template <class T, int R>
struct ChainMemory {
  T* values;  // [most units][rows of the tile], read by a product
  T* next;    // the same, written by it
  WeightRing<T> ring;

  ERD_DEVICE ChainMemory(const RegressorShape& shape, int ring_size) {
    SharedMemory memory;
    const int64_t most = shape.width > shape.outputs ? shape.width : shape.outputs;
    values = memory.take<T>(most * Share<R>::kRows);
    next = memory.take<T>(most * Share<R>::kRows);
    ring = {memory.take<T>(ring_size * WeightRing<T>::kPiece), ring_size};
  }
  ERD_DEVICE void swap() {
    T* const finished = next;
    next = values;
    values = finished;
  }
};
template <class T>
int64_t chain_shared_bytes(const RegressorShape& shape, int rows, int ring_size) {
  const int64_t most = shape.width > shape.outputs ? shape.width : shape.outputs;
  return 2 * shared_size<T>(most * rows) + shared_size<T>(ring_size * WeightRing<T>::kPiece);
}

// Tiles of 16 rows reuse weights twice as often as tiles of 8, which give a small batch twice the
// blocks. Results are the same.
template <class T>
int rows_per_tile(const RegressorShape& shape, const CudaDevice& device) {
  const bool large = sizeof(T) == 4 && shape.rows >= 16 * int64_t{device.multiprocessors} &&
                     chain_shared_bytes<T>(shape, 16, kShallowRing) <= device.shared_bytes;
  return large ? 16 : 8;
}

// Throws where a tile of this width does not fit into the device's shared memory.
void check_chain_fits(int64_t shared_bytes, const CudaDevice& device);

// How a kernel that takes tiles of 4 R rows through the layers is launched.
struct ChainLaunch {
  LaunchShape shape;
  int ring_size;
};
template <class T, int R>
ChainLaunch chain_launch(const RegressorShape& shape, const CudaDevice& device) {
  constexpr int kRows = Share<R>::kRows;
  const int64_t tiles = (shape.rows + kRows - 1) / kRows;
  const bool deep = tiles <= device.multiprocessors &&
                    chain_shared_bytes<T>(shape, kRows, kDeepRing) <= device.shared_bytes;
  const int ring_size = deep ? kDeepRing : kShallowRing;
  const int64_t shared_bytes = chain_shared_bytes<T>(shape, kRows, ring_size);
  check_chain_fits(shared_bytes, device);
  return {{grid_blocks(device, tiles, 4), kTrainingThreads, shared_bytes}, ring_size};
}

ERD_NAMESPACE_END
