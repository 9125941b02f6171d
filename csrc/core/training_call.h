// What the training kernels are asked to do, on the CPU and on the GPU: one residual regressor in
// train mode, forward and backward. Plain data, like calls.h. Matrices are row-major and dense.
//
//   z = W_in x          n = (z - mean) / sqrt(variance + eps), statistics over the batch
//   h_0 = pass_0 (gamma n + beta)
//   h_1 = h_0 + pass_1 (W_1 h_0 + b_1)      h_2 = h_1 + pass_2 (W_2 h_1 + b_2)
//   increment = W_out h_2 + b_out
//
// pass_l is 1 / (1 - dropout) where dropout keeps the unit and the layer's ReLU is open, else 0.
// The first layer always has a ReLU, the other two with RegressorBlock::relu only.
#pragma once

#include "core/calls.h"

namespace erd {

struct RegressorShape {
  ScalarType scalar;
  int64_t rows;      // N, at least 2
  int64_t features;  // F
  int64_t width;     // H
  int64_t outputs;   // O
  double dropout;
};

// Activations are kept with this many columns: the CPU's kernels arrange them in panels, whose
// width divides 64, the GPU's leave the last columns alone.
constexpr int64_t padded_width(int64_t width) { return (width + 63) / 64 * 64; }

// Planes of the saved activations.
enum Activation : int32_t {
  kNormalized = 0,  // n
  kHidden = 1,      // h_0, h_1, h_2
  kActivations = 4,
};

struct RegressorForwardCall {
  RegressorShape shape;
  RegressorBlock block;
  double eps;               // BatchNorm's
  const void* features;     // [N, F]
  const void* w_in;         // [H, F]
  const void* b_in;         // [H]
  const void* gamma;        // [H]
  const void* beta;         // [H]
  const void* w_hidden[2];  // [H, H]
  const void* b_hidden[2];  // [H]
  const void* w_out;        // [O, H]
  const void* b_out;        // [O]
  const int64_t* seed;      // one number, read by the kernel; nullptr: nothing is dropped
  void* increment;          // [N, O]
  void* mean;               // [H] of W_in x + b_in over the batch
  void* variance;           // [H] unbiased
  void* inverse_std;        // [H] 1 / sqrt(biased variance + eps)
  void* activations;        // [4, N, padded H]
  uint8_t* passes;          // [N, H], see core/dropout.h
};

// The gradients that a backward call can return. The bias before BatchNorm has none: the batch mean
// takes it out again.
enum RegressorGradient : int32_t {
  kGradFeatures = 0,
  kGradWIn = 1,
  kGradGamma = 2,
  kGradBeta = 3,
  kGradWHidden = 4,  // two
  kGradBHidden = 6,  // two
  kGradWOut = 8,
  kGradBOut = 9,
  kRegressorGradients = 10,
};

struct RegressorBackwardCall {
  RegressorShape shape;
  const void* grad;         // [N, O]
  const void* features;     // [N, F]
  const void* w_in;         // [H, F]
  const void* gamma;        // [H]
  const void* w_hidden[2];  // [H, H]
  const void* w_out;        // [O, H]
  const void* inverse_std;  // [H]
  const void* activations;  // [4, N, padded H]
  const uint8_t* passes;    // [N, H]
  void* workspace;          // [3, N, padded H]
  // nullptr: not wanted. Those of gamma and beta are always there: the others are made of them.
  void* gradients[kRegressorGradients] = {};
};

// A regressor's parameters, in the order of its module's.
enum RegressorParameter : int32_t {
  kWIn = 0,
  kBIn = 1,
  kGamma = 2,
  kBeta = 3,
  kWHidden0 = 4,
  kBHidden0 = 5,
  kWHidden1 = 6,
  kBHidden1 = 7,
  kWOut = 8,
  kBOut = 9,
  kRegressorParameters = 10,
};

// One parameter under Adam.
struct AdamParameter {
  void* value;
  void* exp_avg;
  void* exp_avg_sq;
  double step;  // counted from 1, this one included
};

struct AdamSettings {
  double lr, beta1, beta2, eps;
};

// A whole step of training, on the CPU: a batch is gathered, run forward and backward with the mean
// squared error as loss, and the parameters are updated.
struct RegressorStepCall {
  RegressorShape shape;
  RegressorBlock block;
  double eps;            // BatchNorm's
  double momentum;       // BatchNorm's: what a batch's statistics weigh in the running ones
  const void* features;  // [M, F]
  const void* targets;   // [M, O], O = 3J
  const int64_t* batch;  // [N], which of the M samples
  const int64_t* seed;   // as in RegressorForwardCall
  int64_t root_joint;    // that MPJPE aligns at; -1: none
  AdamSettings adam;
  AdamParameter parameters[kRegressorParameters];
  void* running_mean;      // [H]
  void* running_variance;  // [H]
  double* sums;            // [2]: the batch's loss and MPJPE are added
  void* workspace;         // of regressor_step_workspace bytes
};

}  // namespace erd
