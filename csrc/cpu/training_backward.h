// The residual regressor in train mode, backward, on the CPU.
//
// With d the gradient of the hidden state and c_l = pass_l d the gradient of what layer l adds:
//   d_2 = W_out' g          d_1 = d_2 + W_2' c_2          d_0 = d_1 + W_1' c_1
// then through ReLU and BatchNorm to z. to_first_layer takes some rows from g to BatchNorm's
// output. What remains is cut into tasks of about equal work: BatchNorm's own for some columns, and
// gradients of weights, c_l' h_{l-1}, for some rows of a weight matrix. They hand gradients to a
// sink:
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
        w_hidden_{{packed, shape_.width, shape_.width},
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
    const Plane<S> d = gradient(), c1 = change_gradient(0), c2 = change_gradient(1);
    for_each_product({in(call_.grad), shape_.outputs, 1}, w_out_, first, count, sums,
                     [&](Vector<S> sum, const Passes<S>& passes, int64_t at) {
                       store<S>(sum, d.values + at);
                       store<S>(pass(passes.layer(2), sum, scale_), c2.values + at);
                     });
    for_each_product(c2.by_rows(), w_hidden_[1], first, count, sums,
                     [&](Vector<S> sum, const Passes<S>& passes, int64_t at) {
                       const Vector<S> total = load(d.values + at) + sum;
                       store<S>(total, d.values + at);
                       store<S>(pass(passes.layer(1), total, scale_), c1.values + at);
                     });
    for_each_product(c1.by_rows(), w_hidden_[0], first, count, sums,
                     [&](Vector<S> sum, const Passes<S>& passes, int64_t at) {
                       const Vector<S> total = load(d.values + at) + sum;
                       store<S>(pass(passes.layer(0), total, scale_), d.values + at);
                     });
  }

  // All gradients of parameters; that of z is left in gradient().
  void parameter_gradients(ParallelFor threads) const {
    const int64_t panels = panel_count<S>(shape_.width);
    const int64_t hidden_tiles = tile_count(shape_.width), out_tiles = tile_count(shape_.outputs);
    const int64_t ends[4] = {panels, panels + hidden_tiles, panels + 2 * hidden_tiles,
                             panels + 2 * hidden_tiles + out_tiles};
    parallel(threads, ends[3], kGradientTiles, [&](int64_t begin, int64_t end) {
      AlignedBuffer<S> rows(scratch_size());
      for (int64_t p = begin; p < end && p < panels; ++p) norm_and_biases(p, rows.data());
      for (int l = 0; l < 3; ++l) {
        int64_t tile = (begin > ends[l] ? begin : ends[l]) - ends[l];
        const int64_t last = (end < ends[l + 1] ? end : ends[l + 1]) - ends[l];
        for (; tile < last; tile += kGradientTiles) {
          weight_gradient(l, tile, last - tile < kGradientTiles ? last : tile + kGradientTiles,
                          rows.data());
        }
      }
    });
  }

  // After parameter_gradients: rows of the features' gradient. `w_in` is W_in, packed.
  void feature_gradient(int64_t first, int64_t count, const PackedMatrix<S>& w_in, S* sums) const {
    const int64_t features = shape_.features;
    for (int64_t p = 0; p < panel_count<S>(features); ++p) {
      const Panel<S> panel = w_in.panel(p);
      panel.multiply(gradient().by_rows(), first, count, sums);
      for (int64_t i = 0; i < count; ++i) {
        sink_.take(kGradFeatures, (first + i) * features + p * kPanelColumns<S>, panel.columns,
                   sums + i * kPanelColumns<S>);
      }
    }
  }

 private:
  using Packed = PackedMatrix<S>;
  // Tiles of a weight's gradient that are made at a time: the factors and they fit into the cache.
  static constexpr int64_t kGradientTiles = 4;

  static const S* in(const void* data) { return static_cast<const S*>(data); }
  static int64_t tile_count(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
  int64_t plane_size() const { return shape_.rows * padded_width(shape_.width); }
  Plane<S> activation(int64_t index) const {
    // Planes are written by the forward pass only.
    return {const_cast<S*>(in(call_.activations)) + index * plane_size(), shape_.rows,
            shape_.width};
  }
  Plane<S> gradient() const {
    return {static_cast<S*>(call_.workspace), shape_.rows, shape_.width};
  }
  Plane<S> change_gradient(int64_t layer) const {
    return {gradient().values + (1 + layer) * plane_size(), shape_.rows, shape_.width};
  }

  // finish(vector of the product a b, its units' passes, where it belongs in a plane).
  template <class Finish>
  void for_each_product(const MatrixView<S>& a, const Packed& b, int64_t first, int64_t count,
                        S* sums, const Finish& finish) const {
    for (int64_t p = 0; p < panel_count<S>(b.columns); ++p) {
      const Panel<S> panel = b.panel(p);
      panel.multiply(a, first, count, sums);
      for_each_vector<S>(panel.columns, [&](int64_t c, auto extent) {
        const uint8_t* passes = call_.passes + first * shape_.width + p * kPanelColumns<S> + c;
        const int64_t at = (p * shape_.rows + first) * kPanelColumns<S> + c;
        for (int64_t i = 0; i < count; ++i) {
          finish(load(sums + i * kPanelColumns<S> + c),
                 load_passes<S>(passes + i * shape_.width, extent), at + i * kPanelColumns<S>);
        }
      });
    }
  }

  // Elements of the memory that norm_and_biases and weight_gradient want.
  int64_t scratch_size() const {
    const int64_t inputs = (shape_.features + 1) * (kPanelColumns<S> + 1);
    const int64_t rows = kGradientTiles * kTileRows * padded_width(shape_.width);
    return inputs > rows ? inputs : rows;
  }

  // Takes panel p's units through BatchNorm, and makes all their gradients but those of the hidden
  // and the last layer's weights.
  void norm_and_biases(int64_t p, S* scratch) const {
    constexpr int64_t kPitch = kPanelColumns<S>;
    const int64_t first = p * kPitch;
    const Panel<S> d = gradient().panel(p);
    const S* n = activation(kNormalized).panel(p).values;
    for_each_vector<S>(d.columns, [&](int64_t c, auto extent) {
      through_norm(d.values + c, n + c, first + c, extent);
    });
    if (sink_.wants(kGradWIn)) input_gradient(first, d, scratch);
    for (int l = 0; l < 2; ++l) {
      const Panel<S> c = change_gradient(l).panel(p);
      column_sums(kGradBHidden + l, c.values, kPitch, first, c.columns);
    }
    if (p > 0) return;
    for (int64_t q = 0; q < panel_count<S>(shape_.outputs); ++q) {
      column_sums(kGradBOut, in(call_.grad) + q * kPitch, shape_.outputs, q * kPitch,
                  panel_columns<S>(shape_.outputs, q));
    }
  }

  // From d, the gradient of BatchNorm's output, to that of z in its place, for a vector of units.
  template <class Extent>
  void through_norm(S* d, const S* n, int64_t unit, Extent extent) const {
    constexpr int64_t kPitch = kPanelColumns<S>;
    const int64_t rows = shape_.rows;
    ColumnSum<S> beta, gamma;
    beta.add(rows, [=](int64_t i) { return load(d + i * kPitch); });
    gamma.add(rows, [=](int64_t i) { return load(d + i * kPitch) * load(n + i * kPitch); });
    Vector<S> mean, slope;
    for (int l = 0; l < kLanes<S>; ++l) {
      mean[l] = static_cast<S>(beta.total[l] / static_cast<double>(rows));
      slope[l] = static_cast<S>(gamma.total[l] / static_cast<double>(rows));
    }
    const Vector<S> factor =
        load(in(call_.gamma) + unit, extent) * load(in(call_.inverse_std) + unit, extent);
    for (int64_t i = 0; i < rows; ++i) {
      S* at = d + i * kPitch;
      store<S>(factor * (load(at) - mean - load(n + i * kPitch) * slope), at);
    }
    // Only now: the sink may change gamma itself.
    take(kGradBeta, unit, beta.rounded(), extent);
    take(kGradGamma, unit, gamma.rounded(), extent);
  }

  void take(int index, int64_t at, Vector<S> values, Whole<S>) const {
    take(index, at, values, Part{kLanes<S>});
  }
  void take(int index, int64_t at, Vector<S> values, Part part) const {
    S numbers[kLanes<S>];
    store<S>(values, numbers);
    sink_.take(index, at, part.columns, numbers);
  }

  // dz' x by units, from x' dz.
  void input_gradient(int64_t first, const Panel<S>& dz, S* scratch) const {
    const int64_t features = shape_.features;
    dz.multiply({in(call_.features), 1, features}, 0, features, scratch);
    S* row = scratch + features * kPanelColumns<S>;
    for (int64_t c = 0; c < dz.columns; ++c) {
      for (int64_t f = 0; f < features; ++f) row[f] = scratch[f * kPanelColumns<S> + c];
      sink_.take(kGradWIn, (first + c) * features, features, row);
    }
  }

  void column_sums(int index, const S* values, int64_t pitch, int64_t first,
                   int64_t columns) const {
    if (!sink_.wants(index)) return;
    for_each_vector<S>(columns, [&](int64_t c, auto extent) {
      ColumnSum<S> sum;
      sum.add(shape_.rows, [&](int64_t i) { return load(values + i * pitch + c, extent); });
      take(index, first + c, sum.rounded(), extent);
    });
  }

  // Tiles [begin, end) of the gradient of W_1, W_2 or W_out: deltas' values, summed over the batch.
  void weight_gradient(int layer, int64_t begin, int64_t end, S* scratch) const {
    const int index = layer < 2 ? kGradWHidden + layer : kGradWOut;
    if (!sink_.wants(index)) return;
    const int64_t width = shape_.width, units = layer < 2 ? width : shape_.outputs;
    const int64_t first = begin * kTileRows;
    const int64_t count = (end * kTileRows < units ? end * kTileRows : units) - first;
    const MatrixView<S> deltas =
        layer < 2 ? change_gradient(layer).by_columns() : MatrixView<S>{in(call_.grad), 1, units};
    const Plane<S> values = activation(kHidden + layer);
    // Rows side by side: a sink reads and writes whole stretches of memory.
    const int64_t pitch = padded_width(width);
    for (int64_t p = 0; p < panel_count<S>(width); ++p) {
      values.panel(p).multiply(deltas, first, count, scratch + p * kPanelColumns<S>, pitch);
    }
    if (pitch == width) {
      sink_.take(index, first * width, count * width, scratch);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      sink_.take(index, (first + i) * width, width, scratch + i * pitch);
    }
  }

  const RegressorBackwardCall& call_;
  const RegressorShape& shape_;
  const Sink& sink_;
  const S scale_;
  const Packed w_hidden_[2], w_out_;
};

ERD_NAMESPACE_END
