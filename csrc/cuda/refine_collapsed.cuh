// One chunk of a collapsed regressor on tensor cores: 16 hidden units, from the features of up to
// 32 poses to their share of the increments. Layout and notation are those of fragments.h.
#pragma once

#include "cuda/fragments.h"
#include "cuda/refine_joints.cuh"
#include "cuda/vectors.h"

ERD_NAMESPACE_BEGIN

// Two neighbouring numbers as tensor cores take them; with Split, in two parts whose sum is them.
template <class Number, bool Split>
struct Packed;

template <class Number>
struct Packed<Number, false> {
  uint32_t high;
  ERD_DEVICE static Packed of(float first, float second) { return {Number::pack(first, second)}; }
  ERD_DEVICE static Packed of_relu(float first, float second) {
    return {Number::pack_relu(first, second)};
  }
};

template <class Number>
struct Packed<Number, true> {
  uint32_t high, low;
  ERD_DEVICE static Packed of(float first, float second) {
    const uint32_t high = Number::pack(first, second);
    const float2 rounded = Number::unpack(high);
    return {high, Number::pack(first - rounded.x, second - rounded.y)};
  }
  // NaN is not <= 0: it stays visible.
  ERD_DEVICE static Packed of_relu(float first, float second) {
    return of(first <= 0.0f ? 0.0f : first, second <= 0.0f ? 0.0f : second);
  }
};

// The A operand of one step: rows g and g + 8, columns 2t, 2t + 1 and (full steps only) the same
// eight further on.
template <class Number, bool Split>
struct OperandA {
  Packed<Number, Split> part[4];
};

// One lane's share of a chunk: what the first product needs, and the second.
template <class Layout>
struct FirstWeights {
  Four<uint32_t> full[Layout::full_steps];
  Two<uint32_t> half;

  ERD_DEVICE static FirstWeights load(const unsigned char* chunk, int lane) {
    FirstWeights weights;
#pragma unroll
    for (int s = 0; s < Layout::full_steps; ++s) {
      weights.full[s] = reinterpret_cast<const Four<uint32_t>*>(chunk + 512 * s)[lane];
    }
    if (Layout::has_half_step) {
      weights.half = reinterpret_cast<const Two<uint32_t>*>(chunk + 512 * Layout::full_steps)[lane];
    }
    return weights;
  }
};

template <class Layout>
struct SecondWeights {
  Four<uint32_t> pair[Layout::tiles / 2];

  ERD_DEVICE static SecondWeights load(const unsigned char* chunk, int lane) {
    SecondWeights weights;
#pragma unroll
    for (int i = 0; i < Layout::tiles / 2; ++i) {
      weights.pair[i] = reinterpret_cast<const Four<uint32_t>*>(begin(chunk) + 512 * i)[lane];
    }
    return weights;
  }
  // Of one output tile.
  ERD_DEVICE static Two<uint32_t> load_tile(const unsigned char* chunk, int tile, int lane) {
    const auto* pair = reinterpret_cast<const Two<uint32_t>*>(begin(chunk) + 512 * (tile / 2));
    return pair[2 * lane + tile % 2];
  }
  ERD_DEVICE static const unsigned char* begin(const unsigned char* chunk) {
    return chunk + 512 * Layout::full_steps + 256 * Layout::has_half_step;
  }
};

template <class Layout>
struct ChunkWeights {
  FirstWeights<Layout> first;
  SecondWeights<Layout> second;

  ERD_DEVICE static ChunkWeights load(const unsigned char* chunk, int lane) {
    return {FirstWeights<Layout>::load(chunk, lane), SecondWeights<Layout>::load(chunk, lane)};
  }
};

// What a lane holds of the features of 16 poses.
template <class Number, bool Split, class Layout>
struct FeatureOperand {
  OperandA<Number, Split> full[Layout::full_steps];
  Packed<Number, Split> half[2];  // rows g and g + 8

  // Sets both features of the lane's m-th joint in row g (row 0) or g + 8 (row 1).
  ERD_DEVICE void set(int m, int row, Packed<Number, Split> features) {
    if (m / 2 < Layout::full_steps) {
      full[m / 2].part[2 * (m % 2) + row] = features;
    } else {
      half[row] = features;
    }
  }
};

// d += (high parts of a) B; with Low, the low parts.
template <class Number, bool Split, bool Low>
ERD_DEVICE void multiply_step(float (&d)[4], const OperandA<Number, Split>& a, uint32_t b0,
                              uint32_t b1) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (Low) {
      words[i] = a.part[i].low;
    } else {
      words[i] = a.part[i].high;
    }
  }
  mma<Number>(d, words, b0, b1);
}

// hidden += features times one part of the chunk's first weights.
template <class Number, bool Split, bool Low, class Layout>
ERD_DEVICE void first_product(float (&hidden)[2][4],
                              const FeatureOperand<Number, Split, Layout>& features,
                              const FirstWeights<Layout>& weights) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int s = 0; s < Layout::full_steps; ++s) {
      multiply_step<Number, Split, Low>(hidden[tile], features.full[s], weights.full[s].v[2 * tile],
                                        weights.full[s].v[2 * tile + 1]);
    }
    if constexpr (Layout::has_half_step) {
      if constexpr (Low) {
        mma_k8<Number>(hidden[tile], features.half[0].low, features.half[1].low,
                       weights.half.v[tile]);
      } else {
        mma_k8<Number>(hidden[tile], features.half[0].high, features.half[1].high,
                       weights.half.v[tile]);
      }
    }
  }
}

