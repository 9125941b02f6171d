// Camera models: a normalised image point (x/z, y/z) to pixels and back, with derivatives.
//
//   pinhole   q = f u + c                                                     (paper, Eq. 5)
//   opencv    u is distorted first, coefficients k1 k2 p1 p2 k3               (OpenCV calib3d)
//   h36m      Human3.6M's own model, coefficients k1 k2 k3 p1 p2: no factor 2 on the tangential
//   terms
//
// Both distortions are one formula. With r2 = |u|^2, t = a x + b y and m = 1 + k1 r2 + k2 r2^2 + k3
// r2^3 + s t:
//   u' = u m + (a, b) r2,   opencv: (a, b, s) = (p2, p1, 2),   h36m: (a, b, s) = (p1, p2, 1).
#pragma once

#include "core/scalar.h"

ERD_NAMESPACE_BEGIN

enum class CameraModel : int32_t { pinhole = 0, opencv = 1, h36m = 2 };

constexpr int kIntrinsics = 4;  // fx fy cx cy
constexpr int kDistortion = 5;

template <class T>
struct Intrinsics {
  T fx, fy, cx, cy;
};

template <class T>
struct DistortionCoefficients {
  T value[kDistortion];

  ERD_HD const T& operator[](int i) const { return value[i]; }
  ERD_HD T& operator[](int i) { return value[i]; }
  static ERD_HD DistortionCoefficients zero() {
    const T z = constant<T>(0);
    return {{z, z, z, z, z}};
  }
};

// Where each term of the common formula sits in the model's coefficient vector.
template <CameraModel M>
struct DistortionLayout;

template <>
struct DistortionLayout<CameraModel::opencv> {
  static constexpr int k1 = 0, k2 = 1, k3 = 4, a = 3, b = 2;
  static constexpr double tangential = 2.0;
};

template <>
struct DistortionLayout<CameraModel::h36m> {
  static constexpr int k1 = 0, k2 = 1, k3 = 2, a = 3, b = 4;
  static constexpr double tangential = 1.0;
};

template <class T>
struct DistortionTerms {
  T r2, m, slope;  // slope = d(radial part)/d(r2)
};

template <CameraModel M, class T>
ERD_HD DistortionTerms<T> distortion_terms(Vec2<T> u, const DistortionCoefficients<T>& d) {
  using L = DistortionLayout<M>;
  const T one = constant<T>(1);
  const T r2 = u.x * u.x + u.y * u.y;
  const T radial = one + r2 * (d[L::k1] + r2 * (d[L::k2] + r2 * d[L::k3]));
  const T slope = d[L::k1] + r2 * (constant<T>(2) * d[L::k2] + constant<T>(3) * r2 * d[L::k3]);
  const T m = radial + constant<T>(L::tangential) * (d[L::a] * u.x + d[L::b] * u.y);
  return {r2, m, slope};
}

template <CameraModel M, class T>
ERD_HD Vec2<T> distort(Vec2<T> u, const DistortionCoefficients<T>& d) {
  if constexpr (M == CameraModel::pinhole) {
    return u;
  } else {
    using L = DistortionLayout<M>;
    const DistortionTerms<T> s = distortion_terms<M>(u, d);
    return {u.x * s.m + d[L::a] * s.r2, u.y * s.m + d[L::b] * s.r2};
  }
}

// Gradient of <grad, distort(u, d)>: returned for u, added to grad_d for the coefficients.
template <CameraModel M, class T>
ERD_HD Vec2<T> distort_vjp(Vec2<T> u, const DistortionCoefficients<T>& d, Vec2<T> grad,
                           DistortionCoefficients<T>& grad_d) {
  if constexpr (M == CameraModel::pinhole) {
    return grad;
  } else {
    using L = DistortionLayout<M>;
    const DistortionTerms<T> s = distortion_terms<M>(u, d);
    const T grad_m = grad.x * u.x + grad.y * u.y;
    const T grad_t = constant<T>(L::tangential) * grad_m;
    const T grad_r2 = grad_m * s.slope + grad.x * d[L::a] + grad.y * d[L::b];
    grad_d[L::k1] += grad_m * s.r2;
    grad_d[L::k2] += grad_m * s.r2 * s.r2;
    grad_d[L::k3] += grad_m * s.r2 * s.r2 * s.r2;
    grad_d[L::a] += grad_t * u.x + grad.x * s.r2;
    grad_d[L::b] += grad_t * u.y + grad.y * s.r2;
    const T two_grad_r2 = constant<T>(2) * grad_r2;
    return {grad.x * s.m + grad_t * d[L::a] + two_grad_r2 * u.x,
            grad.y * s.m + grad_t * d[L::b] + two_grad_r2 * u.y};
  }
}

