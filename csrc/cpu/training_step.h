// A whole step of training on the CPU: forward, loss, backward and Adam in four passes over the
// batch, with memory of the caller's. Every parameter is updated by the thread that has just made
// its gradient, while both are in its cache.
#pragma once

#include <cmath>
#include <cstring>

#include "core/adam.h"
#include "core/workspace.h"
#include "cpu/training_backward.h"
#include "cpu/training_forward.h"

ERD_NAMESPACE_BEGIN

// One parameter's updates of this step.
template <class S>
class ParameterUpdate {
 public:
  ParameterUpdate(const RegressorStepCall& call, RegressorParameter which)
      : adam_(call.adam, *call.lr, static_cast<int64_t>(*call.parameters[which].step) + 1),
        parameter_(call.parameters[which]) {}

  // Updates elements [at, at + count).
  void update(int64_t at, int64_t count, const S* gradient) const {
    const Adam<S> adam = adam_;
    S* __restrict value = static_cast<S*>(parameter_.value) + at;
    S* __restrict mean = static_cast<S*>(parameter_.exp_avg) + at;
    S* __restrict square = static_cast<S*>(parameter_.exp_avg_sq) + at;
    for (int64_t i = 0; i < count; ++i) adam.update(value[i], mean[i], square[i], gradient[i]);
  }

 private:
  const Adam<S> adam_;
  const AdamParameter& parameter_;
};

// Takes gradients by updating what they belong to.
template <class S>
class AdamSink {
 public:
  explicit AdamSink(const RegressorStepCall& call)
      : updates_{{call, kWIn},      {call, kGamma},    {call, kBeta},
                 {call, kWHidden0}, {call, kWHidden1}, {call, kBHidden0},
                 {call, kBHidden1}, {call, kWOut},     {call, kBOut}} {}

  bool wants(int gradient) const { return gradient != kGradFeatures; }
  void take(int gradient, int64_t at, int64_t count, const S* values) const {
    updates_[gradient - kGradWIn].update(at, count, values);
  }

 private:
  const ParameterUpdate<S> updates_[kRegressorGradients - 1];  // in RegressorGradient's order
};

template <class S>
struct StepMemory {
  S *features, *increment, *gradient, *activations, *changes, *mean, *variance, *inverse_std;
  S *packed_forward, *packed_backward;
  double *losses, *distances;
  uint8_t* passes;
  int64_t size;

  StepMemory(const RegressorShape& shape, void* workspace) {
    const int64_t n = shape.rows, plane = n * padded_width(shape.width);
    WorkspaceCutter cutter(workspace);
    features = cutter.take<S>(n * shape.features);
    increment = cutter.take<S>(n * shape.outputs);
    gradient = cutter.take<S>(n * shape.outputs);
    activations = cutter.take<S>(kActivations * plane);
    changes = cutter.take<S>(3 * plane);
    mean = cutter.take<S>(shape.width);
    variance = cutter.take<S>(shape.width);
    inverse_std = cutter.take<S>(shape.width);
    packed_forward = cutter.take<S>(Forward<S>::packed_size(shape));
    packed_backward = cutter.take<S>(Backward<S, AdamSink<S>>::packed_size(shape));
    losses = cutter.take<double>(n);
    distances = cutter.take<double>(n);
    passes = cutter.take<uint8_t>(n * shape.width);
    size = cutter.size();
  }
};

template <class S>
class Step {
 public:
  Step(const RegressorStepCall& call, ParallelFor threads)
      : call_(call),
        shape_(call.shape),
        threads_(threads),
        batch_(call.order + call.progress[0]),
        memory_(call.shape, call.workspace),
        forward_call_(forward_call()),
        backward_call_(backward_call()),
        sink_(call),
        forward_(forward_call_, memory_.packed_forward),
        backward_(backward_call_, memory_.packed_backward, sink_) {}

