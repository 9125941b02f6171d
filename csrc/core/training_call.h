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
#include "core/portability.h"

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
ERD_HD constexpr int64_t padded_width(int64_t width) { return (width + 63) / 64 * 64; }

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

// Which parameter a gradient belongs to; features are none.
constexpr int32_t kParameterOfGradient[kRegressorGradients] = {
    -1, kWIn, kGamma, kBeta, kWHidden0, kWHidden1, kBHidden0, kBHidden1, kWOut, kBOut};

// One parameter under Adam.
struct AdamParameter {
  void* value;
  void* exp_avg;
  void* exp_avg_sq;
  float* step;  // how many there were; this one is added
};

struct AdamSettings {
  double beta1, beta2, eps;
};

// A whole step of training: a batch is gathered, run forward and backward with the mean squared
// error as loss, and the parameters are updated. All that differs from one step to the next lies in
// memory that the step itself moves on, so that the same call again is the next step: the CUDA
// graph of a call trains as often as it is replayed.
struct RegressorStepCall {
  RegressorShape shape;
  RegressorBlock block;
  double eps;            // BatchNorm's
  double momentum;       // BatchNorm's: what a batch's statistics weigh in the running ones
  const void* features;  // [M, F]
  const void* targets;   // [M, O], O = 3J
  const int64_t* order;  // an epoch's samples, batch after batch
  int64_t* progress;     // [2]: samples and batches of the order that are done
  const int64_t* seeds;  // for each batch of the order; nullptr: nothing is dropped
  int64_t root_joint;    // that MPJPE aligns at; -1: none
  const double* lr;      // one number
  AdamSettings adam;
  AdamParameter parameters[kRegressorParameters];
  void* running_mean;      // [H]
  void* running_variance;  // [H]
  int64_t* batches;        // BatchNorm's count of them
  double* sums;            // [2]: the batch's loss and MPJPE are added
  void* workspace;         // of as many bytes as the kernels say
};

}  // namespace erd
