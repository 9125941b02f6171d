// Pairs of bf16 numbers in 32-bit lanes, and the one step that processors have an instruction for:
// the two products of a lane's pairs, added to its float32 sum.
//
// bf16 is the upper half of a float32; a pair's first number is in the lane's lower half. Without
// the instruction two multiply-adds of the unpacked halves do the same, so that the layout, and
// everything built on it, runs and is tested on every processor.
#pragma once

#include "cpu/transpose.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#define ERD_HAVE_PAIR_PRODUCTS
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <arm_neon.h>
#define ERD_HAVE_PAIR_PRODUCTS
#endif

ERD_NAMESPACE_BEGIN

using BfPair = uint32_t;
using BfPairs = NativeOf<BfPair>;
using Floats = NativeOf<float>;

ERD_HD BfPairs broadcast_pair(BfPair pair) { return pair - BfPairs{}; }

ERD_HD Floats first_numbers(BfPairs pairs) { return reinterpret_cast<Floats>(pairs << 16); }
ERD_HD Floats second_numbers(BfPairs pairs) {
  return reinterpret_cast<Floats>(pairs & broadcast_pair(0xffff0000u));
}

// sum + a.second * b.second + a.first * b.first.
ERD_HD Floats dot_pairs(Floats sum, BfPairs a, BfPairs b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#elif defined(ERD_HAVE_PAIR_PRODUCTS)
  return vbfdotq_f32(sum, reinterpret_cast<bfloat16x8_t>(a), reinterpret_cast<bfloat16x8_t>(b));
#else
  sum += second_numbers(a) * second_numbers(b);  // in the order of AVX-512
  sum += first_numbers(a) * first_numbers(b);
  return sum;
#endif
}

// ---- rounding: to the nearest bf16, of two that are as near to the even one ---------------------

#if defined(ERD_HAVE_PAIR_PRODUCTS)

// The instructions put all first numbers before all second ones.
template <class Lanes = std::make_integer_sequence<int, kLanes<uint16_t>>>
struct PairOrder;
template <int... L>
struct PairOrder<std::integer_sequence<int, L...>> {
  using Type = std::integer_sequence<int, (L % 2 * kLanes<BfPair> + L / 2)...>;
};

ERD_HD BfPairs round_pairs(Floats first, Floats second) {
#if defined(__AVX512BF16__)
  const auto rounded = _mm512_cvtne2ps_pbh(second, first);
#else
  const auto rounded = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(first), second);
#endif
  const auto halves = reinterpret_cast<NativeOf<uint16_t>>(rounded);
  return reinterpret_cast<BfPairs>(pick_lanes<uint16_t>(halves, halves, PairOrder<>::Type{}));
}

// Neighbouring lanes become a pair in memory.
ERD_HD void store_rounded(Floats x, BfPair* target) {
#if defined(__AVX512BF16__)
  const auto rounded = _mm512_cvtneps_pbh(x);
#else
  const auto rounded = vcvt_bf16_f32(x);
#endif
  std::memcpy(target, &rounded, sizeof(rounded));
}

#else

// The rounded number in each lane's upper half; what is left in the lower one means nothing.
ERD_HD BfPairs rounded_bits(Floats x) {
  const BfPairs bits = reinterpret_cast<BfPairs>(x);
  const BfPairs nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
  // A NaN must not be carried into an infinity, or around to zero.
  return x == x ? nearest : bits | 0x400000u;
}

ERD_HD BfPairs round_pairs(Floats first, Floats second) {
  return (rounded_bits(first) >> 16) | (rounded_bits(second) & broadcast_pair(0xffff0000u));
}

// Neighbouring lanes become a pair in memory.
ERD_HD void store_rounded(Floats x, BfPair* target) {
  typedef uint16_t Halves __attribute__((vector_size(sizeof(Floats) / 2)));
  const Halves rounded = __builtin_convertvector(rounded_bits(x) >> 16, Halves);
  std::memcpy(target, &rounded, sizeof(rounded));
}

#endif

// The inverse of store_rounded.
ERD_HD Floats load_rounded(const BfPair* source) {
  typedef uint16_t Halves __attribute__((vector_size(sizeof(Floats) / 2)));
  Halves halves;
  std::memcpy(&halves, source, sizeof(halves));
  return first_numbers(__builtin_convertvector(halves, BfPairs));
}

ERD_NAMESPACE_END
