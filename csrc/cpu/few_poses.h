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

// The vectors that are left when whole tiles are done, fewer than V.
template <class E, int P, int V, class Epilogue>
ERD_HD void multiply_few_rest(int64_t first, int64_t left, int64_t depth, const E* weights,
                              int64_t pitch, FewInputs<E> in, const Epilogue& epilogue) {
  if constexpr (V > 1) {
    if (left == V - 1) {
      multiply_few_tile<E, P, V - 1>(first, depth, weights, pitch, in, epilogue);
    } else {
      multiply_few_rest<E, P, V - 1>(first, left, depth, weights, pitch, in, epilogue);
    }
  }
}

// epilogue(pose, first output, vector of sums) for every vector of the outputs; the last one may
// reach into the padding.
template <class E, int P, class Epilogue>
ERD_HD void multiply_few(int64_t outputs, int64_t depth, const E* weights, int64_t pitch,
                         FewInputs<E> in, const Epilogue& epilogue) {
  constexpr int64_t kCount = kLanes<E>;
  constexpr int V = few_vectors(P);
  const int64_t vectors = (outputs + kCount - 1) / kCount;
  int64_t done = 0;
  for (; done + V <= vectors; done += V) {
    multiply_few_tile<E, P, V>(done * kCount, depth, weights, pitch, in, epilogue);
  }
  multiply_few_rest<E, P, V>(done * kCount, vectors - done, depth, weights, pitch, in, epilogue);
}

ERD_NAMESPACE_END
