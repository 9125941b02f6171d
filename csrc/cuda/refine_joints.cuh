// The geometry of the tensor-core refiners: a group of neighbouring lanes shares one pose, joint by
// joint. Lane t of a group of G lanes owns the joints t, t + G, t + 2G, ...
#pragma once

#include "core/calls.h"
#include "core/root_solve.h"
#include "core/stage_features.h"
#include "cuda/device.h"

ERD_NAMESPACE_BEGIN

// Where the joints of one input lie: channel c of joint j of sample i is
// data[i * sample_step + j * joint_step + c * channel_step]. No data: the input is absent.
struct JointRows {
  const float* data;
  int64_t sample_step, joint_step, channel_step;

  ERD_HD const float* at(int64_t sample, int64_t joint) const {
    return data + sample * sample_step + joint * joint_step;
  }
};

inline JointRows joint_rows(const Rows& rows, int64_t channels) {
  const auto* data = static_cast<const float*>(rows.data);
  if (rows.channels == channels) {
    return {data, rows.stride, rows.joint_stride, channels == 1 ? 0 : rows.channel_stride};
  }
  return {data, rows.stride, channels * rows.joint_stride, rows.joint_stride};
}

// A dense (N, J, C) array, such as the output.
ERD_HD JointRows dense_rows(const float* data, int64_t joints, int64_t channels) {
  return {data, joints * channels, channels, 1};
}

// What the kernels need of a RefineCall, with its rows in joint order.
struct RefineInputs {
  JointRows keypoints, pose, root, intrinsics, distortion, confidence;
  const float* mean2d;
  int32_t camera_model;
  Features features;
  RootMode root_mode;
  int64_t count;
  int32_t joints, stages, width;
  bool every_stage;
  float feature_scale;
  float residual_limit;
  const unsigned char* fragments;
  const float* biases;
  float* output;

  ERD_HD bool solves(int stage) const {
    return root_mode == RootMode::solve_each_stage || (root_mode == RootMode::solve && stage == 0);
  }
};

inline RefineInputs refine_inputs(const RefineCall& call) {
  return {joint_rows(call.keypoints, 2),
          joint_rows(call.pose, 3),
          joint_rows(call.root, 3),
          joint_rows(call.intrinsics, kIntrinsics),
          joint_rows(call.distortion, kDistortion),
          joint_rows(call.confidence, 1),
          static_cast<const float*>(call.mean2d),
          call.camera_model,
          call.features,
          call.root_mode,
          call.count,
          static_cast<int32_t>(call.joints),
          static_cast<int32_t>(call.stages),
          static_cast<int32_t>(call.width),
          call.every_stage,
          call.feature_scale,
          static_cast<float>(call.residual_limit),
          static_cast<const unsigned char*>(call.fragments),
          call.fragment_biases,
          static_cast<float*>(call.output)};
}

ERD_DEVICE Vec2<float> read_pair(const JointRows& rows, int64_t sample, int joint) {
  const float* p = rows.at(sample, joint);
  return {p[0], p[rows.channel_step]};
}
ERD_DEVICE Vec3<float> read_triple(const JointRows& rows, int64_t sample, int joint) {
  const float* p = rows.at(sample, joint);
  return {p[0], p[rows.channel_step], p[2 * rows.channel_step]};
}
ERD_DEVICE float read_confidence(const JointRows& rows, int64_t sample, int joint) {
  return rows.data == nullptr ? 1.0f : *rows.at(sample, joint);
}
ERD_DEVICE Intrinsics<float> read_intrinsics(const JointRows& rows, int64_t sample) {
  const float* p = rows.at(sample, 0);
  return {p[0], p[rows.channel_step], p[2 * rows.channel_step], p[3 * rows.channel_step]};
}
ERD_DEVICE DistortionCoefficients<float> read_distortion(const JointRows& rows, int64_t sample) {
  DistortionCoefficients<float> d = DistortionCoefficients<float>::zero();
  if (rows.data == nullptr) return d;
  const float* p = rows.at(sample, 0);
  for (int i = 0; i < kDistortion; ++i) d[i] = p[i * rows.channel_step];
  return d;
}

template <CameraModel M>
struct CameraTag {
  static constexpr CameraModel model = M;
};

// Calls f with the camera model as a type; all threads take the same way.
template <class F>
ERD_DEVICE void with_lens(int32_t model, F f) {
  if (static_cast<CameraModel>(model) == CameraModel::opencv) {
    f(CameraTag<CameraModel::opencv>{});
  } else {
    f(CameraTag<CameraModel::h36m>{});
  }
}
template <class F>
ERD_DEVICE void with_camera_model(int32_t model, F f) {
  if (static_cast<CameraModel>(model) == CameraModel::pinhole) {
    f(CameraTag<CameraModel::pinhole>{});
  } else {
    with_lens(model, f);
  }
}

