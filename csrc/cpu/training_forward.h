// The residual regressor in train mode, forward, on the CPU (core/training_call.h has the
// equations).
//
// Three passes over the batch: prepare draws the units that dropout keeps and packs the weights;
// first_layer takes some columns through the first layer with its batch statistics;
// remaining_layers takes some rows through all others. Activations are row-major with units in SIMD
// lanes.
#pragma once

#include <cmath>
#include <cstring>

#include "core/training_call.h"
#include "cpu/dropout_lanes.h"
#include "cpu/layer.h"

ERD_NAMESPACE_BEGIN

// The parts that prepare's work is cut into: as many as the widest layer has panels.
template <class S>
int64_t preparation_tasks(const RegressorShape& shape) {
  return panel_count<S>(shape.width > shape.outputs ? shape.width : shape.outputs);
}

template <class S>
class Forward {
 public:
  // `packed` has packed_size elements.
  Forward(const RegressorForwardCall& call, S* packed)
      : call_(call),
        shape_(call.shape),
        scale_(static_cast<S>(1.0 / (1.0 - call.shape.dropout))),
        w_hidden_{{packed, shape_.width, shape_.width},
                  {packed + hidden_size(shape_), shape_.width, shape_.width}},
        w_in_{packed + 2 * hidden_size(shape_), shape_.features, shape_.width},
        w_out_{w_in_.values + Packed::size(shape_.features, shape_.width), shape_.width,
               shape_.outputs} {}

  static int64_t packed_size(const RegressorShape& shape) {
    return 2 * hidden_size(shape) + Packed::size(shape.features, shape.width) +
           Packed::size(shape.width, shape.outputs);
  }

  void prepare(int64_t task) const {
    const int64_t tasks = preparation_tasks<S>(shape_);
    draw_dropout(shape_.rows * task / tasks, shape_.rows * (task + 1) / tasks);
    w_in_.pack(transposed(call_.w_in, shape_.features), task);
    for (int l = 0; l < 2; ++l) {
      w_hidden_[l].pack(transposed(call_.w_hidden[l], shape_.width), task);
    }
    w_out_.pack(transposed(call_.w_out, shape_.width), task);
  }

  // Panel p of n and h_0, with their statistics.
  void first_layer(int64_t p) const {
    // The bias moves the mean and nothing else: z is made without it.
    w_in_.panel(p).multiply({in(call_.features), shape_.features, 1}, 0, shape_.rows,
                            plane(kNormalized).panel(p).values);
    normalize(p);
  }

  // `sums` is [kBlockRows, kPanelColumns], which count does not exceed.
  void remaining_layers(int64_t first, int64_t count, S* sums) const {
    hidden_layer(0, first, count, sums);
    hidden_layer(1, first, count, sums);
    output_layer(first, count, sums);
  }

 private:
  using Packed = PackedMatrix<S>;

  static int64_t hidden_size(const RegressorShape& shape) {
    return Packed::size(shape.width, shape.width);
  }
  static const S* in(const void* data) { return static_cast<const S*>(data); }
  static MatrixView<S> transposed(const void* weights, int64_t inputs) {
    return {in(weights), 1, inputs};
  }
  Plane<S> plane(int64_t index) const {
    const int64_t size = shape_.rows * padded_width(shape_.width);
    return {static_cast<S*>(call_.activations) + index * size, shape_.rows, shape_.width};
  }
  Plane<S> hidden(int64_t layer) const { return plane(kHidden + layer); }

  void draw_dropout(int64_t begin, int64_t end) const {
    const int64_t width = shape_.width;
    if (call_.seed == nullptr) {
      std::memset(call_.passes + begin * width, kAllPass,
                  static_cast<size_t>((end - begin) * width));
      return;
    }
    const Dropout dropout(static_cast<uint64_t>(*call_.seed), shape_.dropout, width);
    for (int64_t i = begin; i < end; ++i) draw_row(dropout, i, width, call_.passes + i * width);
  }

  void normalize(int64_t p) const {
    const Panel<S> panel = plane(kNormalized).panel(p);
    for_each_vector<S>(panel.columns, [&](int64_t c, auto extent) {
      normalize_units(panel.values + c, hidden(0).panel(p).values + c, p * kPanelColumns<S> + c,
                      extent);
    });
  }

