// The residual regressor in train mode, forward, on the CPU (core/training_call.h has the
// equations).
//
// Three passes over the batch: prepare draws the units that dropout keeps and packs the weights;
// first_layer takes some columns through the first layer with its batch statistics; remaining_layers
// takes some rows through all others. Activations are row-major with units in SIMD lanes.
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

  // Panel p's columns of n and h_0, with their statistics; `sums` is [rows, kPanelColumns].
  void first_layer(int64_t p, S* sums) const {
    const Panel<S> panel = w_in_.panel(p);
    // The bias moves the mean and nothing else: z is made without it.
    panel.multiply({in(call_.features), shape_.features, 1}, shape_.rows, sums);
    normalize(p * kPanelColumns<S>, panel.columns, sums);
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
  S* plane(int64_t index) const {
    return static_cast<S*>(call_.activations) + index * shape_.rows * shape_.width;
  }
  S* hidden(int64_t layer) const { return plane(kHidden + layer); }

  void draw_dropout(int64_t begin, int64_t end) const {
    const int64_t width = shape_.width;
    if (call_.seed == nullptr) {
      std::memset(call_.passes + begin * width, kAllPass, static_cast<size_t>((end - begin) * width));
      return;
    }
    const Dropout dropout(static_cast<uint64_t>(*call_.seed), shape_.dropout, width);
    for (int64_t i = begin; i < end; ++i) draw_row(dropout, i, width, call_.passes + i * width);
  }

  // From z to n and h_0. The variance is summed from differences to the mean, and corrected by what
  // the mean itself was rounded by: no digits cancel, however large the mean.
  void normalize(int64_t first, int64_t columns, const S* z) const {
    constexpr int64_t kPitch = kPanelColumns<S>;
    const int64_t rows = shape_.rows, width = shape_.width;
    const double count = static_cast<double>(rows);
    S mean[kPitch] = {}, correction[kPitch] = {}, inverse_std[kPitch] = {};
    ColumnSums<S, 1> sums;
    sums.add(rows, columns, [=](int64_t i, int64_t c, auto, Vector<S>(&values)[1]) {
      values[0] = load(z + i * kPitch + c, Whole<S>{});
    });
    for (int64_t c = 0; c < columns; ++c) mean[c] = static_cast<S>(sums.total[0][c] / count);
    ColumnSums<S, 2> moments;
    moments.add(rows, columns, [&](int64_t i, int64_t c, auto, Vector<S>(&values)[2]) {
      values[0] = load(z + i * kPitch + c, Whole<S>{}) - load(mean + c, Whole<S>{});
      values[1] = values[0] * values[0];
    });
    for (int64_t c = 0; c < columns; ++c) {
      const double rest = moments.total[0][c] / count;
      const double variance = moments.total[1][c] / count - rest * rest;
      const int64_t unit = first + c;
      correction[c] = static_cast<S>(rest);
      inverse_std[c] = static_cast<S>(1.0 / std::sqrt(variance + call_.eps));
      static_cast<S*>(call_.mean)[unit] = static_cast<S>(mean[c] + rest + in(call_.b_in)[unit]);
      static_cast<S*>(call_.variance)[unit] = static_cast<S>(variance * count / (count - 1));
      static_cast<S*>(call_.inverse_std)[unit] = inverse_std[c];
    }
    const S* gamma = in(call_.gamma) + first;
    const S* beta = in(call_.beta) + first;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * width + first;
      for_each_vector<S>(columns, [&](int64_t c, auto extent) {
        const Whole<S> whole;
        const Vector<S> difference =
            load(z + i * kPitch + c, whole) - load(mean + c, whole) - load(correction + c, whole);
        const Vector<S> n = difference * load(inverse_std + c, whole);
        const Vector<S> value = load(gamma + c, extent) * n + load(beta + c, extent);
        Passes<S> passes = load_passes<S>(call_.passes + at + c, extent);
        passes.close(0, value <= S(0));
        store_passes(passes, call_.passes + at + c, extent);
        store<S>(n, plane(kNormalized) + at + c, extent);
        store<S>(pass(passes.layer(0), value, scale_), hidden(0) + at + c, extent);
      });
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
    const int64_t width = shape_.width;
    const S* bias = in(call_.b_hidden[layer]);
    for (int64_t p = 0; p < panel_count<S>(width); ++p) {
      const Panel<S> panel = w_hidden_[layer].panel(p);
      panel.multiply({hidden(layer) + first * width, width, 1}, count, sums);
      const int64_t column = p * kPanelColumns<S>;
      for (int64_t i = 0; i < count; ++i) {
        for_each_vector<S>(panel.columns, [&](int64_t c, auto extent) {
          const int64_t at = (first + i) * width + column + c;
          const Vector<S> change = load(sums + i * kPanelColumns<S> + c, Whole<S>{}) +
                                   load(bias + column + c, extent);
          Passes<S> passes = load_passes<S>(call_.passes + at, extent);
          if constexpr (HasRelu) {
            // NaN is not <= 0: it stays visible, as in torch's ReLU.
            passes.close(1 + layer, change <= S(0));
            store_passes(passes, call_.passes + at, extent);
          }
          store<S>(load(hidden(layer) + at, extent) + pass(passes.layer(1 + layer), change, scale_),
                   hidden(layer + 1) + at, extent);
        });
      }
    }
  }

  void output_layer(int64_t first, int64_t count, S* sums) const {
    const int64_t width = shape_.width, outputs = shape_.outputs;
    for (int64_t p = 0; p < panel_count<S>(outputs); ++p) {
      const Panel<S> panel = w_out_.panel(p);
      panel.multiply({hidden(2) + first * width, width, 1}, count, sums);
      const int64_t column = p * kPanelColumns<S>;
      for (int64_t i = 0; i < count; ++i) {
        for_each_vector<S>(panel.columns, [&](int64_t c, auto extent) {
          store<S>(load(sums + i * kPanelColumns<S> + c, Whole<S>{}) +
                       load(in(call_.b_out) + column + c, extent),
                   static_cast<S*>(call_.increment) + (first + i) * outputs + column + c, extent);
        });
      }
    }
  }

  const RegressorForwardCall& call_;
  const RegressorShape& shape_;
  const S scale_;
  const Packed w_hidden_[2], w_in_, w_out_;
};

ERD_NAMESPACE_END
