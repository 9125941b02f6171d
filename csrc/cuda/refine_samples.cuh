// What the refiner does between its matrix products: a tile of samples in shared memory, moved in
// and out, their roots solved, their features computed, all by csrc/core's formulas.
//
// A sample's numbers lie together, in the order of the slots, and the distance from one sample to
// the next is odd: threads that work on neighbouring samples then never meet in a memory bank, and
// neither do threads that work on neighbouring elements of one sample.
#pragma once

#include "core/feature_count.h"
#include "core/sample_functions.h"
#include "core/stage_features.h"
#include "cuda/device.h"

ERD_NAMESPACE_BEGIN

template <class S>
class SampleTile {
 public:
  // Elements of S per sample.
  static ERD_HD int pitch(int64_t joints) {
    int64_t total = 0;
    for (int slot = 0; slot < kSlots; ++slot) total += is_held(slot) ? slot_width(slot, joints) : 0;
    return static_cast<int>(total | 1);
  }

  ERD_HD SampleTile(S* data, int64_t joints) : pitch_(pitch(joints)) {
    for (int slot = 0; slot < kSlots; ++slot) {
      base_.data[slot] = data;
      if (is_held(slot)) data += slot_width(slot, joints);
    }
  }

  // Sample p of the tile.
  ERD_HD Slots<S> sample(int p) const {
    Slots<S> view;
    for (int slot = 0; slot < kSlots; ++slot) view.data[slot] = base_.data[slot] + p * pitch_;
    return view;
  }

  // Samples first .. first + poses - 1, one warp a sample; they are there after the next barrier.
  // Past the end of the batch the last sample is repeated, so that no thread works on undefined
  // numbers. No confidence means 1.
  ERD_DEVICE void load(const RefineCall& call, int64_t first, int poses) const {
    load_slot<kSlotKeypoints>(call.keypoints, call, first, poses);
    load_slot<kSlotPose>(call.pose, call, first, poses);
    load_slot<kSlotRoot>(call.root, call, first, poses);
    load_slot<kSlotIntrinsics>(call.intrinsics, call, first, poses);
    load_slot<kSlotDistortion>(call.distortion, call, first, poses);
    load_slot<kSlotConfidence>(call.confidence, call, first, poses);
    copy_async_commit();
    copy_async_wait<0>();
  }

  // The poses, as rows of the output that follow one another.
  ERD_DEVICE void store_pose(const RefineCall& call, int64_t stage, int64_t first,
                             int poses) const {
    const int width = static_cast<int>(3 * call.joints);
    const int64_t row = (call.every_stage ? stage * call.count : 0) + first;
    S* target = static_cast<S*>(call.output) + row * width;
    const int warps = static_cast<int>(blockDim.x / 32);
    for (int p = static_cast<int>(threadIdx.x / 32); p < poses && first + p < call.count;
         p += warps) {
      const S* source = base_.data[kSlotPose] + p * pitch_;
      for (int e = static_cast<int>(threadIdx.x % 32); e < width; e += 32) {
        target[int64_t{p} * width + e] = source[e];
      }
    }
  }

 private:
  static ERD_HD constexpr bool is_held(int slot) { return slot != kSlotStd; }

  template <int Slot>
  ERD_DEVICE void load_slot(const Rows& rows, const RefineCall& call, int64_t first,
                            int poses) const {
    if (rows.data == nullptr && Slot != kSlotConfidence) return;
    const int width = static_cast<int>(slot_width(Slot, call.joints));
    const int channels = static_cast<int>(rows.channels);
    const int warps = static_cast<int>(blockDim.x / 32);
    for (int p = static_cast<int>(threadIdx.x / 32); p < poses; p += warps) {
      const int64_t i = first + p < call.count ? first + p : call.count - 1;
      const S* source = static_cast<const S*>(rows.data) + i * rows.stride;
      S* target = base_.data[Slot] + p * pitch_;
      for (int e = static_cast<int>(threadIdx.x % 32); e < width; e += 32) {
        if (rows.data == nullptr) {
          target[e] = S(1);
        } else {
          const int joint = e / channels;
          copy_async<static_cast<int>(sizeof(S))>(
              target + e,
              source + joint * rows.joint_stride + (e - joint * channels) * rows.channel_stride);
        }
      }
    }
  }

