// The residual regressor in train mode, forward, on the CPU (core/training_call.h has the
// equations).
//
// Four passes over the batch, each spread over threads by blocks of rows and columns: the first
// layer with its batch statistics, which a thread takes over all rows of its columns; the two
// hidden layers; the output. Activations are row-major with units in SIMD lanes. Before them, the
// units that dropout keeps are drawn.
#include <cmath>
#include <cstring>

#include "core/dropout.h"
#include "core/training_call.h"
#include "cpu/layer.h"

ERD_NAMESPACE_BEGIN

namespace {

template <class S>
class Forward {
 public:
  Forward(const RegressorForwardCall& call, ParallelFor threads)
      : call_(call),
        shape_(call.shape),
        threads_(threads),
        scale_(static_cast<S>(1.0 / (1.0 - call.shape.dropout))) {}

  void run() {
    draw_dropout();
    first_layer();
    hidden_layer(0);
    hidden_layer(1);
    output_layer();
  }

 private:
  static const S* parameter(const void* data) { return static_cast<const S*>(data); }

  S* plane(int64_t index) const {
    return static_cast<S*>(call_.activations) + index * shape_.rows * shape_.width;
  }
  S* hidden(int64_t layer) const { return plane(kHidden + layer); }

  void draw_dropout() const {
    const int64_t width = shape_.width;
    if (call_.seed == nullptr) {
      std::memset(call_.passes, kAllPass, static_cast<size_t>(shape_.rows * width));
      return;
    }
    const Dropout dropout(static_cast<uint64_t>(*call_.seed), shape_.dropout, width);
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bytes of a group lie in its order");
    parallel(threads_, shape_.rows, 16, [this, dropout, width](int64_t begin, int64_t end) {
      AlignedBuffer<uint32_t> groups(dropout.groups);
      for (int64_t i = begin; i < end; ++i) {
        draw_row(dropout, i, groups.data());
        std::memcpy(call_.passes + i * width, groups.data(), static_cast<size_t>(width));
      }
    });
  }

  // A loop of its own, in which compilers see that nothing aliases: it becomes SIMD.
  static void draw_row(const Dropout dropout, int64_t row, uint32_t* groups) {
    for (int64_t group = 0; group < dropout.groups; ++group) {
      groups[group] = dropout.draw(row, group);
    }
  }

  void first_layer() const {
    const int64_t width = shape_.width, features = shape_.features;
    const MatrixView<S> x{parameter(call_.features), features, 1};
    const MatrixView<S> weights{parameter(call_.w_in), features, 1};
    const Product<S> product{x, weights.transposed(), shape_.rows, features, width};
    // The bias moves the mean and nothing else: z is kept without it.
    for_each_panel(
        threads_, product,
        [&](const Block<S>& block) {
          for (int64_t i = 0; i < block.rows; ++i) {
            S* z = plane(kNormalized) + (block.first_row + i) * width + block.first_column;
            for (int64_t c = 0; c < block.columns; ++c) z[c] = block.row(i)[c];
          }
        },
        [&](int64_t first, int64_t columns) { normalize(first, columns); });
  }

