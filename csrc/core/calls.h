// What every kernel is asked to do, on the CPU and on the GPU: plain pointers and sizes, no torch,
// no Python, no number type. Included by code of every instruction set, so it holds plain data
// only.
#pragma once

#include <cstdint>

namespace erd {

enum class ScalarType : int32_t { float32 = 0, float64 = 1 };

// The rows of one per-sample input: sample i starts at data + i * stride elements. Its element e
// lies (e / channels) * joint_stride + (e % channels) * channel_stride elements further on:
// callers' x and y may sit among other columns. stride 0 shares one row among all samples. data ==
// nullptr: the input is absent.
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;
  int64_t channels = 1;
  int64_t joint_stride = 1;
  int64_t channel_stride = 0;
};

// Every quantity the geometry functions may depend on, one slot each; widths for J joints in
// brackets.
enum GeometrySlot : int32_t {
  kSlotKeypoints = 0,   // [2J] px
  kSlotPose = 1,        // [3J] mm, relative to the root
  kSlotRoot = 2,        // [3] mm
  kSlotIntrinsics = 3,  // [4] fx fy cx cy, px
  kSlotDistortion = 4,  // [5], meaning given by the camera model
  kSlotStd = 5,         // [2J] px
  kSlotConfidence = 6,  // [J]
  kSlots = 7,
};

enum class GeometryFunction : int32_t {
  project = 0,         // -> pixels [2J]
  residual = 1,        // -> residual [2J]
  solve_root = 2,      // -> root [3]
  solve_residual = 3,  // -> residual [2J] with the root solved for, root [3]
};
enum class DerivativeOrder : int32_t { forward = 0, backward = 1, double_backward = 2 };

struct GeometryCall {
  GeometryFunction function;
  DerivativeOrder order;
  ScalarType scalar;
  int32_t camera_model;
  int64_t count;   // samples
  int64_t joints;  // J
  Rows inputs[kSlots];
  Rows grad_output;        // backward, double backward
  Rows tangents[kSlots];   // double backward: gradients with respect to the backward's results, or
                           // absent
  void* output = nullptr;  // forward: the result; double backward: the gradient for grad_output
  int32_t* status = nullptr;     // forward of solve_root and solve_residual
  void* gradients[kSlots] = {};  // backward and double backward; nullptr: not wanted
};

enum class RegressorBlock : int32_t { linear = 0, relu = 1 };
enum class Features : int32_t {
  residual = 0,
  concat = 1,
  init2d = 2,
  proj2d = 3,
  residual_pose = 4,  // the residuals, px, then the pose before the stage, mm
};
enum class RootMode : int32_t { given = 0, solve = 1, solve_each_stage = 2 };

// The arithmetic of the refiner's matrix products; everything else is in the call's scalar type.
//   native   the scalar type itself, one multiply-add at a time
//   split    float32 accuracy on tensor cores: each operand is the sum of two fp16 numbers
//   fp16, bf16   operands rounded to 16 bits, sums in float32; on the CPU only bf16
enum class Precision : int32_t { native = 0, split = 1, fp16 = 2, bf16 = 3 };

// Which kernel runs. Callers pass automatic; tests and benchmarks pin one.
enum class RefineVariant : int32_t {
  automatic = 0,
  simt = 1,        // plain multiply-adds; any device, number of joints and width
  throughput = 2,  // tensor cores, many poses
  latency = 3,     // tensor cores, few poses
  wgmma = 4,       // Hopper's warpgroup products
};

// All stages of the refinement loop. Matrices are row-major (outputs, inputs), stage after stage.
struct RefineCall {
  ScalarType scalar;
  int32_t camera_model;
  RegressorBlock block;
  Features features;
  RootMode root_mode;
  int64_t count;
  int64_t joints;
  int64_t stages;
  int64_t width;
  Rows keypoints, pose, root, intrinsics, distortion, confidence;
  const void* w_in;      // [K, H, F], F as in feature_count.h
  const void* b_in;      // [K, H]
  const void* w_hidden;  // [K, 2, H, H], relu block only
  const void* b_hidden;  // [K, 2, H]
  const void* w_out;     // [K, 3J, H]
  const void* b_out;     // [K, 3J]
  const void* mean2d;    // [2J]
  Precision precision = Precision::native;
  RefineVariant variant = RefineVariant::automatic;
  // The weights once more, as tensor cores (csrc/cuda/fragments.h) or, on the CPU, the kernels for
  // few poses and for bf16 (weight_columns.h) read them; else absent: without them products are
  // native. These biases are for tensor cores.
  const void* fragments = nullptr;
  const float* fragment_biases = nullptr;
  float feature_scale = 1.0f;  // the features' power of two in those weights
  double residual_limit;       // px, of each coordinate of a residual; may be infinite
  bool every_stage;            // output is [K, N, 3J], else [N, 3J]
  void* output;
};

}  // namespace erd
