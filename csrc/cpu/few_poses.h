// The matrix product for few poses, outputs in SIMD lanes: poses would leave most lanes empty.
//
//   sum[p][output] = bias[output] + sum_k in[p][k] * weights[k][output]
//
// A tile of V vectors of outputs for P poses keeps its sums in registers while k runs; each weight
// is loaded once and used P times, so that a single pose costs little more than reading the
// weights. Weights lie column by column (core/weight_columns.h), the biases first. The sum over k
// runs in the same order as in matrix_product.h and pair_product.h: a pose's result is the same,
// bit for bit.
//
// Inputs and weights are numbers of the type of the sums, or pairs of bf16: E is either.
#pragma once

#include <type_traits>

#include "core/calls.h"
#include "cpu/bf16_pairs.h"

ERD_NAMESPACE_BEGIN

// Most poses of a tile.
constexpr int kFewPoses = 6;

// Elements for the hidden units of these poses, `pitch` for each; a relu block has two layers at a
// time.
inline int64_t few_hidden_size(const RefineCall& call, int64_t pitch) {
  const int64_t poses = call.count < kFewPoses ? call.count : kFewPoses;
  return (call.block == RegressorBlock::relu ? 2 : 1) * poses * pitch;
}

// Vectors of outputs per tile: 8 to 12 sums cover the latency of multiply-adds and leave registers
// for the weights.
constexpr int few_vectors(int poses) {
  return poses == 1 ? 8 : poses == 2 ? 4 : poses == 3 ? 3 : 2;
}

// Element k of pose p lies at data[k * step + p * pose_step].
template <class E>
struct FewInputs {
  const E* data;
  int64_t step;
  int64_t pose_step;
};

template <class E>
using SumOf = std::conditional_t<std::is_same_v<E, BfPair>, float, E>;

template <class E, int P, int V, class Epilogue>
ERD_HD void multiply_few_tile(int64_t first, int64_t depth, const E* weights, int64_t pitch,
                              FewInputs<E> in, const Epilogue& epilogue) {
  constexpr int64_t kCount = kLanes<E>;
  using Sums = NativeOf<SumOf<E>>;
  Sums sum[P][V];
  for (int v = 0; v < V; ++v) {
    const Sums bias = reinterpret_cast<Sums>(load_unaligned(weights + first + v * kCount));
    for (int p = 0; p < P; ++p) sum[p][v] = bias;
  }
  const E* row = weights + pitch + first;
  const E* x = in.data;
  for (int64_t k = 0; k < depth; ++k, row += pitch, x += in.step) {
    NativeOf<E> w[V];
    for (int v = 0; v < V; ++v) w[v] = load_unaligned(row + v * kCount);
    for (int p = 0; p < P; ++p) {
      const E value = x[p * in.pose_step];
      for (int v = 0; v < V; ++v) {
        if constexpr (std::is_same_v<E, BfPair>) {
          sum[p][v] = dot_pairs(sum[p][v], broadcast_pair(value), w[v]);
        } else {
          sum[p][v] += value * w[v];
        }
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    for (int v = 0; v < V; ++v) epilogue(p, first + v * kCount, Simd<SumOf<E>>(sum[p][v]));
  }
}

// body(V as a constant, first output) for the tiles of some outputs: of V vectors each, but for the
// last one, which has those that are left.
template <int V, int64_t Lanes, class Body>
ERD_HD void for_each_tile(int64_t outputs, const Body& body, int64_t first = 0) {
  if constexpr (V > 0) {
    for (; first + (V - 1) * Lanes < outputs; first += V * Lanes) {
      body(std::integral_constant<int, V>(), first);
    }
    for_each_tile<V - 1, Lanes>(outputs, body, first);
  }
}

// epilogue(pose, first output, vector of sums) for every vector of the outputs; the last one may
// reach into the padding.
template <class E, int P, class Epilogue>
ERD_HD void multiply_few(int64_t outputs, int64_t depth, const E* weights, int64_t pitch,
                         FewInputs<E> in, const Epilogue& epilogue) {
  for_each_tile<few_vectors(P), kLanes<E>>(outputs, [&](auto vectors, int64_t first) {
    multiply_few_tile<E, P, vectors>(first, depth, weights, pitch, in, epilogue);
  });
}

ERD_NAMESPACE_END
