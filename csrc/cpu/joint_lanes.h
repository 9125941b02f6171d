// A single pose with its joints in SIMD lanes, as if each joint were a sample of its own: a pose a
// lane would leave most lanes empty. The functions that run on them are those of many poses, and so
// are the results, bit for bit.
#pragma once

#include "core/sample_functions.h"
#include "cpu/lanes.h"
#include "cpu/matrix_product.h"

ERD_NAMESPACE_BEGIN

template <class S>
class JointLanes {
 public:
  using T = Simd<S>;
  using Geometry = Slots<T, kMaxVectors>;

  static int64_t vectors(int64_t joints) { return (joints + kLanes<S> - 1) / kLanes<S>; }

  // `memory` has room for a block of poses, which takes more; `pose` [3J] receives the sample's
  // pose; `row` is memory for 2J numbers.
  JointLanes(const RefineCall& call, int64_t sample, T* memory, S* pose, S* row)
      : joints_(call.joints) {
    for (const int slot : {kSlotKeypoints, kSlotPose, kSlotConfidence}) {
      data_[slot] = memory;
      memory += slot_width(slot, 1) * vectors(joints_) * kMaxVectors;
    }
    load<2>(call.keypoints, sample, kSlotKeypoints, row);
    load<3>(call.pose, sample, kSlotPose, pose);
    load<1>(call.confidence, sample, kSlotConfidence, row);
    const Rows* shared[kSlots] = {nullptr, nullptr, &call.root, &call.intrinsics, &call.distortion};
    for (const int slot : {kSlotRoot, kSlotIntrinsics, kSlotDistortion}) {
      const int64_t width = slot_width(slot, joints_);
      data_[slot] = memory;
      memory += width * kMaxVectors;
      if (shared[slot]->data != nullptr) {
        load_vector(*shared[slot], sample, 1, width, kPitch, reinterpret_cast<S*>(data_[slot]));
      }
    }
    data_[kSlotStd] = memory;  // not read
  }

  // pose [3J] has changed.
  void set_pose(const S* pose) { spread<3>(pose, joints_, kSlotPose); }

  // Joints [v * lanes, (v + 1) * lanes), in each lane a sample of one joint.
  Geometry vector(int64_t v) const {
    Geometry view;
    for (int slot = 0; slot < kSlots; ++slot) {
      const bool is_shared =
          slot == kSlotRoot || slot == kSlotIntrinsics || slot == kSlotDistortion;
      view.data[slot] = data_[slot] + (is_shared ? 0 : v * slot_width(slot, 1) * kMaxVectors);
    }
    return view;
  }

 private:
  static constexpr int64_t kPitch = kMaxVectors * kLanes<S>;

  // Lanes past the last joint repeat it as it is now, so that they stay harmless.
  template <int C>
  void load(const Rows& rows, int64_t sample, int slot, S* row) {
    if (rows.data != nullptr) {
      load_row(rows, sample, C * joints_, row);
    } else {  // no confidence means 1
      for (int64_t j = 0; j < joints_; ++j) row[j] = 1;
    }
    spread<C>(row, vectors(joints_) * kLanes<S>, slot);
  }

  // row [J][C] into the first `count` lanes.
  template <int C>
  void spread(const S* row, int64_t count, int slot) {
    S* target = reinterpret_cast<S*>(data_[slot]);
    for (int64_t begin = 0; begin < count; begin += kLanes<S>, target += C * kPitch) {
      const int64_t end = begin + kLanes<S> < count ? begin + kLanes<S> : count;
      for (int64_t j = begin; j < end; ++j) {
        const S* from = row + C * (j < joints_ ? j : joints_ - 1);
        for (int c = 0; c < C; ++c) target[c * kPitch + j - begin] = from[c];
      }
    }
  }

  const int64_t joints_;
  T* data_[kSlots];
};

ERD_NAMESPACE_END
