// Dual numbers: a value and its derivative along one direction.
//
// They give second-order gradients without a second set of formulas. For a function f with
// vector-Jacobian product g(x, v) = J(x)^T v, the gradient of <g(x, v), t> is
//   with respect to v:  J(x) t               = the tangent of f(x + e t)
//   with respect to x:  d/de g(x + e t, v)   = the tangent of g at x + e t   (Hessians are
//   symmetric)
// so double backward is the forward and the backward kernel run on Dual inputs with tangent t.
#pragma once

#include "core/scalar.h"

ERD_NAMESPACE_BEGIN

template <class T>
struct Dual {
  T value;
  T tangent;

  Dual() = default;
  ERD_HD Dual(T value_) : value(value_), tangent(constant<T>(0)) {}
  ERD_HD Dual(T value_, T tangent_) : value(value_), tangent(tangent_) {}
};

template <class T>
struct NumberTraits<Dual<T>> {
  using Scalar = ScalarOf<T>;
  using Mask = MaskOf<T>;
  static ERD_HD Dual<T> broadcast(Scalar x) { return Dual<T>(NumberTraits<T>::broadcast(x)); }
};

template <class T>
ERD_HD Dual<T> operator-(const Dual<T>& a) {
  return {-a.value, -a.tangent};
}
template <class T>
ERD_HD Dual<T> operator+(const Dual<T>& a, const Dual<T>& b) {
  return {a.value + b.value, a.tangent + b.tangent};
}
template <class T>
ERD_HD Dual<T> operator-(const Dual<T>& a, const Dual<T>& b) {
  return {a.value - b.value, a.tangent - b.tangent};
}
template <class T>
ERD_HD Dual<T> operator*(const Dual<T>& a, const Dual<T>& b) {
  return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
}
template <class T>
ERD_HD Dual<T> operator/(const Dual<T>& a, const Dual<T>& b) {
  const T quotient = a.value / b.value;
  return {quotient, (a.tangent - quotient * b.tangent) / b.value};
}
template <class T>
ERD_HD Dual<T>& operator+=(Dual<T>& a, const Dual<T>& b) {
  a = a + b;
  return a;
}
template <class T>
ERD_HD Dual<T>& operator-=(Dual<T>& a, const Dual<T>& b) {
  a = a - b;
  return a;
}

// Comparisons look at values only: on either side of a threshold the function is another smooth
// one.
template <class T>
ERD_HD MaskOf<T> operator>(const Dual<T>& a, const Dual<T>& b) {
  return a.value > b.value;
}
template <class T>
ERD_HD MaskOf<T> operator<=(const Dual<T>& a, const Dual<T>& b) {
  return a.value <= b.value;
}
template <class T>
ERD_HD Dual<T> select(const MaskOf<T>& mask, const Dual<T>& a, const Dual<T>& b) {
  return {select(mask, a.value, b.value), select(mask, a.tangent, b.tangent)};
}
template <class T>
ERD_HD MaskOf<T> is_finite(const Dual<T>& a) {
  return is_finite(a.value);
}

ERD_NAMESPACE_END
