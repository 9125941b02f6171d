// The residual regressor in train mode, backward, on the CPU.
//
// With d the gradient of the hidden state and c_l = pass_l d the gradient of what layer l adds:
//   d_2 = W_out' g          d_1 = d_2 + W_2' c_2          d_0 = d_1 + W_1' c_1
// then through ReLU and BatchNorm to z, all by blocks of rows and columns as in the forward pass.
// The weights' gradients are products over the rows of the batch, c_l' h_{l-1}.
#include "core/training_call.h"
#include "cpu/layer.h"

ERD_NAMESPACE_BEGIN

namespace {

template <class S>
class Backward {
 public:
  Backward(const RegressorBackwardCall& call, ParallelFor threads)
      : call_(call),
        shape_(call.shape),
        threads_(threads),
        scale_(static_cast<S>(1.0 / (1.0 - call.shape.dropout))) {}

  void run() {
    from_output();
    through_hidden_layer(1);
    through_hidden_layer(0);
    const MatrixView<S> g{parameter(call_.grad), shape_.outputs, 1};
    weight_gradient(kGradWOut, g, shape_.outputs, hidden(2), shape_.width);
    bias_gradient(kGradBOut, g.data, shape_.outputs);
    for (int layer = 0; layer < 2; ++layer) {
      const MatrixView<S> c{change_gradient(layer), shape_.width, 1};
      weight_gradient(kGradWHidden + layer, c, shape_.width, hidden(layer), shape_.width);
      bias_gradient(kGradBHidden + layer, c.data, shape_.width);
    }
    const MatrixView<S> dz{gradient(), shape_.width, 1};
    weight_gradient(kGradWIn, dz, shape_.width, parameter(call_.features), shape_.features);
    if (call_.gradients[kGradFeatures] != nullptr) feature_gradient(dz);
  }

 private:
  static const S* parameter(const void* data) { return static_cast<const S*>(data); }

  int64_t plane_size() const { return shape_.rows * shape_.width; }
  const S* hidden(int64_t layer) const {
    return parameter(call_.activations) + (kHidden + layer) * plane_size();
  }
  S* gradient() const { return static_cast<S*>(call_.workspace); }
  S* change_gradient(int64_t layer) const { return gradient() + (1 + layer) * plane_size(); }
  S* wanted(int index) const { return static_cast<S*>(call_.gradients[index]); }

  // d of a block, where it was or newly, and c = pass d of the hidden layer before it.
  void store(const Block<S>& block, bool add, int layer) const {
    for (int64_t i = 0; i < block.rows; ++i) {
      S factors[kPanelColumns<S>];
      const int64_t at = (block.first_row + i) * shape_.width + block.first_column;
      read_factors(call_.passes + at, 1 + layer, block.columns, scale_, factors);
      S* d = gradient() + at;
      S* c = change_gradient(layer) + at;
      const S* sum = block.row(i);
      for (int64_t k = 0; k < block.columns; ++k) {
        const S total = add ? d[k] + sum[k] : sum[k];
        d[k] = total;
        c[k] = pass(factors[k], total);
      }
    }
  }

  void from_output() const {
    const int64_t width = shape_.width, outputs = shape_.outputs;
    const Product<S> product{{parameter(call_.grad), outputs, 1},
                             {parameter(call_.w_out), width, 1},
                             shape_.rows,
                             outputs,
                             width};
    for_each_block(threads_, product, [&](const Block<S>& block) { store(block, false, 1); });
  }

  void through_hidden_layer(int layer) const {
    const int64_t width = shape_.width;
    const Product<S> product{{change_gradient(layer), width, 1},
                             {parameter(call_.w_hidden[layer]), width, 1},
                             shape_.rows,
                             width,
                             width};
    if (layer == 1) {
      for_each_block(threads_, product, [&](const Block<S>& block) { store(block, true, 0); });
    } else {
      for_each_panel(
          threads_, product, [&](const Block<S>& block) { through_relu(block); },
          [&](int64_t first, int64_t columns) { through_norm(first, columns); });
    }
  }