  Slots<S> base_;
  int pitch_;
};

// Solves for the sample's root. Returns whether there is one in front of the camera.
template <CameraModel M, class S>
ERD_HD bool solve_sample_root(int64_t joints, const Slots<S>& sample) {
  const auto solution = SolveRootFunction<M>::solve(joints, sample).solution;
  sample.set_triple(kSlotRoot, 0, solution.root);
  return solution.in_front;
}

template <class S>
ERD_HD bool solve_sample_root(const RefineCall& call, const Slots<S>& sample) {
  switch (static_cast<CameraModel>(call.camera_model)) {
    case CameraModel::opencv:
      return solve_sample_root<CameraModel::opencv>(call.joints, sample);
    case CameraModel::h36m:
      return solve_sample_root<CameraModel::h36m>(call.joints, sample);
    default:
      return solve_sample_root<CameraModel::pinhole>(call.joints, sample);
  }
}

template <CameraModel M, class S, class Store>
ERD_DEVICE void tile_features(const RefineCall& call, const SampleTile<S>& tile, int poses,
                              const Store& store) {
  const int joints = static_cast<int>(call.joints);
  const int p = static_cast<int>(threadIdx.x) % poses;
  const auto* mean2d = static_cast<const S*>(call.mean2d);
  const Slots<S> sample = tile.sample(p);
  const Vec3<S> root = sample.root();
  const Intrinsics<S> camera = sample.intrinsics();
  const DistortionCoefficients<S> lens = sample.distortion();
  const int step = static_cast<int>(blockDim.x) / poses;
  for (int j = static_cast<int>(threadIdx.x) / poses; j < joints; j += step) {
    if (call.features == Features::residual || call.features == Features::residual_pose) {
      store(p, 2 * j,
            residual_feature<M>(sample.keypoint(j), sample.confidence(j), sample.pose(j), root,
                                camera, lens, static_cast<S>(call.residual_limit)));
      continue;
    }
    const Vec2<S> mean = {mean2d[2 * j], mean2d[2 * j + 1]};
    if (call.features != Features::proj2d) {
      store(p, 2 * j, measured_feature(sample.keypoint(j), sample.confidence(j), mean));
    }
    if (call.features != Features::init2d) {
      const int first = call.features == Features::concat ? 2 * joints : 0;
      store(p, first + 2 * j, projected_feature<M>(sample.pose(j), root, camera, lens, mean));
    }
  }
}

// The coordinates of the pose, behind the two features of each joint.
template <class S, class Store>
ERD_DEVICE void tile_pose(const RefineCall& call, const SampleTile<S>& tile, int poses,
                          const Store& store) {
  const int joints = static_cast<int>(call.joints);
  const int p = static_cast<int>(threadIdx.x) % poses;
  const S* pose = tile.sample(p).data[kSlotPose];
  const int step = static_cast<int>(blockDim.x) / poses * 2;
  ERD_ROLLED
  for (int e = static_cast<int>(threadIdx.x) / poses * 2; e < 3 * joints; e += step) {
    store(p, 2 * joints + e, {pose[e], e + 1 < 3 * joints ? pose[e + 1] : S(0)});
  }
}

// The features of a tile of `poses` samples, which divides the block's threads: calls
// store(p, e, pair) with elements e and e + 1 of sample p, in px (a pose's in mm); e is even. Where
// the number of features is odd, the last pair ends with a zero that is no feature: there must be
// room for it.
template <class S, class Store>
ERD_DEVICE void tile_features(const RefineCall& call, const SampleTile<S>& tile, int poses,
                              const Store& store) {
  if (call.features == Features::residual_pose) tile_pose(call, tile, poses, store);
  switch (static_cast<CameraModel>(call.camera_model)) {
    case CameraModel::opencv:
      return tile_features<CameraModel::opencv>(call, tile, poses, store);
    case CameraModel::h36m:
      return tile_features<CameraModel::h36m>(call, tile, poses, store);
    default:
      return tile_features<CameraModel::pinhole>(call, tile, poses, store);
  }
}

// NaN is not <= 0: it stays visible, as in torch's ReLU.
template <class S>
ERD_HD S relu(S x) {
  return x <= S(0) ? S(0) : x;
}

ERD_NAMESPACE_END
