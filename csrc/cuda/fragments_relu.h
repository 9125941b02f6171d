// The relu block's weights in the order in which tensor cores take them. Python makes this layout
// once per model (erd_cuda/_fragments_relu.py); refine_relu.cu copies it as it is.
//
//   layers    four per stage, stage after stage: W_in, the two hidden ones, W_out. A layer is a
//             matrix (outputs, inputs), padded with zeros to multiples of 16: `pairs` times 16
//             outputs, `steps` times 16 inputs. Features are in their natural order, joint-major.
//   step      the weights of 16 inputs: `pairs` pairs of 16 x 8 tiles, 512 bytes each. Weights are
//             the B operand of mma (device.h): lane 4 g + t holds column g of both tiles of a pair
//             at k = 2t, 2t+1, 2t+8, 2t+9, 16 bytes in all, the left tile first, the lanes one
//             after another. In split precision each step is followed by what rounding it to fp16
//             has left over.
//   biases    float32, per stage: the four layers' scales, then b_in, both b_hidden and b_out, the
//             last padded to a multiple of 16.
//
// Powers of two make good use of fp16's range. Each layer's weights are multiplied by one that
// makes the largest of them large; the layer's sums times its scale undo it. Features are
// multiplied by feature_scale, and activations, with the biases that join them, by a number that
// W_out divides again; both are in the layers' scales and biases, so the kernel knows nothing of
// them.
#pragma once

#include "core/feature_count.h"

namespace erd {

constexpr int kReluLayers = 4;

// A layer in units of the tensor cores' tiles.
struct ReluLayer {
  int pairs;  // of output tiles, 16 outputs
  int steps;  // of 16 inputs
};

struct ReluSizes {
  int features;  // F, or F + 1 where F is odd: features are stored in pairs, the last a zero
  int width;     // H
  int outputs;   // 3J

  ERD_HD ReluLayer layer(int index) const {
    const int inputs = index == 0 ? features : width;
    const int rows = index + 1 == kReluLayers ? outputs : width;
    return {(rows + 15) / 16, (inputs + 15) / 16};
  }
  // Floats of one stage's scales and biases.
  ERD_HD int stage_biases() const {
    return kReluLayers + 3 * width + 16 * layer(kReluLayers - 1).pairs;
  }
  // 16-bit numbers of one stage's weights.
  int64_t stage_weights(bool split) const {
    int64_t pairs = 0;
    for (int i = 0; i < kReluLayers; ++i) pairs += int64_t{layer(i).pairs} * layer(i).steps;
    return pairs * 256 * (split ? 2 : 1);
  }
};

inline ReluSizes relu_sizes(const RefineCall& call) {
  const int pairs = (feature_count(call) + 1) / 2;
  return {2 * pairs, static_cast<int>(call.width), static_cast<int>(3 * call.joints)};
}

inline bool relu_fragments_exist(const RefineCall& call) {
  return call.fragments != nullptr && call.block == RegressorBlock::relu && call.joints <= 32 &&
         call.width % 16 == 0 && call.width <= 512 && call.scalar == ScalarType::float32;
}

}  // namespace erd
