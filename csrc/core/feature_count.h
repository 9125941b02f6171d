// How many numbers a stage's regressor sees: asked by the kernels, by those that lay out weights
// for them, and by the op. Always inlined, so that no instruction set's copy is linked into the
// code of another.
#pragma once

#include "core/calls.h"
#include "core/portability.h"

namespace erd {

ERD_HD constexpr int features_per_joint(Features features) {
  switch (features) {
    case Features::concat:
      return 4;
    case Features::residual_pose:
      return 5;
    default:
      return 2;
  }
}

// F, odd where J and the features per joint are.
ERD_HD constexpr int feature_count(const RefineCall& call) {
  return static_cast<int>(features_per_joint(call.features) * call.joints);
}

}  // namespace erd
