// The CPU's training kernels: one residual regressor forward, backward, and a whole step.
#include <cstring>

#include "cpu/training_backward.h"
#include "cpu/training_forward.h"
#include "cpu/training_step.h"

ERD_NAMESPACE_BEGIN

namespace {

template <class S>
void run_forward(const RegressorForwardCall& call, ParallelFor threads) {
  AlignedBuffer<S> packed(Forward<S>::packed_size(call.shape));
  const Forward<S> forward(call, packed.data());
  parallel(threads, preparation_tasks<S>(call.shape), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) forward.prepare(task);
  });
  parallel(threads, panel_count<S>(call.shape.width), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) forward.first_layer(p);
  });
  for_each_row_block(threads, call.shape.rows, [&](int64_t first, int64_t count) {
    alignas(64) S sums[kBlockRows * kPanelColumns<S>];
    forward.remaining_layers(first, count, sums);
  });
}

// Takes gradients by writing them to where a call wants them.
template <class S>
struct GradientSink {
  void* const* gradients;

  bool wants(int gradient) const { return gradients[gradient] != nullptr; }
  void take(int gradient, int64_t at, int64_t count, const S* values) const {
    std::memcpy(static_cast<S*>(gradients[gradient]) + at, values,
                sizeof(S) * static_cast<size_t>(count));
  }
};

template <class S>
void run_backward(const RegressorBackwardCall& call, ParallelFor threads) {
  using Pass = Backward<S, GradientSink<S>>;
  const RegressorShape& shape = call.shape;
  const GradientSink<S> sink{call.gradients};
  AlignedBuffer<S> packed(Pass::packed_size(shape));
  const Pass backward(call, packed.data(), sink);
  parallel(threads, panel_count<S>(shape.width), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) backward.prepare(p);
  });
  for_each_row_block(threads, shape.rows, [&](int64_t first, int64_t count) {
    alignas(64) S sums[kBlockRows * kPanelColumns<S>];
    backward.to_first_layer(first, count, sums);
  });
  backward.parameter_gradients(threads);
  if (!sink.wants(kGradFeatures)) return;
  AlignedBuffer<S> packed_input(PackedMatrix<S>::size(shape.width, shape.features));
  const PackedMatrix<S> w_in{packed_input.data(), shape.width, shape.features};
  for (int64_t p = 0; p < panel_count<S>(shape.features); ++p) {
    w_in.pack({static_cast<const S*>(call.w_in), shape.features, 1}, p);
  }
  for_each_row_block(threads, shape.rows, [&](int64_t first, int64_t count) {
    alignas(64) S sums[kBlockRows * kPanelColumns<S>];
    backward.feature_gradient(first, count, w_in, sums);
  });
}

}  // namespace

void run_regressor_forward(const RegressorForwardCall& call, ParallelFor threads) {
  if (call.shape.scalar == ScalarType::float32) {
    run_forward<float>(call, threads);
  } else {
    run_forward<double>(call, threads);
  }
}

void run_regressor_backward(const RegressorBackwardCall& call, ParallelFor threads) {
  if (call.shape.scalar == ScalarType::float32) {
    run_backward<float>(call, threads);
  } else {
    run_backward<double>(call, threads);
  }
}

void run_regressor_step(const RegressorStepCall& call, ParallelFor threads) {
  if (call.shape.scalar == ScalarType::float32) {
    Step<float>(call, threads).run();
  } else {
    Step<double>(call, threads).run();
  }
}

int64_t regressor_step_workspace(const RegressorShape& shape) {
  return shape.scalar == ScalarType::float32 ? StepMemory<float>(shape, nullptr).size
                                             : StepMemory<double>(shape, nullptr).size;
}

ERD_NAMESPACE_END
