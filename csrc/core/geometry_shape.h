// Which inputs each geometry function reads and how wide its rows are: asked by its sample
// function, by the kernels that lay out memory for it, and by the op.
#pragma once

#include "core/calls.h"
#include "core/camera.h"

ERD_NAMESPACE_BEGIN

ERD_HD constexpr int64_t slot_width(int slot, int64_t joints) {
  switch (slot) {
    case kSlotPose:
      return 3 * joints;
    case kSlotRoot:
      return 3;
    case kSlotIntrinsics:
      return kIntrinsics;
    case kSlotDistortion:
      return kDistortion;
    case kSlotConfidence:
      return joints;
    default:
      return 2 * joints;
  }
}

ERD_HD constexpr bool uses_slot(GeometryFunction function, int slot) {
  switch (function) {
    case GeometryFunction::project:
      return slot == kSlotPose || slot == kSlotRoot || slot == kSlotIntrinsics ||
             slot == kSlotDistortion;
    case GeometryFunction::residual:
      return true;
    case GeometryFunction::solve_root:
      return slot != kSlotRoot && slot != kSlotStd;
    default:
      return slot != kSlotRoot;
  }
}

ERD_HD constexpr int64_t geometry_output_width(GeometryFunction function, int64_t joints) {
  switch (function) {
    case GeometryFunction::solve_root:
      return 3;
    case GeometryFunction::solve_residual:
      return 2 * joints + 3;
    default:
      return 2 * joints;
  }
}

// Whether gradients may be written over the inputs: each joint's inputs are read before its
// gradients are written. solve_residual reads them twice.
ERD_HD constexpr bool gradients_in_place(GeometryFunction function) {
  return function != GeometryFunction::solve_residual;
}

// What a sample function says of itself.
template <GeometryFunction F>
struct GeometryShape {
  static constexpr bool has_status =
      F == GeometryFunction::solve_root || F == GeometryFunction::solve_residual;
  static ERD_HD constexpr bool uses(int slot) { return uses_slot(F, slot); }
  static ERD_HD constexpr int64_t output_width(int64_t joints) {
    return geometry_output_width(F, joints);
  }
};

ERD_NAMESPACE_END
