// project, residual, solve_root and solve_residual for one sample: loops over the joints around
// csrc/core's formulas.
//
// Each function is a struct with
//   what GeometryShape has
//   forward(joints, in, out)
//   forward_with_status(joints, in, out)   the same, returns the RootStatus; where has_status
//   vjp(joints, in, grad, g)   fills g for every used slot; gradients_in_place says whether g may
//   be
//                              where in is
// for any number type T: SIMD lanes, or dual numbers over them for second order.
#pragma once

#include "core/geometry_shape.h"
#include "core/root_solve.h"

ERD_NAMESPACE_BEGIN

// A sample's inputs, or its gradients: element e of a slot lies at data[slot][e * Pitch]. The pitch
// lets a sample function run on one vector of a block that is several vectors wide.
template <class T, int Pitch = 1>
struct Slots {
  using Number = T;
  T* data[kSlots];

  ERD_HD T& at(int slot, int64_t element) const { return data[slot][element * Pitch]; }

  ERD_HD Vec2<T> pair(int slot, int64_t j) const { return {at(slot, 2 * j), at(slot, 2 * j + 1)}; }
  ERD_HD Vec2<T> keypoint(int64_t j) const { return pair(kSlotKeypoints, j); }
  ERD_HD Vec2<T> std(int64_t j) const { return pair(kSlotStd, j); }
  ERD_HD Vec3<T> pose(int64_t j) const {
    return {at(kSlotPose, 3 * j), at(kSlotPose, 3 * j + 1), at(kSlotPose, 3 * j + 2)};
  }
  ERD_HD Vec3<T> root() const { return {at(kSlotRoot, 0), at(kSlotRoot, 1), at(kSlotRoot, 2)}; }
  ERD_HD Intrinsics<T> intrinsics() const {
    return {at(kSlotIntrinsics, 0), at(kSlotIntrinsics, 1), at(kSlotIntrinsics, 2),
            at(kSlotIntrinsics, 3)};
  }
  ERD_HD DistortionCoefficients<T> distortion() const {
    DistortionCoefficients<T> d;
    for (int i = 0; i < kDistortion; ++i) d.value[i] = at(kSlotDistortion, i);
    return d;
  }
  ERD_HD T confidence(int64_t j) const { return at(kSlotConfidence, j); }

  ERD_HD void set_pair(int slot, int64_t j, Vec2<T> value) const {
    at(slot, 2 * j) = value.x;
    at(slot, 2 * j + 1) = value.y;
  }
  ERD_HD void set_triple(int slot, int64_t j, Vec3<T> value) const {
    at(slot, 3 * j) = value.x;
    at(slot, 3 * j + 1) = value.y;
    at(slot, 3 * j + 2) = value.z;
  }
};

// Gradients that collect a share from every joint.
template <class T>
struct SharedGradients {
  Vec3<T> root = {constant<T>(0), constant<T>(0), constant<T>(0)};
  Intrinsics<T> intrinsics = {constant<T>(0), constant<T>(0), constant<T>(0), constant<T>(0)};
  DistortionCoefficients<T> distortion = DistortionCoefficients<T>::zero();

  ERD_HD void add_root(Vec3<T> g) {
    root.x += g.x;
    root.y += g.y;
    root.z += g.z;
  }
  ERD_HD void store(const Slots<T>& g) const {
    g.set_triple(kSlotRoot, 0, root);
    g.at(kSlotIntrinsics, 0) = intrinsics.fx;
    g.at(kSlotIntrinsics, 1) = intrinsics.fy;
    g.at(kSlotIntrinsics, 2) = intrinsics.cx;
    g.at(kSlotIntrinsics, 3) = intrinsics.cy;
    for (int i = 0; i < kDistortion; ++i) g.at(kSlotDistortion, i) = distortion.value[i];
  }
  // Adds the camera's gradients where `solved`: the sums of an unsolvable sample may hold NaN.
  ERD_HD void add_to(const Slots<T>& g, const MaskOf<T>& solved) const {
    const T zero = constant<T>(0);
    g.at(kSlotIntrinsics, 0) += select(solved, intrinsics.fx, zero);
    g.at(kSlotIntrinsics, 1) += select(solved, intrinsics.fy, zero);
    g.at(kSlotIntrinsics, 2) += select(solved, intrinsics.cx, zero);
    g.at(kSlotIntrinsics, 3) += select(solved, intrinsics.cy, zero);
    for (int i = 0; i < kDistortion; ++i) {
      g.at(kSlotDistortion, i) += select(solved, distortion.value[i], zero);
    }
  }
};

template <CameraModel M>
struct ProjectFunction : GeometryShape<GeometryFunction::project> {
  template <class T>
  static ERD_HD void forward(int64_t joints, const Slots<T>& in, T* out) {
    for (int64_t j = 0; j < joints; ++j) {
      const auto joint = project_joint<M>(in.pose(j), in.root(), in.intrinsics(), in.distortion());
      out[2 * j] = joint.pixel.x;
      out[2 * j + 1] = joint.pixel.y;
    }
  }

