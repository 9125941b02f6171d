// The residual regressor in train mode, backward, on the CPU.
//
// With d the gradient of the hidden state and c_l = pass_l d the gradient of what layer l adds:
//   d_2 = W_out' g          d_1 = d_2 + W_2' c_2          d_0 = d_1 + W_1' c_1
// then through ReLU and BatchNorm to z. to_first_layer takes some rows from g to BatchNorm's output;
// parameter_gradients makes all gradients that belong to some columns, which are products over the
// rows of the batch, c_l' h_{l-1}, and hands them to a sink:
//
//   bool wants(int gradient)
//   void take(int gradient, int64_t at, int64_t count, const S* values)   elements [at, at + count)
#pragma once

#include "core/training_call.h"
#include "cpu/layer.h"

ERD_NAMESPACE_BEGIN

template <class S, class Sink>
class Backward {
 public:
  // `packed` has packed_size elements.
  Backward(const RegressorBackwardCall& call, S* packed, const Sink& sink)
      : call_(call),
        shape_(call.shape),
        sink_(sink),
        scale_(static_cast<S>(1.0 / (1.0 - call.shape.dropout))),
        w_hidden_{
            {packed, shape_.width, shape_.width},
            {packed + Packed::size(shape_.width, shape_.width), shape_.width, shape_.width}},
        w_out_{packed + 2 * Packed::size(shape_.width, shape_.width), shape_.outputs,
               shape_.width} {}

  static int64_t packed_size(const RegressorShape& shape) {
    return 2 * Packed::size(shape.width, shape.width) + Packed::size(shape.outputs, shape.width);
  }

  // Packs panel p of all weights.
  void prepare(int64_t p) const {
    for (int l = 0; l < 2; ++l) w_hidden_[l].pack({in(call_.w_hidden[l]), shape_.width, 1}, p);
    w_out_.pack({in(call_.w_out), shape_.width, 1}, p);
  }

  // `sums` is [kBlockRows, kPanelColumns], which count does not exceed.
  void to_first_layer(int64_t first, int64_t count, S* sums) const {
    const int64_t width = shape_.width, outputs = shape_.outputs;
    S *d = gradient(), *c2 = change_gradient(1), *c1 = change_gradient(0);
    const auto store_both = [=](Vector<S> total, const Passes<S>& passes, int layer, S* c,
                                int64_t at, auto extent) {
      store<S>(total, d + at, extent);
      store<S>(pass(passes.layer(1 + layer), total, scale_), c + at, extent);
    };
    multiply({in(call_.grad) + first * outputs, outputs, 1}, w_out_, first, count, sums,
             [=](Vector<S> sum, const Passes<S>& passes, int64_t at, auto extent) {
               store_both(sum, passes, 1, c2, at, extent);
             });
    multiply({c2 + first * width, width, 1}, w_hidden_[1], first, count, sums,
             [=](Vector<S> sum, const Passes<S>& passes, int64_t at, auto extent) {
               store_both(load(d + at, extent) + sum, passes, 0, c1, at, extent);
             });
    multiply({c1 + first * width, width, 1}, w_hidden_[0], first, count, sums,
             [=](Vector<S> sum, const Passes<S>& passes, int64_t at, auto extent) {
               store<S>(pass(passes.layer(0), load(d + at, extent) + sum, scale_), d + at, extent);
             });
  }

  // Elements of parameter_gradients' memory.
  static int64_t scratch_size(const RegressorShape& shape) {
    int64_t rows = shape.width > shape.outputs ? shape.width : shape.outputs;
    if (shape.features > rows) rows = shape.features;
    if (shape.rows > rows) rows = shape.rows;
    return (shape.rows + rows) * kPanelColumns<S> + shape.features;
  }

  // The gradients of panel p's columns of the weights, and of its units. Those of the output's
  // biases, which are no columns, come with the first panel.
  void parameter_gradients(int64_t p, S* scratch) const {
    const int64_t first = p * kPanelColumns<S>, width = shape_.width, rows = shape_.rows;
    const Panel<S> panel{scratch, rows, panel_columns<S>(width, p)};
    S* const more = scratch + rows * kPanelColumns<S>;
    through_norm(first, panel, more);
    // `panel` holds dz now: W_in's gradient comes out transposed.
    if (sink_.wants(kGradWIn)) input_gradient(first, panel, more);
    for (int l = 0; l < 2; ++l) {
      weight_gradient(kGradWHidden + l, change_gradient(l), width, hidden(l), first, panel, more);
      column_sums(kGradBHidden + l, change_gradient(l), width, first, panel.columns);
    }
    weight_gradient(kGradWOut, in(call_.grad), shape_.outputs, hidden(2), first, panel, more);
    if (p > 0) return;
    for (int64_t q = 0; q < panel_count<S>(shape_.outputs); ++q) {
      column_sums(kGradBOut, in(call_.grad), shape_.outputs, q * kPanelColumns<S>,
                  panel_columns<S>(shape_.outputs, q));
    }
  }

  // After parameter_gradients of all panels, which leaves dz where it can be read: some rows of the
  // features' gradient. `w_in` is W_in, packed.
  void feature_gradient(int64_t first, int64_t count, const PackedMatrix<S>& w_in, S* sums) const {
    const int64_t features = shape_.features, width = shape_.width;
    for (int64_t p = 0; p < panel_count<S>(features); ++p) {
      const Panel<S> panel = w_in.panel(p);
      panel.multiply({gradient() + first * width, width, 1}, count, sums);
      for (int64_t i = 0; i < count; ++i) {
        sink_.take(kGradFeatures, (first + i) * features + p * kPanelColumns<S>, panel.columns,
                   sums + i * kPanelColumns<S>);
      }
    }
  }

