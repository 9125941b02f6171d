// One SIMD vector of the instruction set this file is compiled for, with the interface of a plain
// number.
//
// Built on the compilers' vector extensions rather than on intrinsics: the same source becomes
// SSE2, AVX2, AVX-512 or NEON, and fused multiply-adds appear wherever the target has them
// (-ffp-contract=fast).
#pragma once

#include "core/scalar.h"

// Width of the widest vector register that is worth using, in bytes, where the build does not
// choose.
#if defined(ERD_VECTOR_BYTES)
#elif defined(__AVX512F__)
#define ERD_VECTOR_BYTES 64
#elif defined(__AVX__)
#define ERD_VECTOR_BYTES 32
#else
#define ERD_VECTOR_BYTES 16
#endif

// Marks a function whose callers must all run the very same machine code: two copies might fuse
// other multiply-adds and round differently.
#if defined(__clang__)
#define ERD_COMPILED_ONCE __attribute__((noinline))
#else
#define ERD_COMPILED_ONCE __attribute__((noinline, noclone))
#endif

ERD_NAMESPACE_BEGIN

template <class S>
constexpr int kLanes = ERD_VECTOR_BYTES / static_cast<int>(sizeof(S));

template <class S>
struct Simd {
  typedef S Native __attribute__((vector_size(ERD_VECTOR_BYTES)));
  Native v;

  Simd() = default;
  ERD_HD Simd(Native v_) : v(v_) {}
};

template <class S>
struct SimdMask {
  typedef decltype(typename Simd<S>::Native{} > typename Simd<S>::Native{}) Native;
  Native v;
};

template <class S>
struct NumberTraits<Simd<S>> {
  using Scalar = S;
  using Mask = SimdMask<S>;
  static ERD_HD Simd<S> broadcast(S x) { return Simd<S>(x - typename Simd<S>::Native{}); }
};

template <class S>
ERD_HD Simd<S> operator-(Simd<S> a) {
  return -a.v;
}
template <class S>
ERD_HD Simd<S> operator+(Simd<S> a, Simd<S> b) {
  return a.v + b.v;
}
template <class S>
ERD_HD Simd<S> operator-(Simd<S> a, Simd<S> b) {
  return a.v - b.v;
}
template <class S>
ERD_HD Simd<S> operator*(Simd<S> a, Simd<S> b) {
  return a.v * b.v;
}
template <class S>
ERD_HD Simd<S> operator/(Simd<S> a, Simd<S> b) {
  return a.v / b.v;
}
template <class S>
ERD_HD Simd<S>& operator+=(Simd<S>& a, Simd<S> b) {
  a.v += b.v;
  return a;
}
template <class S>
ERD_HD Simd<S>& operator-=(Simd<S>& a, Simd<S> b) {
  a.v -= b.v;
  return a;
}

template <class S>
ERD_HD SimdMask<S> operator>(Simd<S> a, Simd<S> b) {
  return {a.v > b.v};
}
template <class S>
ERD_HD SimdMask<S> operator<=(Simd<S> a, Simd<S> b) {
  return {a.v <= b.v};
}
template <class S>
ERD_HD SimdMask<S> operator&(SimdMask<S> a, SimdMask<S> b) {
  return {a.v & b.v};
}
template <class S>
ERD_HD Simd<S> select(SimdMask<S> mask, Simd<S> a, Simd<S> b) {
  return mask.v ? a.v : b.v;
}
template <class S>
ERD_HD SimdMask<S> is_finite(Simd<S> a) {
  return {(a.v - a.v) == typename Simd<S>::Native{}};
}

ERD_NAMESPACE_END
