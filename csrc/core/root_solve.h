// Least squares for the root (paper, section 3.3): the position t of the root that best explains
// the image points of a root-relative pose.
//
// With u the undistorted normalised image point of a joint p, multiplying Eq. 5 out gives two
// equations that are linear in t:   t_x - u_x t_z = b_x,  t_y - u_y t_z = b_y,  b = u p_z - (p_x,
// p_y). Rows are weighted by the focal length (so that errors are pixels) and by the joint's
// confidence c:
//   minimise  sum_j c_j [ fx^2 (t_x - u_x t_z - b_x)^2 + fy^2 (t_y - u_y t_z - b_y)^2 ].
// Eliminating t_x and t_y centres u and b on their weighted means; what is left is one division:
//   t_z = -B / A,  A = sum c (fx^2 ~u_x^2 + fy^2 ~u_y^2),  B = sum c (fx^2 ~u_x ~b_x + fy^2 ~u_y
//   ~b_y), t_x = mean(b_x) + mean(u_x) t_z, and t_y likewise.
// Centring first keeps float32 as accurate as a QR factorisation; normal equations would square the
// error.
//
// The caller runs over the joints twice: RootMeans::add, then RootMoments::add.
#pragma once

#include "core/projection.h"

ERD_NAMESPACE_BEGIN

enum RootStatus : int32_t {
  kRootOk = 0,
  kRootTooFewJoints = 1,
  kRootOneImagePoint = 2,
  kRootBehindCamera = 3,
  kRootNotFinite = 4,
};

// Image points closer to their mean than this (root mean square, in focal lengths: about 0.001 px
// for Human3.6M's cameras) count as one point. It lies two orders above float32's rounding of the
// mean and far below what a person at any visible distance spans.
constexpr double kOneImagePoint = 1e-6;

// One joint's rows of the linear system.
template <class T>
struct RootRows {
  T confidence;  // 0 for a missing joint
  MaskOf<T> usable;
  Vec2<T> measured;  // (keypoint - c) / f, still distorted
  Vec2<T> u;         // undistorted
  Vec2<T> b;
};

template <CameraModel M, class T>
ERD_HD RootRows<T> root_rows(Vec2<T> keypoint, Vec3<T> pose, T confidence,
                             const Intrinsics<T>& camera, const DistortionCoefficients<T>& d) {
  RootRows<T> rows;
  rows.usable = joint_is_usable(confidence);
  rows.confidence = select(rows.usable, confidence, constant<T>(0));
  const Vec3<T> p = keep_if(rows.usable, pose);
  // A missing joint takes the principal point as its keypoint: harmless in every camera model.
  rows.measured = {select(rows.usable, keypoint.x - camera.cx, constant<T>(0)) / camera.fx,
                   select(rows.usable, keypoint.y - camera.cy, constant<T>(0)) / camera.fy};
  rows.u = undistort<M>(rows.measured, d);
  rows.b = {rows.u.x * p.z - p.x, rows.u.y * p.z - p.y};
  return rows;
}

// The means are summed as differences to the first usable joint: joints at one image point then
// give exactly that point, however many they are, and rounding does not pass for a spread.
template <class T>
struct RootMeans {
  T joints = constant<T>(0);  // number of usable joints
  T weight = constant<T>(0);  // sum of confidences
  Vec2<T> u = {constant<T>(0), constant<T>(0)};
  Vec2<T> b = {constant<T>(0), constant<T>(0)};

  Vec2<T> first_u = {constant<T>(0), constant<T>(0)};
  Vec2<T> first_b = {constant<T>(0), constant<T>(0)};

  ERD_HD void add(const RootRows<T>& rows) {
    const auto is_first = rows.usable & (joints <= constant<T>(0));
    first_u = {select(is_first, rows.u.x, first_u.x), select(is_first, rows.u.y, first_u.y)};
    first_b = {select(is_first, rows.b.x, first_b.x), select(is_first, rows.b.y, first_b.y)};
    accumulate(rows);
  }

  // add() for a caller that has chosen first_u and first_b: threads that share a sample must agree.
  ERD_HD void accumulate(const RootRows<T>& rows) {
    joints += select(rows.usable, constant<T>(1), constant<T>(0));
    weight += rows.confidence;
    u.x += rows.confidence * (rows.u.x - first_u.x);
    u.y += rows.confidence * (rows.u.y - first_u.y);
    b.x += rows.confidence * (rows.b.x - first_b.x);
    b.y += rows.confidence * (rows.b.y - first_b.y);
  }

  ERD_HD void finish() {
    const T zero = constant<T>(0);
    const T inverse = constant<T>(1) / select(weight > zero, weight, constant<T>(1));
    u = {first_u.x + u.x * inverse, first_u.y + u.y * inverse};
    b = {first_b.x + b.x * inverse, first_b.y + b.y * inverse};
  }
};

template <class T>
struct RootMoments {
  // Per axis, without the focal lengths: their derivatives need the bare sums.
  Vec2<T> uu = {constant<T>(0), constant<T>(0)};
  Vec2<T> ub = {constant<T>(0), constant<T>(0)};

  ERD_HD void add(const RootRows<T>& rows, const RootMeans<T>& means) {
    const Vec2<T> u = {rows.u.x - means.u.x, rows.u.y - means.u.y};
    const Vec2<T> b = {rows.b.x - means.b.x, rows.b.y - means.b.y};
    uu.x += rows.confidence * u.x * u.x;
    uu.y += rows.confidence * u.y * u.y;
    ub.x += rows.confidence * u.x * b.x;
    ub.y += rows.confidence * u.y * b.y;
  }
};

