// The collapsed regressors' weights as Hopper's warpgroup products take them. Python makes this
// layout once per model (erd_cuda/_fragments_wgmma.py); bulk copies bring it to shared memory as it
// is.
//
// A stage is h = relu(W_in f + b_in), y += W_out h + b_out. The weights are the B operands of wgmma
// (ptx_hopper.h): 8 x 8 blocks of 128 bytes, in which the eight numbers along k of one column
// follow one another.
//
//   features  Two for each joint j, at k = 2j and 2j + 1. Behind the last joint that has room,
//             there are two that are always 1: their weights are b_in, rounded to 16 bits, and what
//             rounding left over. So the first product starts from nothing, and a pose that takes
//             no part has features of zero, hidden units of zero and an increment of zero.
//   outputs   Coordinate c of joint 4m + t is column 8 (v / 2) + 2t + v % 2 with v = 3m + c, for
//             m < 4, where the product leaves it in lane t of a quad. In the wide layout joint 16 +
//             t has x and y in columns 48 + 2t and 49 + 2t, z in column 52 + 2t: lane t + 2's.
//   chunk     64 hidden units: first product [step of 16 features][k / 8][64 / 8] blocks, second
//             product [step of 16 hidden units][k / 8][columns / 8] blocks.
//   stage     An even number of chunks; the width is filled up with units whose weights are zero.
//   biases    float32, per stage: b_out in the order of the columns.
#pragma once

#include <cstdint>

#include "core/calls.h"
#include "core/portability.h"
#include "cuda/fragments.h"

namespace erd {

// Narrow: up to 15 joints, wide: up to 18.
template <bool Wide>
struct WgmmaLayout {
  static constexpr int joints = Wide ? 18 : 15;  // the features behind the last one are 1
  static constexpr int slots = Wide ? 5 : 4;     // joints of a lane: t, t + 4, ...
  static constexpr int steps = Wide ? 3 : 2;     // of the first product
  static constexpr int columns = Wide ? 56 : 48;
  static constexpr int chunk_units = 64;
  static constexpr int step_bytes = 2 * 16 * chunk_units;  // first product
  static constexpr int out_step_bytes = 2 * 16 * columns;  // second product
  static constexpr int first_bytes = steps * step_bytes;
  static constexpr int chunk_bytes = first_bytes + chunk_units / 16 * out_step_bytes;
  static ERD_HD constexpr int chunks(int64_t width) {
    return static_cast<int>((width + 2 * chunk_units - 1) / (2 * chunk_units)) * 2;
  }
  static ERD_HD constexpr int64_t stage_bytes(int64_t width) {
    return int64_t{chunks(width)} * chunk_bytes;
  }
  static constexpr int stage_biases = columns;
};

inline bool wgmma_fragments_exist(const RefineCall& call) {
  return fragments_exist(call) && call.joints <= WgmmaLayout<true>::joints &&
         (call.precision == Precision::fp16 || call.precision == Precision::bf16);
}

// Calls f with the WgmmaLayout for this number of joints.
template <class F>
void with_wgmma_layout(int64_t joints, F f) {
  if (joints <= WgmmaLayout<false>::joints) {
    f(WgmmaLayout<false>{});
  } else {
    f(WgmmaLayout<true>{});
  }
}

}  // namespace erd