  // From z to n and h_0, for a vector of units. The variance is summed from differences to the
  // mean, and corrected by what the mean itself was rounded by: no digits cancel, however large the
  // mean.
  template <class Extent>
  void normalize_units(S* z, S* h, int64_t unit, Extent extent) const {
    constexpr int64_t kPitch = kPanelColumns<S>;
    const int64_t rows = shape_.rows;
    const double count = static_cast<double>(rows);
    ColumnSum<S> sum, differences, squares;
    sum.add(rows, [=](int64_t i) { return load(z + i * kPitch); });
    Vector<S> mean, correction, inverse_std, shifted_mean, variances;
    const Vector<S> bias = load(in(call_.b_in) + unit, extent);
    for (int l = 0; l < kLanes<S>; ++l) mean[l] = static_cast<S>(sum.total[l] / count);
    differences.add(rows, [=](int64_t i) { return load(z + i * kPitch) - mean; });
    squares.add(rows, [=](int64_t i) {
      const Vector<S> difference = load(z + i * kPitch) - mean;
      return difference * difference;
    });
    for (int l = 0; l < kLanes<S>; ++l) {
      const double rest = differences.total[l] / count;
      const double variance = squares.total[l] / count - rest * rest;
      correction[l] = static_cast<S>(rest);
      inverse_std[l] = static_cast<S>(1.0 / std::sqrt(variance + call_.eps));
      shifted_mean[l] = static_cast<S>(mean[l] + rest + bias[l]);
      variances[l] = static_cast<S>(variance * count / (count - 1));
    }
    store<S>(shifted_mean, static_cast<S*>(call_.mean) + unit, extent);
    store<S>(variances, static_cast<S*>(call_.variance) + unit, extent);
    store<S>(inverse_std, static_cast<S*>(call_.inverse_std) + unit, extent);
    const Vector<S> gamma = load(in(call_.gamma) + unit, extent);
    const Vector<S> beta = load(in(call_.beta) + unit, extent);
    for (int64_t i = 0; i < rows; ++i) {
      uint8_t* bytes = call_.passes + i * shape_.width + unit;
      const Vector<S> n = (load(z + i * kPitch) - mean - correction) * inverse_std;
      const Vector<S> value = gamma * n + beta;
      Passes<S> passes = load_passes<S>(bytes, extent);
      // NaN is not <= 0: it stays visible, as in torch's ReLU.
      passes.close(0, value <= S(0));
      store_passes(passes, bytes, extent);
      store<S>(n, z + i * kPitch);
      store<S>(pass(passes.layer(0), value, scale_), h + i * kPitch);
    }
  }

  void hidden_layer(int layer, int64_t first, int64_t count, S* sums) const {
    if (call_.block == RegressorBlock::relu) {
      hidden_layer<true>(layer, first, count, sums);
    } else {
      hidden_layer<false>(layer, first, count, sums);
    }
  }

  template <bool HasRelu>
  void hidden_layer(int layer, int64_t first, int64_t count, S* sums) const {
    const Plane<S> before = hidden(layer), after = hidden(layer + 1);
    for (int64_t p = 0; p < panel_count<S>(shape_.width); ++p) {
      const Panel<S> panel = w_hidden_[layer].panel(p);
      panel.multiply(before.by_rows(), first, count, sums);
      const S* h = before.panel(p).values + first * kPanelColumns<S>;
      S* next = after.panel(p).values + first * kPanelColumns<S>;
      for_each_vector<S>(panel.columns, [&](int64_t c, auto extent) {
        const int64_t column = p * kPanelColumns<S> + c;
        const Vector<S> bias = load(in(call_.b_hidden[layer]) + column, extent);
        for (int64_t i = 0; i < count; ++i) {
          uint8_t* bytes = call_.passes + (first + i) * shape_.width + column;
          const int64_t at = i * kPanelColumns<S> + c;
          const Vector<S> change = load(sums + at) + bias;
          Passes<S> passes = load_passes<S>(bytes, extent);
          if constexpr (HasRelu) {
            passes.close(1 + layer, change <= S(0));
            store_passes(passes, bytes, extent);
          }
          store<S>(load(h + at) + pass(passes.layer(1 + layer), change, scale_), next + at);
        }
      });
    }
  }

  void output_layer(int64_t first, int64_t count, S* sums) const {
    const int64_t outputs = shape_.outputs;
    for (int64_t p = 0; p < panel_count<S>(outputs); ++p) {
      const Panel<S> panel = w_out_.panel(p);
      panel.multiply(hidden(2).by_rows(), first, count, sums);
      for_each_vector<S>(panel.columns, [&](int64_t c, auto extent) {
        const int64_t column = p * kPanelColumns<S> + c;
        const Vector<S> bias = load(in(call_.b_out) + column, extent);
        S* target = static_cast<S*>(call_.increment) + first * outputs + column;
        for (int64_t i = 0; i < count; ++i) {
          store<S>(load(sums + i * kPanelColumns<S> + c) + bias, target + i * outputs, extent);
        }
      });
    }
  }

  const RegressorForwardCall& call_;
  const RegressorShape& shape_;
  const S scale_;
  const Packed w_hidden_[2], w_in_, w_out_;
};

ERD_NAMESPACE_END