template <class T>
struct Matrix2 {
  T xx, xy, yx, yy;
};

// d distort(u) / d u.
template <CameraModel M, class T>
ERD_HD Matrix2<T> distort_jacobian(Vec2<T> u, const DistortionCoefficients<T>& d) {
  using L = DistortionLayout<M>;
  const DistortionTerms<T> s = distortion_terms<M>(u, d);
  const T two = constant<T>(2);
  const T tangential = constant<T>(L::tangential);
  const T m_x = two * s.slope * u.x + tangential * d[L::a];
  const T m_y = two * s.slope * u.y + tangential * d[L::b];
  return {s.m + u.x * m_x + two * d[L::a] * u.x, u.x * m_y + two * d[L::a] * u.y,
          u.y * m_x + two * d[L::b] * u.x, s.m + u.y * m_y + two * d[L::b] * u.y};
}

// The inverse of distort by Newton's method. The number of steps is fixed, not adaptive, so that a
// sample's result never depends on the samples that share its SIMD vector; from the distorted point
// as start, lenses as strong as Human3.6M's converge in four. Where no point maps to `distorted`
// (past the turning point of the radial polynomial) the answer is NaN, which the root solve reports
// as a status.
constexpr int kUndistortSteps = 8;
constexpr double kUndistortTolerance = 1e-5;  // about 0.01 px at Human3.6M's focal length

template <CameraModel M, class T>
ERD_HD Vec2<T> undistort(Vec2<T> distorted, const DistortionCoefficients<T>& d) {
  if constexpr (M == CameraModel::pinhole) {
    return distorted;
  } else {
    Vec2<T> u = distorted;
    ERD_ROLLED
    for (int step = 0; step < kUndistortSteps; ++step) {
      const Vec2<T> image = distort<M>(u, d);
      const Matrix2<T> j = distort_jacobian<M>(u, d);
      const T inverse_det = constant<T>(1) / (j.xx * j.yy - j.xy * j.yx);
      const T ex = image.x - distorted.x;
      const T ey = image.y - distorted.y;
      u.x -= (j.yy * ex - j.xy * ey) * inverse_det;
      u.y -= (j.xx * ey - j.yx * ex) * inverse_det;
    }
    const Vec2<T> image = distort<M>(u, d);
    const T ex = image.x - distorted.x;
    const T ey = image.y - distorted.y;
    const T zero = constant<T>(0);
    const Matrix2<T> j = distort_jacobian<M>(u, d);
    // A ray through the lens keeps its side of the axis and its orientation; Newton's method may
    // also end on a fold of the polynomial, where no ray passes.
    const auto found =
        (ex * ex + ey * ey <= constant<T>(kUndistortTolerance * kUndistortTolerance)) &
        (distortion_terms<M>(u, d).m > zero) & (j.xx * j.yy - j.xy * j.yx > zero);
    const T nan = constant<T>(__builtin_nan(""));
    return {select(found, u.x, nan), select(found, u.y, nan)};
  }
}

// Gradient of <grad, undistort(p, d)> by the implicit function theorem: with J the Jacobian of
// distort at u, the gradient for p is J^-T grad, and distort's coefficient gradient of its negative
// is that for d.
template <CameraModel M, class T>
ERD_HD Vec2<T> undistort_vjp(Vec2<T> u, const DistortionCoefficients<T>& d, Vec2<T> grad,
                             DistortionCoefficients<T>& grad_d) {
  if constexpr (M == CameraModel::pinhole) {
    return grad;
  } else {
    const Matrix2<T> j = distort_jacobian<M>(u, d);
    const T inverse_det = constant<T>(1) / (j.xx * j.yy - j.xy * j.yx);
    const Vec2<T> grad_p = {(j.yy * grad.x - j.yx * grad.y) * inverse_det,
                            (j.xx * grad.y - j.xy * grad.x) * inverse_det};
    distort_vjp<M>(u, d, {-grad_p.x, -grad_p.y}, grad_d);
    return grad_p;
  }
}

ERD_NAMESPACE_END
