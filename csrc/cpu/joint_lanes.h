// A single pose with its joints in SIMD lanes, as if each joint were a sample of its own: a pose a
// lane would leave most lanes empty. The functions that run on them are those of many poses, and so
// are the results, bit for bit.
#pragma once

#include <cstring>
#include <utility>

#include "core/sample_functions.h"
#include "cpu/lanes.h"
#include "cpu/matrix_product.h"

ERD_NAMESPACE_BEGIN

// One coordinate, or the like, of as many joints as there are lanes, out of a row in which each
// joint has C of them.
template <int C, int Channel, class S, int... L>
ERD_HD NativeOf<S> deal(const S* row, std::integer_sequence<int, L...>) {
  static_assert(C <= 3, "three vectors at most");
  constexpr int kCount = kLanes<S>;
  const auto vector = [=](int i) { return load_unaligned(row + i * kCount); };
  const NativeOf<S> two =
      pick_lanes<S>(vector(0), vector(C > 1),
                    std::integer_sequence<int, ((C * L + Channel) % (2 * kCount))...>());
  if constexpr (C < 3) return two;
  return pick_lanes<S>(
      two, vector(2),
      std::integer_sequence<int,
                            (C * L + Channel < 2 * kCount ? L : C * L + Channel - kCount)...>());
}

// The numbers of x and y in turn, beginning with their lower or their upper halves.
template <int Half, class S, int... L>
ERD_HD NativeOf<S> interleave(const NativeOf<S>& x, const NativeOf<S>& y,
                              std::integer_sequence<int, L...>) {
  constexpr int kCount = kLanes<S>;
  return pick_lanes<S>(
      x, y, std::integer_sequence<int, (Half * kCount / 2 + L / 2 + L % 2 * kCount)...>());
}

template <class S>
class JointLanes {
 public:
  using T = Simd<S>;
  using Geometry = Slots<T, kMaxVectors>;

  // Size of a row of `channels` numbers per joint that is read and written by whole vectors of
  // joints.
  static int64_t row_size(int64_t joints, int64_t channels) {
    return channels * padded_joints(joints);
  }

  // `memory` has room for a block of poses, which takes more. `pose`, a row of 3 per joint,
  // receives the sample's pose; `row`, of 2 per joint, is memory.
  JointLanes(const RefineCall& call, int64_t sample, T* memory, S* pose, S* row)
      : joints_(call.joints) {
    for (const int slot : {kSlotKeypoints, kSlotPose, kSlotConfidence}) {
      data_[slot] = memory;
      memory += slot_width(slot, 1) * padded_joints(joints_) / kLanes<S> * kMaxVectors;
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
  void set_pose(const S* pose) { spread<3>(pose, kSlotPose); }

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

  static int64_t padded_joints(int64_t joints) {
    return (joints + kLanes<S> - 1) / kLanes<S> * kLanes<S>;
  }

  // Lanes past the last joint are joints that are missing, so that they stay harmless.
  template <int C>
  void load(const Rows& rows, int64_t sample, int slot, S* row) {
    const int64_t width = C * joints_;
    for (int64_t e = 0; e < row_size(joints_, C); ++e) row[e] = 0;
    if (rows.data == nullptr) {  // no confidence means 1
      for (int64_t e = 0; e < width; ++e) row[e] = 1;
    } else if (is_dense(rows)) {
      std::memcpy(row, static_cast<const S*>(rows.data) + sample * rows.stride, width * sizeof(S));
    } else {
      load_row(rows, sample, width, row);
    }
    spread<C>(row, slot);
  }

  // row [J][C] into lanes.
  template <int C>
  void spread(const S* row, int slot) {
    S* target = reinterpret_cast<S*>(data_[slot]);
    for (int64_t j = 0; j < joints_; j += kLanes<S>, row += C * kLanes<S>, target += C * kPitch) {
      constexpr auto kAll = std::make_integer_sequence<int, kLanes<S>>();
      store_unaligned(deal<C, 0>(row, kAll), target);
      if constexpr (C > 1) store_unaligned(deal<C, 1>(row, kAll), target + kPitch);
      if constexpr (C > 2) store_unaligned(deal<C, 2>(row, kAll), target + 2 * kPitch);
    }
  }

  const int64_t joints_;
  T* data_[kSlots];
};

ERD_NAMESPACE_END
