// The few operations the mathematics needs beyond + - * /, for plain scalars. Wider number types
// (SIMD lanes, dual numbers) provide the same names, so every formula in csrc/core is written once
// and runs on all of them. Conditions are masks combined by & and |, never branches: a SIMD vector
// takes both sides.
#pragma once

#include <cstdint>

#include "core/portability.h"

ERD_NAMESPACE_BEGIN

template <class T>
struct NumberTraits;

template <>
struct NumberTraits<float> {
  using Scalar = float;
  using Mask = bool;
  static ERD_HD float broadcast(float x) { return x; }
};

template <>
struct NumberTraits<double> {
  using Scalar = double;
  using Mask = bool;
  static ERD_HD double broadcast(double x) { return x; }
};

template <class T>
using ScalarOf = typename NumberTraits<T>::Scalar;
template <class T>
using MaskOf = typename NumberTraits<T>::Mask;

// A constant in the number type T, without a detour through double for float kernels.
template <class T>
ERD_HD T constant(double value) {
  return NumberTraits<T>::broadcast(static_cast<ScalarOf<T>>(value));
}

ERD_HD float select(bool mask, float a, float b) { return mask ? a : b; }
ERD_HD double select(bool mask, double a, double b) { return mask ? a : b; }

// True for finite numbers only: x - x is NaN for infinities and NaN.
ERD_HD bool is_finite(float x) { return x - x == 0.0f; }
ERD_HD bool is_finite(double x) { return x - x == 0.0; }

template <class T>
struct Vec2 {
  T x, y;
};

template <class T>
struct Vec3 {
  T x, y, z;
};

ERD_NAMESPACE_END