  // d becomes the gradient of BatchNorm's output.
  void through_relu(const Block<S>& block) const {
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t at = (block.first_row + i) * shape_.width + block.first_column;
      S* d = gradient() + at;
      S factors[kPanelColumns<S>];
      read_factors(call_.passes + at, 0, block.columns, scale_, factors);
      const S* sum = block.row(i);
      for (int64_t k = 0; k < block.columns; ++k) d[k] = pass(factors[k], d[k] + sum[k]);
    }
  }

  // d becomes the gradient of z, which also moves its own mean and variance.
  void through_norm(int64_t first, int64_t columns) const {
    const int64_t rows = shape_.rows, width = shape_.width;
    S* d = gradient() + first;
    const S* n = parameter(call_.activations) + kNormalized * plane_size() + first;
    ColumnSums<S> of_beta, of_gamma;
    of_beta.add(rows, columns, [=](int64_t i, int64_t c) { return d[i * width + c]; });
    of_gamma.add(rows, columns,
                 [=](int64_t i, int64_t c) { return d[i * width + c] * n[i * width + c]; });
    S factor[kPanelColumns<S>], mean[kPanelColumns<S>], slope[kPanelColumns<S>];
    for (int64_t c = 0; c < columns; ++c) {
      wanted(kGradBeta)[first + c] = static_cast<S>(of_beta.total[c]);
      wanted(kGradGamma)[first + c] = static_cast<S>(of_gamma.total[c]);
      mean[c] = static_cast<S>(of_beta.total[c] / static_cast<double>(rows));
      slope[c] = static_cast<S>(of_gamma.total[c] / static_cast<double>(rows));
      factor[c] = parameter(call_.gamma)[first + c] * parameter(call_.inverse_std)[first + c];
    }
    for (int64_t i = 0; i < rows; ++i) {
      S* row = d + i * width;
      const S* normalized = n + i * width;
      for (int64_t c = 0; c < columns; ++c) {
        row[c] = factor[c] * (row[c] - mean[c] - normalized[c] * slope[c]);
      }
    }
  }

  // deltas' values, summed over the batch: [units, inputs].
  void weight_gradient(int index, MatrixView<S> deltas, int64_t units, const S* values,
                       int64_t inputs) const {
    if (wanted(index) == nullptr) return;
    const Product<S> product{deltas.transposed(), {values, inputs, 1}, units, shape_.rows, inputs};
    for_each_block(threads_, product, [&](const Block<S>& block) {
      for (int64_t i = 0; i < block.rows; ++i) {
        S* target = wanted(index) + (block.first_row + i) * inputs + block.first_column;
        for (int64_t c = 0; c < block.columns; ++c) target[c] = block.row(i)[c];
      }
    });
  }

  void bias_gradient(int index, const S* deltas, int64_t units) const {
    if (wanted(index) == nullptr) return;
    for (int64_t first = 0; first < units; first += kPanelColumns<S>) {
      const int64_t columns = units - first < kPanelColumns<S> ? units - first : kPanelColumns<S>;
      ColumnSums<S> sums;
      sums.add(shape_.rows, columns,
               [=](int64_t i, int64_t c) { return deltas[i * units + first + c]; });
      for (int64_t c = 0; c < columns; ++c) {
        wanted(index)[first + c] = static_cast<S>(sums.total[c]);
      }
    }
  }

  void feature_gradient(MatrixView<S> dz) const {
    const int64_t features = shape_.features;
    const Product<S> product{
        dz, {parameter(call_.w_in), features, 1}, shape_.rows, shape_.width, features};
    for_each_block(threads_, product, [&](const Block<S>& block) {
      for (int64_t i = 0; i < block.rows; ++i) {
        S* target = wanted(kGradFeatures) + (block.first_row + i) * features + block.first_column;
        for (int64_t c = 0; c < block.columns; ++c) target[c] = block.row(i)[c];
      }
    });
  }

  const RegressorBackwardCall& call_;
  const RegressorShape& shape_;
  const ParallelFor threads_;
  const S scale_;
};

}  // namespace

void run_regressor_backward(const RegressorBackwardCall& call, ParallelFor threads) {
  if (call.shape.scalar == ScalarType::float32) {
    Backward<float>(call, threads).run();
  } else {
    Backward<double>(call, threads).run();
  }
}

ERD_NAMESPACE_END