  template <class T>
  static ERD_HD void vjp(int64_t joints, const Slots<T>& in, const T* grad, const Slots<T>& g) {
    SharedGradients<T> shared;
    for (int64_t j = 0; j < joints; ++j) {
      const auto joint = project_joint<M>(in.pose(j), in.root(), in.intrinsics(), in.distortion());
      const Vec3<T> grad_joint = project_joint_vjp<M>(joint, in.intrinsics(), in.distortion(),
                                                      Vec2<T>{grad[2 * j], grad[2 * j + 1]},
                                                      shared.intrinsics, shared.distortion);
      g.set_triple(kSlotPose, j, grad_joint);
      shared.add_root(grad_joint);
    }
    shared.store(g);
  }
};

template <CameraModel M>
struct ResidualFunction : GeometryShape<GeometryFunction::residual> {
  // The joint with a missing one's unknown quantities replaced, so that 0 * NaN never happens.
  template <class T>
  struct Joint {
    MaskOf<T> usable;
    ProjectedJoint<T> projected;
    Vec2<T> difference;  // keypoint - projection, px
    T confidence;
  };

  template <class T, int Pitch>
  static ERD_HD Joint<T> joint(const Slots<T, Pitch>& in, int64_t j) {
    Joint<T> r;
    const T confidence = in.confidence(j);
    r.usable = joint_is_usable(confidence);
    r.confidence = select(r.usable, confidence, constant<T>(0));
    r.projected = project_joint<M>(keep_if(r.usable, in.pose(j)), in.root(), in.intrinsics(),
                                   in.distortion());
    const Vec2<T> keypoint = in.keypoint(j);
    r.difference = keep_if(
        r.usable, Vec2<T>{keypoint.x - r.projected.pixel.x, keypoint.y - r.projected.pixel.y});
    return r;
  }

  template <class T>
  static ERD_HD Vec2<T> usable_std(const Slots<T>& in, int64_t j, const MaskOf<T>& usable) {
    const Vec2<T> std = in.std(j);
    const T one = constant<T>(1);
    return {select(usable, std.x, one), select(usable, std.y, one)};
  }

  template <class T>
  static ERD_HD void forward(int64_t joints, const Slots<T>& in, T* out) {
    for (int64_t j = 0; j < joints; ++j) {
      const Joint<T> r = joint(in, j);
      const Vec2<T> std = usable_std(in, j, r.usable);
      out[2 * j] = r.confidence * r.difference.x / std.x;
      out[2 * j + 1] = r.confidence * r.difference.y / std.y;
    }
  }

  template <class T>
  static ERD_HD void vjp(int64_t joints, const Slots<T>& in, const T* grad, const Slots<T>& g) {
    SharedGradients<T> shared;
    for (int64_t j = 0; j < joints; ++j) {
      const Joint<T> r = joint(in, j);
      const Vec2<T> std = usable_std(in, j, r.usable);
      const Vec2<T> incoming = keep_if(r.usable, Vec2<T>{grad[2 * j], grad[2 * j + 1]});
      const Vec2<T> scaled = {incoming.x / std.x, incoming.y / std.y};
      const Vec2<T> grad_keypoint = {r.confidence * scaled.x, r.confidence * scaled.y};
      const Vec3<T> grad_joint = project_joint_vjp<M>(r.projected, in.intrinsics(), in.distortion(),
                                                      Vec2<T>{-grad_keypoint.x, -grad_keypoint.y},
                                                      shared.intrinsics, shared.distortion);
      g.set_pair(kSlotKeypoints, j, grad_keypoint);
      g.set_triple(kSlotPose, j, grad_joint);
      g.set_pair(
          kSlotStd, j,
          {-grad_keypoint.x * r.difference.x / std.x, -grad_keypoint.y * r.difference.y / std.y});
      g.at(kSlotConfidence, j) = scaled.x * r.difference.x + scaled.y * r.difference.y;
      shared.add_root(grad_joint);
    }
    shared.store(g);
  }
};

template <CameraModel M>
struct SolveRootFunction : GeometryShape<GeometryFunction::solve_root> {
  template <class T>
  struct Solved {
    RootMeans<T> means;
    RootMoments<T> moments;
    RootSolution<T> solution;
  };

  template <class T, int Pitch>
  static ERD_HD RootRows<T> rows(const Slots<T, Pitch>& in, int64_t j) {
    return root_rows<M>(in.keypoint(j), in.pose(j), in.confidence(j), in.intrinsics(),
                        in.distortion());
  }

  template <class T, int Pitch>
  static ERD_HD Solved<T> solve(int64_t joints, const Slots<T, Pitch>& in) {
    Solved<T> s;
    for (int64_t j = 0; j < joints; ++j) s.means.add(rows(in, j));
    s.means.finish();
    for (int64_t j = 0; j < joints; ++j) s.moments.add(rows(in, j), s.means);
    s.solution = erd::solve_root(s.means, s.moments, in.intrinsics());
    return s;
  }

