// What the CPU kernels offer to their callers (the torch ops today): plain pointers, no torch, no
// Python. This header is compiled once per instruction set and once outside; it holds only plain
// data.
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

// Runs body(context, begin, end) over disjoint ranges that cover [0, count), at least `grain` items
// each.
struct ParallelFor {
  void (*run)(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);
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

enum class GeometryFunction : int32_t { project = 0, residual = 1, solve_root = 2 };
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
  int32_t* status = nullptr;     // solve_root forward
  void* gradients[kSlots] = {};  // backward and double backward; nullptr: not wanted
};

enum class RegressorBlock : int32_t { linear = 0, relu = 1 };
enum class Features : int32_t { residual = 0, concat = 1, init2d = 2, proj2d = 3 };
enum class RootMode : int32_t { given = 0, solve = 1, solve_each_stage = 2 };

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
  const void* w_in;      // [K, H, F], F = 2J (4J for concat)
  const void* b_in;      // [K, H]
  const void* w_hidden;  // [K, 2, H, H], relu block only
  const void* b_hidden;  // [K, 2, H]
  const void* w_out;     // [K, 3J, H]
  const void* b_out;     // [K, 3J]
  const void* mean2d;    // [2J]
  bool every_stage;      // output is [K, N, 3J], else [N, 3J]
  void* output;
};

using GeometryKernel = void (*)(const GeometryCall&, ParallelFor);
using RefineKernel = void (*)(const RefineCall&, ParallelFor);

// The best variant for this processor, chosen once. `name` is one of portable, avx2, avx512.
struct CpuKernels {
  const char* name;
  GeometryKernel geometry;
  RefineKernel refine;
};
const CpuKernels& cpu_kernels();

}  // namespace erd
