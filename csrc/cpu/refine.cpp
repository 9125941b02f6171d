// The refiner with its matrix products in the call's own scalar type.
//
// Poses are in the lanes and weights are broadcast. Where only a few poses are left and the weights
// came column by column, outputs go into the lanes instead (few_poses.h), and a single pose passes
// over the weights of units that are zero (active_inputs.h).
#include "cpu/active_inputs.h"
#include "cpu/matrix_product.h"
#include "cpu/refine_thread.h"

ERD_NAMESPACE_BEGIN

namespace {

template <class S>
class NativeRegressor {
 public:
  using Scalar = S;
  using T = Simd<S>;

  NativeRegressor(const RefineCall& call, int64_t widest, Scratch& scratch)
      : call_(call),
        columns_(call),
        few_hidden_(scratch.take<S>(few_hidden_size(call, columns_.width_pitch))),
        active_{scratch.take<int32_t>(ActiveInputs<S>::size(columns_.width_pitch)),
                scratch.take<int32_t>(ActiveInputs<S>::size(columns_.width_pitch))},
        hidden_(scratch.take<T>(block_size(widest))),
        next_hidden_(scratch.take<T>(call.block == RegressorBlock::relu ? block_size(widest) : 0)) {
  }

  template <int V, class Add>
  void apply(int64_t stage, const T* features, const Add& add) {
    const int64_t inputs = feature_count(call_);
    const int64_t width = call_.width;
    const int64_t outputs = 3 * call_.joints;
    T* hidden = hidden_;
    multiply<S, V>(width, inputs, weights(call_.w_in, stage, width * inputs),
                   weights(call_.b_in, stage, width), features,
                   [=](int64_t r, int v, T sum) { hidden[r * V + v] = relu(sum); });
    if (call_.block == RegressorBlock::relu) {
      T* next = next_hidden_;
      for (int64_t layer = 2 * stage; layer < 2 * stage + 2; ++layer) {
        multiply<S, V>(width, width, weights(call_.w_hidden, layer, width * width),
                       weights(call_.b_hidden, layer, width), hidden, [=](int64_t r, int v, T sum) {
                         next[r * V + v] = hidden[r * V + v] + relu(sum);
                       });
        T* const finished = next;
        next = hidden;
        hidden = finished;
      }
    }
    multiply<S, V>(outputs, width, weights(call_.w_out, stage, outputs * width),
                   weights(call_.b_out, stage, outputs), hidden, add);
  }

  // Other precisions come with other forms of the weights.
  bool serves_few() const {
    return call_.fragments != nullptr && call_.precision == Precision::native;
  }

  template <int P, class Add>
  void apply_few(int64_t stage, const T* features, const Add& add) {
    const int64_t width = call_.width;
    const int64_t pitch = columns_.width_pitch;
    const S* stage_weights = static_cast<const S*>(call_.fragments) + stage * columns_.stage_size;
    S* hidden = few_hidden_;
    multiply_few<S, P>(width, feature_count(call_), stage_weights, pitch,
                       {reinterpret_cast<const S*>(features), kLanes<S>, 1},
                       [=](int p, int64_t output, T sum) {
                         store_unaligned(relu(sum).v, hidden + p * pitch + output);
                       });
    if (call_.block == RegressorBlock::relu) {
      S* next = hidden + P * pitch;
      for (int layer = 0; layer < 2; ++layer) {
        multiply_few<S, P>(width, width, hidden_weights(stage_weights, layer), pitch,
                           {hidden, 1, pitch}, [=](int p, int64_t output, T sum) {
                             const int64_t at = p * pitch + output;
                             const T before = load_unaligned(hidden + at);
                             store_unaligned((before + relu(sum)).v, next + at);
                           });
        S* const finished = next;
        next = hidden;
        hidden = finished;
      }
    }
    multiply_few<S, P>(3 * call_.joints, width, stage_weights + columns_.out_begin,
                       columns_.output_pitch, {hidden, 1, pitch}, add);
  }

  template <class Add>
  void apply_one(int64_t stage, const S* features, const Add& add) {
    const int64_t width = call_.width;
    const int64_t pitch = columns_.width_pitch;
    const S* stage_weights = static_cast<const S*>(call_.fragments) + stage * columns_.stage_size;
    S* hidden = few_hidden_;
    ActiveInputs<S> active(active_[0]);
    multiply_few<S, 1>(
        width, feature_count(call_), stage_weights, pitch, {features, 1, 0},
        [&](int, int64_t output, T sum) { active.store(relu(sum).v, output, hidden); });
    active.close(width);
    if (call_.block == RegressorBlock::relu) {
      S* next = hidden + pitch;
      for (int layer = 0; layer < 2; ++layer) {
        ActiveInputs<S> next_active(active_[1 - layer]);
        multiply_active(width, active, {hidden_weights(stage_weights, layer), pitch}, hidden,
                        [&](int64_t output, T sum) {
                          const T before = load_unaligned(hidden + output);
                          next_active.store((before + relu(sum)).v, output, next);
                        });
        next_active.close(width);
        active = next_active;
        S* const finished = next;
        next = hidden;
        hidden = finished;
      }
    }
    const S* tail = columns_.has_tail ? stage_weights + columns_.tail_begin : nullptr;
    multiply_active(3 * call_.joints, active,
                    {stage_weights + columns_.out_begin, columns_.output_pitch, tail}, hidden, add);
  }

 private:
  // Few poses alone leave the memory of a block unused.
  int64_t block_size(int64_t widest) const {
    return serves_few() && widest == 1 && call_.count <= kFewPoses ? 0 : widest * call_.width;
  }

  const S* hidden_weights(const S* stage_weights, int layer) const {
    return stage_weights + columns_.hidden_begin + layer * columns_.hidden_size;
  }

  static const S* weights(const void* all, int64_t index, int64_t size) {
    return static_cast<const S*>(all) + index * size;
  }

  const RefineCall& call_;
  const WeightColumns columns_;
  S* const few_hidden_;
  int32_t* const active_[2];
  T *const hidden_, *const next_hidden_;
};

}  // namespace

void run_refine(const RefineCall& call, ParallelFor parallel_for) {
  if (call.scalar == ScalarType::float32) {
    refine_with<NativeRegressor<float>>(call, parallel_for);
  } else {
    refine_with<NativeRegressor<double>>(call, parallel_for);
  }
}

ERD_NAMESPACE_END