// The features of one joint, in px. `joint` may lie past the last one: its feature is zero.
template <CameraModel M>
ERD_DEVICE Vec2<float> feature_of(const RefineInputs& in, int64_t sample, int joint,
                                  Vec2<float> keypoint, Vec3<float> pose, Vec3<float> root,
                                  const Intrinsics<float>& camera,
                                  const DistortionCoefficients<float>& d) {
  if (joint >= in.joints) return {0.0f, 0.0f};
  const float confidence = read_confidence(in.confidence, sample, joint);
  if (in.features == Features::residual) {
    return residual_feature<M>(keypoint, confidence, pose, root, camera, d, in.residual_limit);
  }
  const Vec2<float> mean = {in.mean2d[2 * joint], in.mean2d[2 * joint + 1]};
  if (in.features == Features::init2d) return measured_feature(keypoint, confidence, mean);
  return projected_feature<M>(pose, root, camera, d, mean);
}

template <int Group>
ERD_DEVICE float sum_over_group(float x) {
#pragma unroll
  for (int lanes = Group / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

struct SolvedRoot {
  Vec3<float> root;
  bool solved;  // in front of the camera: the sample takes part
};

// The root of the sample that this group of lanes shares, by least squares (core/root_solve.h),
// from the joints in `pose`; all 32 lanes call it. Every lane reads its joints from memory, three
// times: they are in the cache, and registers are needed elsewhere.
template <int Group, int JointsPerLane, CameraModel M>
ERD_DEVICE SolvedRoot solve_shared_root(const RefineInputs& in, const JointRows& pose,
                                        int64_t sample, int lane_in_group) {
  const Intrinsics<float> camera = read_intrinsics(in.intrinsics, sample);
  const DistortionCoefficients<float> d = read_distortion(in.distortion, sample);
  const auto rows_of = [&](int m) {
    const int joint = lane_in_group + m * Group;
    const int last = in.joints - 1;
    const int readable = joint < last ? joint : last;
    const float confidence =
        joint <= last ? read_confidence(in.confidence, sample, readable) : 0.0f;
    return root_rows<M>(read_pair(in.keypoints, sample, readable),
                        read_triple(pose, sample, readable), confidence, camera, d);
  };

  // The group's first usable joint: every sum is relative to it, see RootMeans.
  RootMeans<float> means;
  int first_joint = in.joints;
#pragma unroll 1
  for (int m = JointsPerLane - 1; m >= 0; --m) {
    const RootRows<float> rows = rows_of(m);
    if (!rows.usable) continue;
    first_joint = lane_in_group + m * Group;
    means.first_u = rows.u;
    means.first_b = rows.b;
  }
  int first = first_joint;
#pragma unroll
  for (int lanes = Group / 2; lanes > 0; lanes /= 2) {
    const int other = __shfl_xor_sync(0xffffffffu, first, lanes);
    first = other < first ? other : first;
  }
  // Where no joint is usable, any lane's zeros will do.
  const int source = (threadIdx.x % 32) / Group * Group + first % Group;
  means.first_u = {__shfl_sync(0xffffffffu, means.first_u.x, source),
                   __shfl_sync(0xffffffffu, means.first_u.y, source)};
  means.first_b = {__shfl_sync(0xffffffffu, means.first_b.x, source),
                   __shfl_sync(0xffffffffu, means.first_b.y, source)};

#pragma unroll 1
  for (int m = 0; m < JointsPerLane; ++m) means.accumulate(rows_of(m));
  means.joints = sum_over_group<Group>(means.joints);
  means.weight = sum_over_group<Group>(means.weight);
  means.u = {sum_over_group<Group>(means.u.x), sum_over_group<Group>(means.u.y)};
  means.b = {sum_over_group<Group>(means.b.x), sum_over_group<Group>(means.b.y)};
  means.finish();

  RootMoments<float> moments;
#pragma unroll 1
  for (int m = 0; m < JointsPerLane; ++m) moments.add(rows_of(m), means);
  moments.uu = {sum_over_group<Group>(moments.uu.x), sum_over_group<Group>(moments.uu.y)};
  moments.ub = {sum_over_group<Group>(moments.ub.x), sum_over_group<Group>(moments.ub.y)};
  const RootSolution<float> solution = solve_root(means, moments, camera);
  return {solution.root, solution.in_front};
}

ERD_NAMESPACE_END