  // From z to n and h_0, for a panel's columns. The variance is summed from differences to the
  // mean, and corrected by what the mean itself was rounded by: no digits cancel, however large the
  // mean.
  void normalize(int64_t first, int64_t columns) const {
    const int64_t rows = shape_.rows, width = shape_.width;
    S* z = plane(kNormalized) + first;
    const double count = static_cast<double>(rows);
    ColumnSums<S> sums;
    sums.add(rows, columns, [=](int64_t i, int64_t c) { return z[i * width + c]; });
    S mean[kPanelColumns<S>], correction[kPanelColumns<S>], inverse_std[kPanelColumns<S>];
    for (int64_t c = 0; c < columns; ++c) mean[c] = static_cast<S>(sums.total[c] / count);
    const S* m = mean;
    ColumnSums<S> differences, squares;
    differences.add(rows, columns, [=](int64_t i, int64_t c) { return z[i * width + c] - m[c]; });
    squares.add(rows, columns, [=](int64_t i, int64_t c) {
      const S difference = z[i * width + c] - m[c];
      return difference * difference;
    });
    for (int64_t c = 0; c < columns; ++c) {
      const double rest = differences.total[c] / count;
      const double variance = squares.total[c] / count - rest * rest;
      correction[c] = static_cast<S>(rest);
      inverse_std[c] = static_cast<S>(1.0 / std::sqrt(variance + call_.eps));
      const int64_t unit = first + c;
      static_cast<S*>(call_.mean)[unit] =
          static_cast<S>(mean[c] + rest + parameter(call_.b_in)[unit]);
      static_cast<S*>(call_.variance)[unit] = static_cast<S>(variance * count / (count - 1));
      static_cast<S*>(call_.inverse_std)[unit] = inverse_std[c];
    }
    const S* gamma = parameter(call_.gamma) + first;
    const S* beta = parameter(call_.beta) + first;
    for (int64_t i = 0; i < rows; ++i) {
      S values[kPanelColumns<S>], factors[kPanelColumns<S>];
      S* n = z + i * width;
      for (int64_t c = 0; c < columns; ++c) {
        n[c] = (n[c] - mean[c] - correction[c]) * inverse_std[c];
        values[c] = gamma[c] * n[c] + beta[c];
      }
      uint8_t* passes = call_.passes + first + i * width;
      close_units(values, 0, columns, passes);
      read_factors(passes, 0, columns, scale_, factors);
      S* h = hidden(0) + first + i * width;
      for (int64_t c = 0; c < columns; ++c) h[c] = pass(factors[c], values[c]);
    }
  }

  void hidden_layer(int layer) const {
    const int64_t width = shape_.width;
    const MatrixView<S> weights{parameter(call_.w_hidden[layer]), width, 1};
    const Product<S> product{
        {hidden(layer), width, 1}, weights.transposed(), shape_.rows, width, width};
    const bool has_relu = call_.block == RegressorBlock::relu;
    for_each_block(threads_, product, [&](const Block<S>& block) {
      const S* bias = parameter(call_.b_hidden[layer]) + block.first_column;
      for (int64_t i = 0; i < block.rows; ++i) {
        S changes[kPanelColumns<S>], factors[kPanelColumns<S>];
        const S* sum = block.row(i);
        for (int64_t c = 0; c < block.columns; ++c) changes[c] = sum[c] + bias[c];
        const int64_t at = (block.first_row + i) * width + block.first_column;
        uint8_t* passes = call_.passes + at;
        if (has_relu) close_units(changes, 1 + layer, block.columns, passes);
        read_factors(passes, 1 + layer, block.columns, scale_, factors);
        const S* before = hidden(layer) + at;
        S* after = hidden(layer + 1) + at;
        for (int64_t c = 0; c < block.columns; ++c) {
          after[c] = before[c] + pass(factors[c], changes[c]);
        }
      }
    });
  }

  void output_layer() const {
    const int64_t width = shape_.width, outputs = shape_.outputs;
    const MatrixView<S> weights{parameter(call_.w_out), width, 1};
    const Product<S> product{
        {hidden(2), width, 1}, weights.transposed(), shape_.rows, width, outputs};
    for_each_block(threads_, product, [&](const Block<S>& block) {
      const S* bias = parameter(call_.b_out) + block.first_column;
      for (int64_t i = 0; i < block.rows; ++i) {
        S* target =
            static_cast<S*>(call_.increment) + (block.first_row + i) * outputs + block.first_column;
        for (int64_t c = 0; c < block.columns; ++c) target[c] = block.row(i)[c] + bias[c];
      }
    });
  }

  const RegressorForwardCall& call_;
  const RegressorShape& shape_;
  const ParallelFor threads_;
  const S scale_;
};

}  // namespace

void run_regressor_forward(const RegressorForwardCall& call, ParallelFor threads) {
  if (call.shape.scalar == ScalarType::float32) {
    Forward<float>(call, threads).run();
  } else {
    Forward<double>(call, threads).run();
  }
}

ERD_NAMESPACE_END
