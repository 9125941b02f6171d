// The matrix product of the refiner: a stage's weights times a block of poses, poses in SIMD lanes.
//
//   out[r][lane] = epilogue(bias[r] + sum_k weights[r][k] * in[k][lane])
//
// A block is V vectors wide. A tile of R outputs keeps its R x V sums in registers while k runs;
// each weight is broadcast once per tile and used V times. R and V fill the register file: R * V
// sums, V inputs, one weight. Of such shapes the one with the fewest instructions per multiply-add
// was the fastest where the machine was shared, and as fast as others in quiet moments. The sum
// over k always runs in the same order, so a pose's result depends neither on R and V nor on the
// block's other poses.
#pragma once

#include "cpu/simd.h"

ERD_NAMESPACE_BEGIN

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

// Widest block, in vectors.
constexpr int kMaxVectors = 3;

// Outputs per tile. One vector needs 8 independent sums to cover the latency of its multiply-adds.
constexpr int tile_rows(int vectors) {
  return kVectorRegisters == 32 || vectors == 1 ? 8 : vectors == 2 ? 6 : 4;
}

template <class S, int R, int V, class Epilogue>
ERD_HD void multiply_tile(int64_t row, int64_t depth, const S* weights, const S* bias,
                          const Simd<S>* in, const Epilogue& epilogue) {
  typename Simd<S>::Native sum[R][V];
  const S* w = weights + row * depth;
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sum[r][v] = NumberTraits<Simd<S>>::broadcast(bias[row + r]).v;
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    typename Simd<S>::Native x[V];
    for (int v = 0; v < V; ++v) x[v] = in[k * V + v].v;
    for (int r = 0; r < R; ++r) {
      const S weight = w[r * depth + k];
      for (int v = 0; v < V; ++v) sum[r][v] += weight * x[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) epilogue(row + r, v, Simd<S>(sum[r][v]));
  }
}

// The rows that are left when those tiles are done, fewer than R.
template <class S, int R, int V, class Epilogue>
ERD_HD void multiply_rest(int64_t row, int64_t rows, int64_t depth, const S* weights, const S* bias,
                          const Simd<S>* in, const Epilogue& epilogue) {
  if constexpr (R > 1) {
    if (rows - row == R - 1) {
      multiply_tile<S, R - 1, V>(row, depth, weights, bias, in, epilogue);
    } else {
      multiply_rest<S, R - 1, V>(row, rows, depth, weights, bias, in, epilogue);
    }
  }
}

template <class S, int V, class Epilogue>
__attribute__((noinline)) void multiply(int64_t rows, int64_t depth, const S* weights,
                                        const S* bias, const Simd<S>* in,
                                        const Epilogue& epilogue) {
  constexpr int kTile = tile_rows(V);
  // A last tile of few rows would wait for its own sums: some tiles have one row less instead.
  const int64_t tiles = (rows + kTile - 1) / kTile;
  const int64_t missing = tiles * kTile - rows;
  const int64_t end_of_whole = (missing <= tiles ? tiles - missing : rows / kTile) * kTile;
  int64_t row = 0;
  for (; row < end_of_whole; row += kTile) {
    multiply_tile<S, kTile, V>(row, depth, weights, bias, in, epilogue);
  }
  for (; row + kTile - 1 <= rows; row += kTile - 1) {
    multiply_tile<S, kTile - 1, V>(row, depth, weights, bias, in, epilogue);
  }
  multiply_rest<S, kTile - 1, V>(row, rows, depth, weights, bias, in, epilogue);
}

ERD_NAMESPACE_END
