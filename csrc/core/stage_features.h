// What a stage's regressor sees of one joint (paper, section 3.2 and Table 2), in px. The division
// by std2d is part of the regressor's first layer.
#pragma once

#include "core/calls.h"
#include "core/projection.h"

ERD_NAMESPACE_BEGIN

// x, brought into [-limit, limit]. NaN compares with nothing and stays NaN.
template <class T>
ERD_HD T limited(T x, T limit) {
  const T below = select(limit <= x, limit, x);
  return select(below <= -limit, -limit, below);
}

// confidence (keypoint - projection), each coordinate of the difference within the limit, zero
// where the joint is missing.
template <CameraModel M, class T>
ERD_HD Vec2<T> residual_feature(Vec2<T> keypoint, T confidence, Vec3<T> pose, Vec3<T> root,
                                const Intrinsics<T>& camera, const DistortionCoefficients<T>& d,
                                T limit) {
  const MaskOf<T> usable = joint_is_usable(confidence);
  const auto joint = project_joint<M>(keep_if(usable, pose), root, camera, d);
  // The principal point goes first: the difference of two small numbers rounds less than that of
  // two pixel coordinates.
  const T x = (keypoint.x - camera.cx) - camera.fx * joint.distorted.x;
  const T y = (keypoint.y - camera.cy) - camera.fy * joint.distorted.y;
  return keep_if(usable, Vec2<T>{confidence * limited(x, limit), confidence * limited(y, limit)});
}

// keypoint - mean2d, zero where the joint is missing.
template <class T>
ERD_HD Vec2<T> measured_feature(Vec2<T> keypoint, T confidence, Vec2<T> mean) {
  return keep_if(joint_is_usable(confidence), Vec2<T>{keypoint.x - mean.x, keypoint.y - mean.y});
}

// projection - mean2d, of missing joints too.
template <CameraModel M, class T>
ERD_HD Vec2<T> projected_feature(Vec3<T> pose, Vec3<T> root, const Intrinsics<T>& camera,
                                 const DistortionCoefficients<T>& d, Vec2<T> mean) {
  const auto joint = project_joint<M>(pose, root, camera, d);
  return {joint.pixel.x - mean.x, joint.pixel.y - mean.y};
}

ERD_NAMESPACE_END
