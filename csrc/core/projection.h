// Perspective projection of one joint (paper, Eq. 5) and the 2D residual against the detected joint
// (Eq. 4), with their vector-Jacobian products.
#pragma once

#include "core/camera.h"

ERD_NAMESPACE_BEGIN

// A joint at or behind the camera has no image. It is projected as if it were this far in front, in
// mm, so that the result is defined and finite; the gradient with respect to its depth is zero
// there.
constexpr double kMinDepth = 1.0;

template <class T>
struct ProjectedJoint {
  Vec2<T> pixel;       // q
  Vec2<T> normalized;  // x/z, y/z before distortion
  Vec2<T> distorted;   // after it
  T inverse_depth;
  MaskOf<T> in_front;  // depth > kMinDepth: the depth was used as it came
};

template <CameraModel M, class T>
ERD_HD ProjectedJoint<T> project_joint(Vec3<T> pose, Vec3<T> root, const Intrinsics<T>& camera,
                                       const DistortionCoefficients<T>& d) {
  ProjectedJoint<T> r;
  const T min_depth = constant<T>(kMinDepth);
  const T depth = pose.z + root.z;
  // NaN is not <= min_depth: it passes through instead of turning into a plausible pixel.
  const auto too_near = depth <= min_depth;
  r.in_front = depth > min_depth;
  r.inverse_depth = constant<T>(1) / select(too_near, min_depth, depth);
  r.normalized = {(pose.x + root.x) * r.inverse_depth, (pose.y + root.y) * r.inverse_depth};
  r.distorted = distort<M>(r.normalized, d);
  r.pixel = {camera.fx * r.distorted.x + camera.cx, camera.fy * r.distorted.y + camera.cy};
  return r;
}

// Gradient of <grad, q>. Returns the gradient for the joint (the same as for the root) and adds to
// those of the camera.
template <CameraModel M, class T>
ERD_HD Vec3<T> project_joint_vjp(const ProjectedJoint<T>& joint, const Intrinsics<T>& camera,
                                 const DistortionCoefficients<T>& d, Vec2<T> grad,
                                 Intrinsics<T>& grad_camera, DistortionCoefficients<T>& grad_d) {
  grad_camera.fx += grad.x * joint.distorted.x;
  grad_camera.fy += grad.y * joint.distorted.y;
  grad_camera.cx += grad.x;
  grad_camera.cy += grad.y;
  const Vec2<T> grad_u =
      distort_vjp<M>(joint.normalized, d, {grad.x * camera.fx, grad.y * camera.fy}, grad_d);
  const T depth_grad =
      -(grad_u.x * joint.normalized.x + grad_u.y * joint.normalized.y) * joint.inverse_depth;
  return {grad_u.x * joint.inverse_depth, grad_u.y * joint.inverse_depth,
          select(joint.in_front, depth_grad, constant<T>(0))};
}

// A joint takes part only if its confidence is positive. A missing joint's keypoint and position
// may hold anything, NaN included, so both are replaced before any arithmetic touches them.
template <class T>
ERD_HD MaskOf<T> joint_is_usable(const T& confidence) {
  return confidence > constant<T>(0);
}

template <class T>
ERD_HD Vec2<T> keep_if(const MaskOf<T>& mask, Vec2<T> p) {
  const T zero = constant<T>(0);
  return {select(mask, p.x, zero), select(mask, p.y, zero)};
}

template <class T>
ERD_HD Vec3<T> keep_if(const MaskOf<T>& mask, Vec3<T> p) {
  const T zero = constant<T>(0);
  return {select(mask, p.x, zero), select(mask, p.y, zero), select(mask, p.z, zero)};
}

ERD_NAMESPACE_END
