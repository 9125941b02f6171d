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

template <class S, int V, class Epilogue>
ERD_HD void multiply_active_tile(int64_t first, const ActiveInputs<S>& active, const S* weights,
                                 int64_t pitch, const S* in, const Epilogue& epilogue) {
  NativeOf<S> sum[V];
  for (int v = 0; v < V; ++v) sum[v] = load_unaligned(weights + first + v * kLanes<S>);
  const S* rows = weights + pitch + first;
  const int64_t count = active.count();
  for (int64_t i = 0; i < count; ++i) {
    // Past the end the next tile begins.
    const S* ahead = rows + active[i + kRowsAhead] * pitch;
    if (i + kRowsAhead >= count) ahead += V * kLanes<S>;
    for (int v = 0; v < V; v += 64 / ERD_VECTOR_BYTES) __builtin_prefetch(ahead + v * kLanes<S>);
    const S* row = rows + active[i] * pitch;
    const S value = in[active[i]];
    for (int v = 0; v < V; ++v) sum[v] += value * load_unaligned(row + v * kLanes<S>);
  }
  for (int v = 0; v < V; ++v) epilogue(first + v * kLanes<S>, Simd<S>(sum[v]));
}

// epilogue(first output, vector of sums) for every vector of the outputs; the last one may reach
// into the padding.
template <class S, class Epilogue>
ERD_HD void multiply_active(int64_t outputs, const ActiveInputs<S>& active, const S* weights,
                            int64_t pitch, const S* in, const Epilogue& epilogue) {
  for_each_tile<few_vectors(1), kLanes<S>>(outputs, [&](auto vectors, int64_t first) {
    multiply_active_tile<S, vectors>(first, active, weights, pitch, in, epilogue);
  });
}

ERD_NAMESPACE_END