 private:
  using Packed = PackedMatrix<S>;

  static const S* in(const void* data) { return static_cast<const S*>(data); }
  int64_t plane_size() const { return shape_.rows * shape_.width; }
  const S* hidden(int64_t layer) const {
    return in(call_.activations) + (kHidden + layer) * plane_size();
  }
  S* gradient() const { return static_cast<S*>(call_.workspace); }
  S* change_gradient(int64_t layer) const { return gradient() + (1 + layer) * plane_size(); }

  // finish(vector of the product, its units' passes, where it belongs in a plane, extent).
  template <class Finish>
  void multiply(MatrixView<S> a, const Packed& b, int64_t first, int64_t count, S* sums,
                const Finish& finish) const {
    for (int64_t p = 0; p < panel_count<S>(b.columns); ++p) {
      const Panel<S> panel = b.panel(p);
      panel.multiply(a, count, sums);
      for (int64_t i = 0; i < count; ++i) {
        for_each_vector<S>(panel.columns, [&](int64_t c, auto extent) {
          const int64_t at = (first + i) * shape_.width + p * kPanelColumns<S> + c;
          finish(load(sums + i * kPanelColumns<S> + c, Whole<S>{}),
                 load_passes<S>(call_.passes + at, extent), at, extent);
        });
      }
    }
  }

  // From the gradient of BatchNorm's output to that of z, which also moves its own mean and
  // variance; it is left in `panel`, and in place where the features' gradient needs it.
  // `normalized` is [rows, kPanelColumns].
  void through_norm(int64_t first, const Panel<S>& panel, S* normalized) const {
    constexpr int64_t kPitch = kPanelColumns<S>;
    const int64_t rows = shape_.rows, width = shape_.width, columns = panel.columns;
    const int64_t pitch = panel.vectors() * kLanes<S>;
    S* d = gradient() + first;
    panel.pack({d, width, 1}, 0);
    Panel<S>{normalized, rows, columns}.pack({in(call_.activations) + kNormalized * plane_size() + first, width, 1}, 0);
    ColumnSums<S, 2> sums;
    sums.add(rows, columns, [=](int64_t i, int64_t c, auto, Vector<S>(&values)[2]) {
      values[0] = load(panel.values + i * pitch + c, Whole<S>{});
      values[1] = values[0] * load(normalized + i * pitch + c, Whole<S>{});
    });
    S beta[kPitch], gamma[kPitch], factor[kPitch] = {}, mean[kPitch] = {}, slope[kPitch] = {};
    for (int64_t c = 0; c < columns; ++c) {
      beta[c] = static_cast<S>(sums.total[0][c]);
      gamma[c] = static_cast<S>(sums.total[1][c]);
      mean[c] = static_cast<S>(sums.total[0][c] / static_cast<double>(rows));
      slope[c] = static_cast<S>(sums.total[1][c] / static_cast<double>(rows));
      factor[c] = in(call_.gamma)[first + c] * in(call_.inverse_std)[first + c];
    }
    for (int64_t i = 0; i < rows; ++i) {
      for_each_vector<S>(columns, [&](int64_t c, auto extent) {
        const Whole<S> whole;
        S* at = panel.values + i * pitch + c;
        const Vector<S> dz =
            load(factor + c, whole) * (load(at, whole) - load(mean + c, whole) -
                                       load(normalized + i * pitch + c, whole) * load(slope + c, whole));
        store<S>(dz, at, whole);
        if (sink_.wants(kGradFeatures)) store<S>(dz, d + i * width + c, extent);
      });
    }
    // After the last use of the old gamma, which the sink may change.
    sink_.take(kGradBeta, first, columns, beta);
    sink_.take(kGradGamma, first, columns, gamma);
  }

  // dz' x by units, from x' dz.
  void input_gradient(int64_t first, const Panel<S>& dz, S* sums) const {
    const int64_t features = shape_.features;
    dz.multiply({in(call_.features), 1, features}, features, sums);
    S* row = sums + features * kPanelColumns<S>;
    for (int64_t c = 0; c < dz.columns; ++c) {
      for (int64_t f = 0; f < features; ++f) row[f] = sums[f * kPanelColumns<S> + c];
      sink_.take(kGradWIn, (first + c) * features, features, row);
    }
  }

  // deltas' values, summed over the batch: of [units, width] the panel's columns.
  void weight_gradient(int index, const S* deltas, int64_t units, const S* values, int64_t first,
                       const Panel<S>& panel, S* sums) const {
    if (!sink_.wants(index)) return;
    panel.pack({values, shape_.width, 1}, first);
    panel.multiply({deltas, 1, units}, units, sums);
    for (int64_t i = 0; i < units; ++i) {
      sink_.take(index, i * shape_.width + first, panel.columns, sums + i * kPanelColumns<S>);
    }
  }

  void column_sums(int index, const S* deltas, int64_t units, int64_t first,
                   int64_t columns) const {
    if (!sink_.wants(index)) return;
    ColumnSums<S, 1> sums;
    sums.add(shape_.rows, columns, [=](int64_t i, int64_t c, auto extent, Vector<S>(&values)[1]) {
      values[0] = load(deltas + i * units + first + c, extent);
    });
    S totals[kPanelColumns<S>];
    for (int64_t c = 0; c < columns; ++c) totals[c] = static_cast<S>(sums.total[0][c]);
    sink_.take(index, first, columns, totals);
  }

  const RegressorBackwardCall& call_;
  const RegressorShape& shape_;
  const Sink& sink_;
  const S scale_;
  const Packed w_hidden_[2], w_out_;
};

ERD_NAMESPACE_END