template <class T>
struct RootSolution {
  Vec3<T> root;
  T a;                 // A above, 1 where the problem is degenerate
  MaskOf<T> solved;    // the root is the minimiser: status OK or behind the camera
  MaskOf<T> in_front;  // solved and in front of the camera: status OK
  MaskOf<T> enough;    // at least two usable joints
  MaskOf<T> finite;    // every sum is finite
};

template <class T>
ERD_HD RootSolution<T> solve_root(const RootMeans<T>& means, const RootMoments<T>& moments,
                                  const Intrinsics<T>& camera) {
  const T zero = constant<T>(0);
  const T fx2 = camera.fx * camera.fx;
  const T fy2 = camera.fy * camera.fy;
  const T a = fx2 * moments.uu.x + fy2 * moments.uu.y;
  const T b = fx2 * moments.ub.x + fy2 * moments.ub.y;

  RootSolution<T> s;
  const auto spread = a > constant<T>(kOneImagePoint * kOneImagePoint) * means.weight * (fx2 + fy2);
  s.a = select(spread, a, constant<T>(1));
  const T z = -b / s.a;
  const T x = means.b.x + means.u.x * z;
  const T y = means.b.y + means.u.y * z;
  s.enough = means.joints > constant<T>(1.5);
  s.finite = is_finite(x) & is_finite(y) & is_finite(z) & is_finite(a);
  s.solved = s.enough & s.finite & spread;
  s.in_front = s.solved & (z > zero);
  s.root = keep_if(s.solved, Vec3<T>{x, y, z});
  return s;
}

// The status as a number in T, so that SIMD lanes need no integer vector of another width.
template <class T>
ERD_HD T root_status(const RootSolution<T>& s) {
  T status = select(s.in_front, constant<T>(kRootOk), constant<T>(kRootBehindCamera));
  status = select(s.solved, status, constant<T>(kRootOneImagePoint));
  status = select(s.finite, status, constant<T>(kRootNotFinite));
  return select(s.enough, status, constant<T>(kRootTooFewJoints));
}

template <class T>
struct RootJointGradient {
  Vec2<T> keypoint;
  Vec3<T> pose;
  T confidence;
};

// Gradient of <grad, t>. Since the weighted sums of ~u and ~b vanish, moving the means does not
// change A and B to first order, and a joint's share in them is its own term.
template <class T>
struct RootGradient {
  Vec3<T> grad;  // of t
  T grad_a, grad_b;
  T inverse_weight;
  T z;

  ERD_HD RootGradient(const RootSolution<T>& s, const RootMeans<T>& means, Vec3<T> grad_root) {
    grad = keep_if(s.solved, grad_root);
    z = s.root.z;
    const T grad_z = grad.z + grad.x * means.u.x + grad.y * means.u.y;
    grad_b = -grad_z / s.a;
    grad_a = grad_b * z;
    inverse_weight =
        constant<T>(1) / select(means.weight > constant<T>(0), means.weight, constant<T>(1));
  }

  // The focal lengths' share through the row weights.
  ERD_HD void add_weights(const RootMoments<T>& moments, const Intrinsics<T>& camera,
                          Intrinsics<T>& grad_camera) const {
    const T two = constant<T>(2);
    grad_camera.fx += two * camera.fx * (grad_b * moments.ub.x + grad_a * moments.uu.x);
    grad_camera.fy += two * camera.fy * (grad_b * moments.ub.y + grad_a * moments.uu.y);
  }

  template <CameraModel M>
  ERD_HD RootJointGradient<T> joint(const RootRows<T>& rows, const RootMeans<T>& means,
                                    Vec3<T> pose, const Intrinsics<T>& camera,
                                    const DistortionCoefficients<T>& d, Intrinsics<T>& grad_camera,
                                    DistortionCoefficients<T>& grad_d) const {
    const T fx2 = camera.fx * camera.fx;
    const T fy2 = camera.fy * camera.fy;
    const T two = constant<T>(2);
    const Vec3<T> p = keep_if(rows.usable, pose);
    const Vec2<T> u = {rows.u.x - means.u.x, rows.u.y - means.u.y};
    const Vec2<T> b = {rows.b.x - means.b.x, rows.b.y - means.b.y};
    const T c = rows.confidence;

    const Vec2<T> grad_rows_b = {c * (grad_b * fx2 * u.x + grad.x * inverse_weight),
                                 c * (grad_b * fy2 * u.y + grad.y * inverse_weight)};
    Vec2<T> grad_u = {
        c * (fx2 * (grad_b * b.x + two * grad_a * u.x) + grad.x * z * inverse_weight) +
            grad_rows_b.x * p.z,
        c * (fy2 * (grad_b * b.y + two * grad_a * u.y) + grad.y * z * inverse_weight) +
            grad_rows_b.y * p.z};

    RootJointGradient<T> g;
    g.pose = {-grad_rows_b.x, -grad_rows_b.y, grad_rows_b.x * rows.u.x + grad_rows_b.y * rows.u.y};
    g.confidence =
        select(rows.usable,
               grad_b * (fx2 * u.x * b.x + fy2 * u.y * b.y) +
                   grad_a * (fx2 * u.x * u.x + fy2 * u.y * u.y) +
                   (grad.x * (z * u.x + b.x) + grad.y * (z * u.y + b.y)) * inverse_weight,
               constant<T>(0));

    const Vec2<T> grad_measured = undistort_vjp<M>(rows.u, d, grad_u, grad_d);
    g.keypoint = {grad_measured.x / camera.fx, grad_measured.y / camera.fy};
    grad_camera.fx -= g.keypoint.x * rows.measured.x;
    grad_camera.fy -= g.keypoint.y * rows.measured.y;
    grad_camera.cx -= g.keypoint.x;
    grad_camera.cy -= g.keypoint.y;
    return g;
  }
};

ERD_NAMESPACE_END