  template <class T>
  static ERD_HD T forward_with_status(int64_t joints, const Slots<T>& in, T* out) {
    const RootSolution<T> solution = solve(joints, in).solution;
    out[0] = solution.root.x, out[1] = solution.root.y, out[2] = solution.root.z;
    return root_status(solution);
  }
  template <class T>
  static ERD_HD void forward(int64_t joints, const Slots<T>& in, T* out) {
    forward_with_status(joints, in, out);
  }

  template <class T>
  static ERD_HD void vjp(int64_t joints, const Slots<T>& in, const T* grad, const Slots<T>& g) {
    const Solved<T> s = solve(joints, in);
    const MaskOf<T> solved = s.solution.solved;
    const RootGradient<T> gradient(s.solution, s.means, Vec3<T>{grad[0], grad[1], grad[2]});
    SharedGradients<T> shared;
    gradient.add_weights(s.moments, in.intrinsics(), shared.intrinsics);
    for (int64_t j = 0; j < joints; ++j) {
      const RootJointGradient<T> r =
          gradient.template joint<M>(rows(in, j), s.means, in.pose(j), in.intrinsics(),
                                     in.distortion(), shared.intrinsics, shared.distortion);
      g.set_pair(kSlotKeypoints, j, keep_if(solved, r.keypoint));
      g.set_triple(kSlotPose, j, keep_if(solved, r.pose));
      g.at(kSlotConfidence, j) = select(solved, r.confidence, constant<T>(0));
    }
    for (int i = 0; i < kIntrinsics; ++i) g.at(kSlotIntrinsics, i) = constant<T>(0);
    for (int i = 0; i < kDistortion; ++i) g.at(kSlotDistortion, i) = constant<T>(0);
    shared.add_to(g, solved);
  }
};

// residual with the root that solve_root finds, both differentiated through: out holds the residual
// [2J], then the root [3]. A sample whose root cannot be found has the root 0, as in solve_root.
template <CameraModel M>
struct SolveResidualFunction : GeometryShape<GeometryFunction::solve_residual> {
  using Solve = SolveRootFunction<M>;
  using Residual = ResidualFunction<M>;

  template <class T>
  static ERD_HD T forward_with_status(int64_t joints, const Slots<T>& in, T* out) {
    const RootSolution<T> solution = Solve::solve(joints, in).solution;
    T root[3] = {solution.root.x, solution.root.y, solution.root.z};
    Slots<T> with_root = in;
    with_root.data[kSlotRoot] = root;
    Residual::forward(joints, with_root, out);
    for (int i = 0; i < 3; ++i) out[2 * joints + i] = root[i];
    return root_status(solution);
  }
  template <class T>
  static ERD_HD void forward(int64_t joints, const Slots<T>& in, T* out) {
    forward_with_status(joints, in, out);
  }

  template <class T>
  static ERD_HD void vjp(int64_t joints, const Slots<T>& in, const T* grad, const Slots<T>& g) {
    const auto s = Solve::solve(joints, in);
    const MaskOf<T> solved = s.solution.solved;
    T root[3] = {s.solution.root.x, s.solution.root.y, s.solution.root.z};
    T grad_root[3];
    Slots<T> with_root = in, g_with_root = g;
    with_root.data[kSlotRoot] = root;
    g_with_root.data[kSlotRoot] = grad_root;
    Residual::vjp(joints, with_root, grad, g_with_root);

    for (int i = 0; i < 3; ++i) grad_root[i] += grad[2 * joints + i];
    const RootGradient<T> gradient(s.solution, s.means,
                                   Vec3<T>{grad_root[0], grad_root[1], grad_root[2]});
    SharedGradients<T> shared;
    gradient.add_weights(s.moments, in.intrinsics(), shared.intrinsics);
    for (int64_t j = 0; j < joints; ++j) {
      const RootJointGradient<T> r =
          gradient.template joint<M>(Solve::rows(in, j), s.means, in.pose(j), in.intrinsics(),
                                     in.distortion(), shared.intrinsics, shared.distortion);
      const Vec2<T> keypoint = keep_if(solved, r.keypoint);
      const Vec3<T> pose = keep_if(solved, r.pose);
      g.at(kSlotKeypoints, 2 * j) += keypoint.x;
      g.at(kSlotKeypoints, 2 * j + 1) += keypoint.y;
      g.at(kSlotPose, 3 * j) += pose.x;
      g.at(kSlotPose, 3 * j + 1) += pose.y;
      g.at(kSlotPose, 3 * j + 2) += pose.z;
      g.at(kSlotConfidence, j) += select(solved, r.confidence, constant<T>(0));
    }
    shared.add_to(g, solved);
  }
};

ERD_NAMESPACE_END
