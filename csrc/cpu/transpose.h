// Turns a square of numbers in registers, as many vectors as a vector has lanes: rows of samples
// become lanes of samples and back.
//
// Blocks of 1, 2, 4 ... numbers change places across the diagonal, so that log2(lanes) rounds of
// shuffles replace lanes^2 scalar copies.
#pragma once

#include <cstring>
#include <utility>

#include "cpu/simd.h"

ERD_NAMESPACE_BEGIN

template <class S>
using NativeOf = typename Simd<S>::Native;

// __builtin_shufflevector came to GCC with version 12.
#if defined(__clang__) || __GNUC__ >= 12
template <class S, int... I>
ERD_HD NativeOf<S> pick_lanes(NativeOf<S> a, NativeOf<S> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, I...);
}
#else
template <class S, int... I>
ERD_HD NativeOf<S> pick_lanes(NativeOf<S> a, NativeOf<S> b, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(a, b, typename SimdMask<S>::Native{I...});
}
#endif

// Lane l of what the upper and the lower row of a pair become when their off-diagonal blocks of
// `block` numbers change places; lanes of the lower row count on from those of the upper one.
template <int Lanes, int Block>
struct BlockExchange {
  static constexpr int upper(int l) { return l & Block ? Lanes + l - Block : l; }
  static constexpr int lower(int l) { return l & Block ? Lanes + l : l + Block; }

  template <int... L>
  static std::integer_sequence<int, upper(L)...> uppers(std::integer_sequence<int, L...>);
  template <int... L>
  static std::integer_sequence<int, lower(L)...> lowers(std::integer_sequence<int, L...>);
  using Indices = std::make_integer_sequence<int, Lanes>;
  using Upper = decltype(uppers(Indices{}));
  using Lower = decltype(lowers(Indices{}));
};

template <class S, int Block = kLanes<S> / 2>
ERD_HD void transpose(NativeOf<S> (&rows)[kLanes<S>]) {
  constexpr int kRows = kLanes<S>;
  using Exchange = BlockExchange<kRows, Block>;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (i & Block) continue;
    const NativeOf<S> upper = rows[i], lower = rows[i + Block];
    rows[i] = pick_lanes<S>(upper, lower, typename Exchange::Upper{});
    rows[i + Block] = pick_lanes<S>(upper, lower, typename Exchange::Lower{});
  }
  if constexpr (Block > 1) transpose<S, Block / 2>(rows);
}

template <class S>
ERD_HD NativeOf<S> load_unaligned(const S* source) {
  NativeOf<S> value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class S>
ERD_HD void store_unaligned(NativeOf<S> value, S* target) {
  std::memcpy(target, &value, sizeof(value));
}

ERD_NAMESPACE_END