  void run() const {
    const int64_t tasks = preparation_tasks<S>(shape_), panels = panel_count<S>(shape_.width);
    parallel(threads_, tasks, 1, [&](int64_t begin, int64_t end) {
      gather(shape_.rows * begin / tasks, shape_.rows * end / tasks);
      for (int64_t task = begin; task < end; ++task) {
        forward_.prepare(task);
        backward_.prepare(task);
      }
    });
    parallel(threads_, panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) forward_.first_layer(p);
    });
    for_each_row_block(threads_, shape_.rows, [&](int64_t first, int64_t count) {
      alignas(64) S sums[kBlockRows * kPanelColumns<S>];
      forward_.remaining_layers(first, count, sums);
      for (int64_t i = first; i < first + count; ++i) measure(i);
      backward_.to_first_layer(first, count, sums);
    });
    backward_.parameter_gradients(threads_);
    update_the_rest();
    move_on();
  }

 private:
  RegressorForwardCall forward_call() const {
    const AdamParameter* parameters = call_.parameters;
    RegressorForwardCall forward;
    forward.shape = shape_;
    forward.block = call_.block;
    forward.eps = call_.eps;
    forward.features = memory_.features;
    forward.w_in = parameters[kWIn].value;
    forward.b_in = parameters[kBIn].value;
    forward.gamma = parameters[kGamma].value;
    forward.beta = parameters[kBeta].value;
    forward.w_hidden[0] = parameters[kWHidden0].value;
    forward.b_hidden[0] = parameters[kBHidden0].value;
    forward.w_hidden[1] = parameters[kWHidden1].value;
    forward.b_hidden[1] = parameters[kBHidden1].value;
    forward.w_out = parameters[kWOut].value;
    forward.b_out = parameters[kBOut].value;
    forward.seed = call_.seeds == nullptr ? nullptr : call_.seeds + call_.progress[1];
    forward.increment = memory_.increment;
    forward.mean = memory_.mean;
    forward.variance = memory_.variance;
    forward.inverse_std = memory_.inverse_std;
    forward.activations = memory_.activations;
    forward.passes = memory_.passes;
    return forward;
  }

  RegressorBackwardCall backward_call() const {
    RegressorBackwardCall backward;
    backward.shape = shape_;
    backward.grad = memory_.gradient;
    backward.features = memory_.features;
    backward.w_in = call_.parameters[kWIn].value;
    backward.gamma = call_.parameters[kGamma].value;
    backward.w_hidden[0] = call_.parameters[kWHidden0].value;
    backward.w_hidden[1] = call_.parameters[kWHidden1].value;
    backward.w_out = call_.parameters[kWOut].value;
    backward.inverse_std = memory_.inverse_std;
    backward.activations = memory_.activations;
    backward.passes = memory_.passes;
    backward.workspace = memory_.changes;
    return backward;
  }

  void gather(int64_t begin, int64_t end) const {
    const int64_t features = shape_.features;
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(memory_.features + i * features,
                  static_cast<const S*>(call_.features) + batch_[i] * features,
                  sizeof(S) * static_cast<size_t>(features));
    }
  }

  // A sample's errors, and the gradient of the mean of all squares.
  void measure(int64_t i) const {
    const int64_t outputs = shape_.outputs;
    const S* increment = memory_.increment + i * outputs;
    const S* target = static_cast<const S*>(call_.targets) + batch_[i] * outputs;
    S* gradient = memory_.gradient + i * outputs;
    const S scale = static_cast<S>(2.0 / static_cast<double>(shape_.rows * outputs));
    S root[3] = {};
    for (int c = 0; c < 3 && call_.root_joint >= 0; ++c) {
      root[c] = increment[3 * call_.root_joint + c] - target[3 * call_.root_joint + c];
    }
    double squares = 0, distances = 0;
    for (int64_t k = 0; k < outputs; k += 3) {
      const S x = increment[k] - target[k];
      const S y = increment[k + 1] - target[k + 1];
      const S z = increment[k + 2] - target[k + 2];
      gradient[k] = scale * x;
      gradient[k + 1] = scale * y;
      gradient[k + 2] = scale * z;
      const S rx = x - root[0], ry = y - root[1], rz = z - root[2];
      squares += static_cast<double>(x * x + y * y + z * z);
      distances += static_cast<double>(std::sqrt(rx * rx + ry * ry + rz * rz));
    }
    memory_.losses[i] = squares;
    memory_.distances[i] = distances;
  }

  // The bias before BatchNorm, whose gradient is 0, and the running statistics.
  void update_the_rest() const {
    const ParameterUpdate<S> bias(call_, kBIn);
    const S none = 0, momentum = static_cast<S>(call_.momentum);
    S* mean = static_cast<S*>(call_.running_mean);
    S* variance = static_cast<S*>(call_.running_variance);
    for (int64_t unit = 0; unit < shape_.width; ++unit) {
      bias.update(unit, 1, &none);
      mean[unit] += momentum * (memory_.mean[unit] - mean[unit]);
      variance[unit] += momentum * (memory_.variance[unit] - variance[unit]);
    }
  }

  // What the next step finds.
  void move_on() const {
    double loss = 0, distance = 0;
    for (int64_t i = 0; i < shape_.rows; ++i) {
      loss += memory_.losses[i];
      distance += memory_.distances[i];
    }
    call_.sums[0] += loss / static_cast<double>(shape_.rows * shape_.outputs);
    call_.sums[1] += distance / static_cast<double>(shape_.rows * (shape_.outputs / 3));
    for (const AdamParameter& parameter : call_.parameters) *parameter.step += 1;
    call_.progress[0] += shape_.rows;
    call_.progress[1] += 1;
    *call_.batches += 1;
  }

  const RegressorStepCall& call_;
  const RegressorShape& shape_;
  const ParallelFor threads_;
  const int64_t* const batch_;
  const StepMemory<S> memory_;
  const RegressorForwardCall forward_call_;
  const RegressorBackwardCall backward_call_;
  const AdamSink<S> sink_;
  const Forward<S> forward_;
  const Backward<S, AdamSink<S>> backward_;
};

ERD_NAMESPACE_END
