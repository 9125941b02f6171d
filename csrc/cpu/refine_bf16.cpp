// The refiner with its matrix products in bf16: weights, features and hidden units are rounded to
// bf16 and meet in pairs, sums, biases, poses and projections stay in float32.
//
// The only kernel that is compiled once more for processors with instructions for such products.
#include "cpu/pair_product.h"
#include "cpu/refine_thread.h"

ERD_NAMESPACE_BEGIN

namespace {

constexpr int64_t pair_count(int64_t numbers) { return (numbers + 1) / 2; }

class Bf16Regressor {
 public:
  using Scalar = float;
  using T = Simd<float>;

  Bf16Regressor(const RefineCall& call, int64_t widest, Scratch& scratch)
      : call_(call),
        columns_(call),
        few_hidden_(scratch.take<BfPair>(few_hidden_size(call, few_pitch()))),
        features_(scratch.take<BfPairs>(widest * pair_count(feature_count(call)))),
        hidden_(scratch.take<BfPairs>(block_size(widest))),
        next_hidden_(
            scratch.take<BfPairs>(call.block == RegressorBlock::relu ? block_size(widest) : 0)) {}

  template <int V, class Add>
  void apply(int64_t stage, const T* features, const Add& add) {
    const int64_t width = call_.width;
    const int64_t pitch = columns_.width_pitch;
    const BfPair* weights = stage_weights(stage);
    BfPairs* hidden = hidden_;
    round_features<V>(features);
    multiply_pairs<V>(width, pair_count(feature_count(call_)), weights, pitch, features_,
                      [=](int64_t r, int v, T first, T second, bool) {
                        hidden[r / 2 * V + v] = round_pairs(relu(first).v, relu(second).v);
                      });
    if (call_.block == RegressorBlock::relu) {
      BfPairs* next = next_hidden_;
      for (int layer = 0; layer < 2; ++layer) {
        multiply_pairs<V>(width, pair_count(width),
                          weights + columns_.hidden_begin + layer * columns_.hidden_size, pitch,
                          hidden, [=](int64_t r, int v, T first, T second, bool) {
                            const BfPairs before = hidden[r / 2 * V + v];
                            next[r / 2 * V + v] =
                                round_pairs(first_numbers(before) + relu(first).v,
                                            second_numbers(before) + relu(second).v);
                          });
        BfPairs* const finished = next;
        next = hidden;
        hidden = finished;
      }
    }
    multiply_pairs<V>(3 * call_.joints, pair_count(width), weights + columns_.out_begin,
                      columns_.output_pitch, hidden,
                      [&](int64_t r, int v, T first, T second, bool has_second) {
                        add(r, v, first);
                        if (has_second) add(r + 1, v, second);
                      });
  }

  bool serves_few() const { return true; }

  template <int P, class Add>
  void apply_few(int64_t stage, const T* features, const Add& add) {
    round_features<1>(features);
    multiply_stage<P>(stage, {reinterpret_cast<const BfPair*>(features_), kLanes<BfPair>, 1}, add);
  }

  template <class Add>
  void apply_one(int64_t stage, const float* features, const Add& add) {
    BfPair* pairs = reinterpret_cast<BfPair*>(features_);
    for (int64_t e = 0; e < feature_count(call_); e += kLanes<float>) {
      store_rounded(load_unaligned(features + e), pairs + e / 2);
    }
    multiply_stage<1>(stage, {pairs, 1, 0}, [&](int, int64_t output, T sum) { add(output, sum); });
  }

 private:
  // The products for P poses, whose rounded features these are.
  template <int P, class Add>
  void multiply_stage(int64_t stage, FewInputs<BfPair> features, const Add& add) {
    const int64_t width = call_.width;
    const int64_t pitch = columns_.width_pitch;
    const BfPair* weights = stage_weights(stage);
    BfPair* hidden = few_hidden_;
    multiply_few<BfPair, P>(width, pair_count(feature_count(call_)), weights, pitch, features,
                            [=](int p, int64_t output, T sum) {
                              store_rounded(relu(sum).v, hidden + p * few_pitch() + output / 2);
                            });
    end_rows<P>(hidden);
    if (call_.block == RegressorBlock::relu) {
      BfPair* next = hidden + P * few_pitch();
      for (int layer = 0; layer < 2; ++layer) {
        multiply_few<BfPair, P>(width, pair_count(width),
                                weights + columns_.hidden_begin + layer * columns_.hidden_size,
                                pitch, {hidden, 1, few_pitch()}, [=](int p, int64_t output, T sum) {
                                  const int64_t at = p * few_pitch() + output / 2;
                                  store_rounded(load_rounded(hidden + at) + relu(sum).v, next + at);
                                });
        end_rows<P>(next);
        BfPair* const finished = next;
        next = hidden;
        hidden = finished;
      }
    }
    multiply_few<BfPair, P>(3 * call_.joints, pair_count(width), weights + columns_.out_begin,
                            columns_.output_pitch, {hidden, 1, few_pitch()}, add);
  }

  // Few poses alone leave the memory of a block unused.
  int64_t block_size(int64_t widest) const {
    return widest == 1 && call_.count <= kFewPoses ? 0 : widest * pair_count(call_.width);
  }

  const BfPair* stage_weights(int64_t stage) const {
    return static_cast<const BfPair*>(call_.fragments) + stage * columns_.stage_size;
  }

  // Pairs from one pose's hidden units to the next one's.
  int64_t few_pitch() const { return columns_.width_pitch / 2; }

  template <int V>
  void round_features(const T* features) {
    const int64_t inputs = feature_count(call_);
    for (int64_t e = 0; e < inputs; e += 2) {
      for (int v = 0; v < V; ++v) {
        const T* first = features + e * V + v;
        features_[e / 2 * V + v] = round_pairs(first[0].v, e + 1 < inputs ? first[V].v : Floats{});
      }
    }
  }

  // The partner of an odd width's last unit is zero, as it is for many poses: an output that is
  // padding may be NaN where the features are infinite.
  template <int P>
  void end_rows(BfPair* hidden) const {
    if (call_.width % 2 == 0) return;
    for (int p = 0; p < P; ++p) hidden[p * few_pitch() + call_.width / 2] &= 0xffffu;
  }

  const RefineCall& call_;
  const WeightColumns columns_;
  BfPair* const few_hidden_;
  BfPairs *const features_, *const hidden_, *const next_hidden_;
};

}  // namespace

void run_refine_bf16(const RefineCall& call, ParallelFor parallel_for) {
  refine_with<Bf16Regressor>(call, parallel_for);
}

ERD_NAMESPACE_END
