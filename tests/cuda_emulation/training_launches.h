// Small problems for the training kernels, forward and backward: odd sizes, layers of more than one
// pass, batches of several tiles a block. Part of launch_all.cpp.
#pragma once

#include "core/training_call.h"
#include "cuda/kernels.h"

struct TrainingProblem {
  erd::ScalarType scalar;
  erd::RegressorBlock block;
  int64_t rows, features, width, outputs;
  double dropout;
};

constexpr TrainingProblem kTrainingProblems[] = {
    {erd::ScalarType::float32, erd::RegressorBlock::linear, 5, 7, 9, 51, 0.25},
    {erd::ScalarType::float32, erd::RegressorBlock::relu, 203, 34, 40, 51, 0.25},
    {erd::ScalarType::float64, erd::RegressorBlock::linear, 83, 34, 24, 6, 0.0},
    {erd::ScalarType::float32, erd::RegressorBlock::linear, 37, 3, 260, 12, 0.5},
    {erd::ScalarType::float64, erd::RegressorBlock::relu, 3, 5, 8, 258, 0.25},
    {erd::ScalarType::float32, erd::RegressorBlock::linear, 600, 2, 5, 3, 0.1},
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
  forward.shape = {wish.scalar, wish.block, n, f, h, o, wish.dropout, 1e-5};
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
    // Every second problem trains no hidden layer and fine-tunes no input.
    const bool frozen = which % 2 == 1 && (i == kGradFeatures || i == kGradWHidden);
    if (!frozen) backward.gradients[i] = numbers(sizes[i]);
  }
  run_regressor_backward_cuda(backward, cuda_device(0, nullptr));
}
