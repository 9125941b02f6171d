// The matrix product for a single pose, some of whose inputs are zero.
//
//   sum[output] = bias[output] + sum of in[k] * weights[k][output] over the k with in[k] != 0
//
// For one pose reading the weights is nearly all there is to do, and half of a ReLU's outputs are
// zero: their rows need not be read. Finite weights times zero would leave the sums as they are,
// bit for bit but for the sign of a zero; weights lie as in few_poses.h.
//
// A layer lists its active outputs while it stores them, and the next one walks along the list.
#pragma once

#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/weight_columns.h"
#include "cpu/few_poses.h"

ERD_NAMESPACE_BEGIN

// Rows that are asked for before they are needed: those between them are left out, which no
// processor foresees.
constexpr int64_t kRowsAhead = 8;

// The units of a layer that are not zero, NaN among them, in order.
template <class S>
class ActiveInputs {
 public:
  // Elements for the list of a layer's units and padding; `close` adds some.
  static constexpr int64_t size(int64_t padded_units) { return padded_units + kRowsAhead; }

  explicit ActiveInputs(int32_t* memory) : index_(memory) {}

  // Stores units [first, first + lanes) where they belong and lists them.
  void store(NativeOf<S> values, int64_t first, S* units) {
    store_unaligned(values, units + first);
#if defined(__AVX512F__)
    // One instruction does what is a loop over the lanes elsewhere: a pose takes 4 % less.
    if constexpr (std::is_same_v<S, float>) {
      const __m512i bits = reinterpret_cast<__m512i>(values);
      const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i unit = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(first)));
      const __mmask16 is_active = _mm512_test_epi32_mask(bits, bits);
      _mm512_storeu_si512(index_ + count_, _mm512_maskz_compress_epi32(is_active, unit));
      count_ += __builtin_popcount(is_active);
      return;
    }
#endif
    for (int64_t k = first; k < first + kLanes<S>; ++k) {
      using Bits = std::conditional_t<sizeof(S) == 4, uint32_t, uint64_t>;
      Bits bits;
      std::memcpy(&bits, units + k, sizeof bits);
      index_[count_] = static_cast<int32_t>(k);
      count_ += bits != 0;
    }
  }

  // After the last one of `units`: forgets padding, and repeats the first rows to be read.
  void close(int64_t units) {
    while (count_ > 0 && index_[count_ - 1] >= units) --count_;
    for (int64_t i = 0; i < kRowsAhead; ++i) index_[count_ + i] = count_ > i ? index_[i] : 0;
  }

  int64_t count() const { return count_; }
  int32_t operator[](int64_t i) const { return index_[i]; }

 private:
  int32_t* index_;
  int64_t count_ = 0;
};

// Where a layer's weights lie, see core/weight_columns.h.
template <class S>
struct ActiveWeights {
  const S* rows;
  int64_t pitch;
  const S* tail = nullptr;  // where there is none
};

typedef float TailSums __attribute__((vector_size(kTail * sizeof(float))));

// A tile of V vectors of outputs and, behind the layer's last one, its tail.
template <class S, int V, bool HasTail, class Epilogue>
ERD_HD void multiply_active_tile(int64_t first, const ActiveInputs<S>& active,
                                 const ActiveWeights<S>& weights, const S* in,
                                 const Epilogue& epilogue) {
  constexpr int64_t kCount = kLanes<S>;
  const int64_t pitch = weights.pitch;
  NativeOf<S> sum[V];
  for (int v = 0; v < V; ++v) sum[v] = load_unaligned(weights.rows + first + v * kCount);
  TailSums tail_sum = {};
  if constexpr (HasTail) std::memcpy(&tail_sum, weights.tail, sizeof tail_sum);
  const S* rows = weights.rows + pitch + first;
  const int64_t count = active.count();
  for (int64_t i = 0; i < count; ++i) {
    // Past the end the next tile begins.
    const S* ahead = rows + active[i + kRowsAhead] * pitch;
    if (i + kRowsAhead >= count) ahead += V * kCount;
    for (int v = 0; v < V; v += 64 / ERD_VECTOR_BYTES) __builtin_prefetch(ahead + v * kCount);
    const int64_t k = active[i];
    const S value = in[k];
    for (int v = 0; v < V; ++v) sum[v] += value * load_unaligned(rows + k * pitch + v * kCount);
    if constexpr (HasTail) {
      TailSums w;
      std::memcpy(&w, weights.tail + (1 + k) * kTail, sizeof w);
      tail_sum += value * w;
    }
  }
  for (int v = 0; v < V; ++v) epilogue(first + v * kCount, Simd<S>(sum[v]));
  if constexpr (HasTail) {
    NativeOf<S> widened = {};
    std::memcpy(&widened, &tail_sum, sizeof tail_sum);
    epilogue(first + V * kCount, Simd<S>(widened));
  }
}

// epilogue(first output, vector of sums) for every vector of the outputs; the last one may reach
// into the padding.
template <class S, class Epilogue>
ERD_HD void multiply_active(int64_t outputs, const ActiveInputs<S>& active,
                            const ActiveWeights<S>& weights, const S* in,
                            const Epilogue& epilogue) {
  constexpr bool kMayHaveTail = std::is_same_v<S, float>;
  const bool has_tail = kMayHaveTail && weights.tail != nullptr;
  const int64_t in_tiles = has_tail ? outputs - outputs % kColumnPadding : outputs;
  for_each_tile<few_vectors(1), kLanes<S>>(in_tiles, [&](auto vectors, int64_t first) {
    if (has_tail && first + vectors * kLanes<S> >= in_tiles) {
      multiply_active_tile<S, vectors, kMayHaveTail>(first, active, weights, in, epilogue);
    } else {
      multiply_active_tile<S, vectors, false>(first, active, weights, in, epilogue);
    }
  });
}

ERD_NAMESPACE_END
