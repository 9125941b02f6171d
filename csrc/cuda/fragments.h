// The collapsed regressors' weights in the order in which tensor cores take them. Python makes this
// layout once per model (erd_cuda/_fragments.py); kernels copy it as it is.
//
// A stage is h = relu(W_in f + b_in), y += W_out h + b_out. Poses are the rows of both products, so
// weights are the B operand of mma (device.h): lane l = 4 g + t of a warp holds, of each 16 x 8
// tile, column g at k = 2t, 2t+1, 2t+8, 2t+9.
//
//   joints    Lane t of a quad owns the joints t, t+4, t+8, ...: JL = ceil(J / 4) of them, padded
//             to 5 or 8. Features need no rearrangement: k = 2j, 2j+1 of joint j = 4m + t are what
//             lane t feeds into the product. Outputs do: value c of joint 4m + t is column
//             8 (v / 2) + 2t + v % 2 with v = 3m + c, where the product leaves it in lane t.
//   chunk     16 hidden units: their columns of the first product (two tiles wide; F = 8 JL rows,
//             in steps of 16 and, for odd JL, one of 8), then their rows of the second (one step
//             deep, `tiles` tiles wide). What one lane needs of a step lies in 16 bytes (8 for the
//             step of 8), the lanes one after another:
//               first product   b0, b1 of the left tile, b0, b1 of the right one
//               second product  b0, b1 of tile 2i, b0, b1 of tile 2i + 1
//   stage     H / 16 chunks. Split precision has two numbers for each weight: behind each chunk
//             comes the same chunk of what rounding to fp16 has left over.
//   biases    float32, per stage: b_in as [H / 16][t][left 2t, 2t+1, right 2t, 2t+1], then b_out in
//             the order of the columns.
//
// fp16 has few exponents: features are multiplied by feature_scale, a power of two for which W_in
// compensates, so that both lie well inside its range.
#pragma once

#include <cstdint>

#include "core/feature_count.h"

namespace erd {

// Sizes of the layout for JL joints a lane.
template <int JointsPerLane>
struct FragmentLayout {
  static constexpr int joints = JointsPerLane;
  static constexpr int full_steps = JointsPerLane / 2;      // of the first product, 16 deep
  static constexpr bool has_half_step = JointsPerLane % 2;  // one more, 8 deep
  static constexpr int values = 3 * JointsPerLane;          // coordinates of a lane
  static constexpr int tiles = (values + 3) / 4 * 2;        // of the second product
  static constexpr int columns = 8 * tiles;
  // In units of 32 bits, per lane and chunk.
  static constexpr int words = 4 * full_steps + 2 * has_half_step + 2 * tiles;
  static constexpr int64_t chunk_bytes = 4 * 32 * words;
  static ERD_HD constexpr int64_t stage_bytes(int64_t width, bool split) {
    return width / 16 * chunk_bytes * (split ? 2 : 1);
  }
  static ERD_HD constexpr int64_t stage_biases(int64_t width) { return width + columns; }
};

constexpr int64_t kMaxFragmentJoints = 32;
constexpr int64_t kMaxFragmentWidth = 512;

inline bool fragments_exist(const RefineCall& call) {
  return call.fragments != nullptr && call.block == RegressorBlock::linear &&
         call.joints <= kMaxFragmentJoints && call.width % 16 == 0 &&
         call.width <= kMaxFragmentWidth && features_per_joint(call.features) == 2 &&
         call.scalar == ScalarType::float32;
}

// Calls f with the FragmentLayout for this number of joints.
template <class F>
void with_fragment_layout(int64_t joints, F f) {
  if (joints <= 20) {
    f(FragmentLayout<5>{});
  } else {
    f(FragmentLayout<8>{});
  }
}

}  // namespace erd