template <class Number, class Layout>
ERD_DEVICE void second_product(float (&out)[Layout::tiles][4],
                               const OperandA<Number, false>& hidden,
                               const SecondWeights<Layout>& weights) {
#pragma unroll
  for (int tile = 0; tile < Layout::tiles; ++tile) {
    const Four<uint32_t>& pair = weights.pair[tile / 2];
    multiply_step<Number, false, false>(out[tile], hidden, pair.v[2 * (tile % 2)],
                                        pair.v[2 * (tile % 2) + 1]);
  }
}

// The same in split precision, from the chunk and its low parts in memory. Tensor cores round sums
// toward zero: each chunk's share is summed apart and added in the float32 units, lest that pile
// up.
template <class Number, class Layout>
ERD_DEVICE void second_split_product(float (&out)[Layout::tiles][4],
                                     const OperandA<Number, true>& hidden,
                                     const unsigned char* chunk, const unsigned char* low_chunk,
                                     int lane) {
#pragma unroll
  for (int tile = 0; tile < Layout::tiles; ++tile) {
    const Two<uint32_t> high = SecondWeights<Layout>::load_tile(chunk, tile, lane);
    const Two<uint32_t> low = SecondWeights<Layout>::load_tile(low_chunk, tile, lane);
    float share[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply_step<Number, true, true>(share, hidden, high.v[0], high.v[1]);
    multiply_step<Number, true, false>(share, hidden, low.v[0], low.v[1]);
    multiply_step<Number, true, false>(share, hidden, high.v[0], high.v[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[tile][i] += share[i];
  }
}

// b_in of the chunk's hidden units; bias points at the lane's four. A pose that is not active must
// have zero features: without a bias its hidden units are zero, and it gains nothing.
ERD_DEVICE void start_hidden(float (&hidden)[2][4], const float* bias, const bool (&active)[2]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    hidden[i / 4][i % 4] = active[i % 4 / 2] ? bias[i / 4 * 2 + i % 2] : 0.0f;
  }
}

template <class Number, bool Split>
ERD_DEVICE OperandA<Number, Split> activate(const float (&hidden)[2][4]) {
  OperandA<Number, Split> a;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a.part[i] =
        Packed<Number, Split>::of_relu(hidden[i / 2][i % 2 * 2], hidden[i / 2][i % 2 * 2 + 1]);
  }
  return a;
}

// out += W_out relu(W_in f + b_in) over the chunk's 16 hidden units, for RowTiles times 16 poses.
template <class Number, class Layout, int RowTiles>
ERD_DEVICE void multiply_chunk(float (&out)[RowTiles][Layout::tiles][4],
                               const FeatureOperand<Number, false, Layout> (&features)[RowTiles],
                               const bool (&active)[RowTiles][2], const float* bias,
                               const ChunkWeights<Layout>& weights) {
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
    float hidden[2][4];
    start_hidden(hidden, bias, active[r]);
    first_product<Number, false, false>(hidden, features[r], weights.first);
    const auto a = activate<Number, false>(hidden);
    second_product(out[r], a, weights.second);
  }
}

// The same in split precision, from the chunk and its low parts in memory.
template <class Number, class Layout, int RowTiles>
ERD_DEVICE void multiply_split_chunk(
    float (&out)[RowTiles][Layout::tiles][4],
    const FeatureOperand<Number, true, Layout> (&features)[RowTiles],
    const bool (&active)[RowTiles][2], const float* bias, const unsigned char* chunk, int lane) {
  static_assert(RowTiles == 1, "split operands of more poses do not fit into registers");
  const unsigned char* low_chunk = chunk + Layout::chunk_bytes;
  float hidden[2][4];
  start_hidden(hidden, bias, active[0]);
  first_product<Number, true, false>(hidden, features[0],
                                     FirstWeights<Layout>::load(low_chunk, lane));
  const auto high = FirstWeights<Layout>::load(chunk, lane);
  first_product<Number, true, true>(hidden, features[0], high);
  first_product<Number, true, false>(hidden, features[0], high);
  const auto a = activate<Number, true>(hidden);
  second_split_product<Number, Layout>(out[0], a, chunk, low_chunk, lane);
}

// What a kernel is an instance of.
template <class Number_, bool Split_, class Layout_>
struct CollapsedKernel {
  using Number = Number_;
  using Layout = Layout_;
  static constexpr bool Split = Split_;
};

// Calls f with the CollapsedKernel that serves a call.
template <class F>
void with_collapsed_kernel(const RefineCall& call, F f) {
  with_fragment_layout(call.joints, [&](auto layout) {
    using Layout = decltype(layout);
    switch (call.precision) {
      case Precision::split:
        return f(CollapsedKernel<Fp16, true, Layout>{});
      case Precision::bf16:
        return f(CollapsedKernel<Bf16, false, Layout>{});
      default:
        return f(CollapsedKernel<Fp16, false, Layout>{});
    }
  });
}

ERD_NAMESPACE_END
