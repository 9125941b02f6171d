// Small problems for the training kernels, forward, backward and in one step: odd sizes, layers of
// more than one pass, batches of several tiles a block. Part of launch_all.cpp.
#pragma once

#include "core/training_call.h"
#include "cuda/kernels.h"

struct TrainingProblem {
  erd::ScalarType scalar;
  erd::RegressorBlock block;
  int64_t rows, features, width, outputs;
  double dropout;
  bool frozen;  // no hidden layer is trained, no input is fine-tuned
};

constexpr TrainingProblem kTrainingProblems[] = {
    {erd::ScalarType::float32, erd::RegressorBlock::linear, 5, 7, 9, 51, 0.25, false},
    {erd::ScalarType::float32, erd::RegressorBlock::relu, 139, 10, 19, 35, 0.25, false},
    {erd::ScalarType::float64, erd::RegressorBlock::linear, 67, 34, 11, 6, 0.0, true},
    {erd::ScalarType::float32, erd::RegressorBlock::linear, 3, 3, 258, 2, 0.5, true},
    {erd::ScalarType::float64, erd::RegressorBlock::relu, 3, 5, 8, 258, 0.25, false},
    {erd::ScalarType::float32, erd::RegressorBlock::linear, 520, 2, 3, 1, 0.1, true},
};
constexpr int kTrainingProblemCount =
    static_cast<int>(sizeof(kTrainingProblems) / sizeof(kTrainingProblems[0]));

template <class Arrays>
void train(int which) {
  using namespace erd;
  const TrainingProblem& wish = kTrainingProblems[which];
  Arrays arrays(wish.scalar);
  const int64_t n = wish.rows, f = wish.features, h = wish.width, o = wish.outputs;
  const auto numbers = [&](int64_t count) { return arrays.numbers(count, -0.5, 0.5); };

  RegressorForwardCall forward = {};
  forward.shape = {wish.scalar, n, f, h, o, wish.dropout};
  forward.block = wish.block;
  forward.eps = 1e-5;
  forward.features = numbers(n * f);
  forward.w_in = numbers(h * f);
  forward.b_in = numbers(h);
  forward.gamma = numbers(h);
  forward.beta = numbers(h);
  for (int layer = 0; layer < 2; ++layer) {
    forward.w_hidden[layer] = numbers(h * h);
    forward.b_hidden[layer] = numbers(h);
  }
  forward.w_out = numbers(o * h);
  forward.b_out = numbers(o);
  if (wish.dropout > 0) forward.seed = reinterpret_cast<int64_t*>(arrays.bytes(8));
  forward.increment = numbers(n * o);
  forward.mean = numbers(h);
  forward.variance = numbers(h);
  forward.inverse_std = numbers(h);
  forward.activations = numbers(kActivations * n * h);
  forward.passes = arrays.bytes(n * h);
  run_regressor_forward_cuda(forward, cuda_device(0, nullptr));

  RegressorBackwardCall backward = {};
  backward.shape = forward.shape;
  backward.grad = numbers(n * o);
  backward.features = forward.features;
  backward.w_in = forward.w_in;
  backward.gamma = forward.gamma;
  for (int layer = 0; layer < 2; ++layer) backward.w_hidden[layer] = forward.w_hidden[layer];
  backward.w_out = forward.w_out;
  backward.inverse_std = forward.inverse_std;
  backward.activations = forward.activations;
  backward.passes = forward.passes;
  backward.workspace = numbers(3 * n * h);
  const int64_t sizes[kRegressorGradients] = {n * f, h * f, h, h, h * h, h * h, h, h, o * h, o};
  for (int i = 0; i < kRegressorGradients; ++i) {
    const bool hidden = i == kGradWHidden || i == kGradWHidden + 1;
    if (!wish.frozen || (i != kGradFeatures && !hidden)) backward.gradients[i] = numbers(sizes[i]);
  }
  run_regressor_backward_cuda(backward, cuda_device(0, nullptr));
}

// Two steps: the second begins with what the first has left.
constexpr TrainingProblem kStepProblems[] = {
    {erd::ScalarType::float32, erd::RegressorBlock::linear, 5, 7, 9, 51, 0.25, false},
    {erd::ScalarType::float32, erd::RegressorBlock::relu, 139, 10, 19, 33, 0.25, false},
    {erd::ScalarType::float64, erd::RegressorBlock::linear, 19, 3, 258, 6, 0.0, false},
    {erd::ScalarType::float64, erd::RegressorBlock::relu, 3, 5, 8, 258, 0.25, false},
};
constexpr int kStepProblemCount =
    static_cast<int>(sizeof(kStepProblems) / sizeof(kStepProblems[0]));

template <class Arrays>
void train_by_steps(int which) {
  using namespace erd;
  const TrainingProblem& wish = kStepProblems[which];
  Arrays arrays(wish.scalar);
  const int64_t n = wish.rows, f = wish.features, h = wish.width, o = wish.outputs;
  const auto numbers = [&](int64_t count) { return arrays.numbers(count, -0.5, 0.5); };
  RegressorStepCall call = {};
  call.shape = {wish.scalar, n, f, h, o, wish.dropout};
  call.block = wish.block;
  call.eps = 1e-5;
  call.momentum = 0.1;
  call.features = numbers(2 * n * f);
  call.targets = numbers(2 * n * o);
  int64_t* order = reinterpret_cast<int64_t*>(arrays.bytes(8 * 2 * n));
  for (int64_t i = 0; i < 2 * n; ++i) order[i] = 2 * n - 1 - i;
  call.order = order;
  call.progress = reinterpret_cast<int64_t*>(arrays.bytes(16));
  if (wish.dropout > 0) call.seeds = reinterpret_cast<int64_t*>(arrays.bytes(16));
  const double lr = 1e-3;
  call.lr = &lr;
  call.adam = {0.9, 0.999, 1e-8};
  const int64_t sizes[kRegressorParameters] = {h * f, h, h, h, h * h, h, h * h, h, o * h, o};
  for (int i = 0; i < kRegressorParameters; ++i) {
    call.parameters[i] = {numbers(sizes[i]), arrays.numbers(sizes[i], 0, 0),
                          arrays.numbers(sizes[i], 0, 0),
                          reinterpret_cast<float*>(arrays.bytes(4))};
  }
  call.running_mean = numbers(h);
  call.running_variance = numbers(h);
  call.batches = reinterpret_cast<int64_t*>(arrays.bytes(8));
  call.sums = reinterpret_cast<double*>(arrays.bytes(16));
  call.workspace = arrays.bytes(regressor_step_workspace_cuda(call.shape));
  for (int step = 0; step < 2; ++step) run_regressor_step_cuda(call, cuda_device(0, nullptr));
}
