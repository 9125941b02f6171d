// matrix_product.h in pairs of bf16: a stage's weights times a block of poses, poses in SIMD lanes.
//
//   sum[r][lane] = bias[r] + sum_k weights[k][r] . in[k][lane]        k counts pairs of inputs
//
// Weights lie column by column (core/weight_columns.h), the biases first: the same copy serves
// few_poses.h, and the rows of a tile are neighbours. The order of the sums is the same there.
#pragma once

#include "cpu/bf16_pairs.h"
#include "cpu/matrix_product.h"

ERD_NAMESPACE_BEGIN

// Outputs per tile, an even number: two make a pair. Unpacked halves need registers of their own.
#if defined(ERD_HAVE_PAIR_PRODUCTS)
constexpr int pair_tile_rows(int vectors) { return tile_rows(vectors); }
#else
constexpr int pair_tile_rows(int vectors) { return kVectorRegisters == 32 ? 6 : 8 / vectors; }
#endif

// epilogue(first row, v, its sums, the next row's sums, whether there is a next row).
template <int R, int V, class Epilogue>
ERD_HD void multiply_pairs_tile(int64_t row, int64_t depth, const BfPair* weights, int64_t pitch,
                                const BfPairs* in, const Epilogue& epilogue) {
  Floats sum[R][V];
  const BfPair* w = weights + row;
  for (int r = 0; r < R; ++r) {
    const Floats bias = reinterpret_cast<Floats>(broadcast_pair(w[r]));
    for (int v = 0; v < V; ++v) sum[r][v] = bias;
  }
  w += pitch;
  for (int64_t k = 0; k < depth; ++k, w += pitch) {
    BfPairs x[V];
    for (int v = 0; v < V; ++v) x[v] = in[k * V + v];
    for (int r = 0; r < R; ++r) {
      const BfPairs weight = broadcast_pair(w[r]);
      for (int v = 0; v < V; ++v) sum[r][v] = dot_pairs(sum[r][v], weight, x[v]);
    }
  }
  for (int r = 0; r < R; r += 2) {
    const bool has_next = r + 1 < R;
    for (int v = 0; v < V; ++v) {
      epilogue(row + r, v, sum[r][v], has_next ? sum[has_next ? r + 1 : r][v] : Floats{}, has_next);
    }
  }
}

// The rows that are left when whole tiles are done, fewer than R.
template <int R, int V, class Epilogue>
ERD_HD void multiply_pairs_rest(int64_t row, int64_t rows, int64_t depth, const BfPair* weights,
                                int64_t pitch, const BfPairs* in, const Epilogue& epilogue) {
  if constexpr (R > 1) {
    if (rows - row == R - 1) {
      multiply_pairs_tile<R - 1, V>(row, depth, weights, pitch, in, epilogue);
    } else {
      multiply_pairs_rest<R - 1, V>(row, rows, depth, weights, pitch, in, epilogue);
    }
  }
}

template <int V, class Epilogue>
__attribute__((noinline)) void multiply_pairs(int64_t rows, int64_t depth, const BfPair* weights,
                                              int64_t pitch, const BfPairs* in,
                                              const Epilogue& epilogue) {
  constexpr int kTile = pair_tile_rows(V);
  static_assert(kTile % 2 == 0, "a tile begins with a whole pair");
  int64_t row = 0;
  for (; row + kTile <= rows; row += kTile) {
    multiply_pairs_tile<kTile, V>(row, depth, weights, pitch, in, epilogue);
  }
  multiply_pairs_rest<kTile, V>(row, rows, depth, weights, pitch, in, epilogue);
}

ERD_NAMESPACE_END
