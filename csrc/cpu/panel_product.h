// The matrix product of training, C = A B, for matrices in any strides.
//
// A thread copies a panel of B, some vectors wide and all of its depth, into memory of its own: one
// vector after the other in the order in which they are read, zeros past the last column, so that
// transposed matrices and ragged edges cost nothing in the loop that counts. Then it walks down the
// rows of A, kTileRows at a time, with all sums of a tile in registers. Every sum runs over the
// depth in order, wherever its row and column lie: results do not depend on how the work is cut.
#pragma once

#include "cpu/lanes.h"
#include "cpu/matrix_product.h"

ERD_NAMESPACE_BEGIN

// Element (i, j) lies at data + i * row_stride + j * column_stride.
template <class S>
struct MatrixView {
  const S* data;
  int64_t row_stride;
  int64_t column_stride;

  MatrixView transposed() const { return {data, column_stride, row_stride}; }
  MatrixView from_row(int64_t row) const {
    return {data + row * row_stride, row_stride, column_stride};
  }
};

constexpr int kTileRows = 6;
constexpr int kPanelVectors = kVectorRegisters == 32 ? 4 : 2;
template <class S>
constexpr int64_t kPanelColumns = kPanelVectors * kLanes<S>;

template <class S, int V>
__attribute__((noinline)) void multiply_rows(MatrixView<S> a, int64_t rows, int64_t depth,
                                             const S* panel, bool add, S* sums) {
  using Native = typename Simd<S>::Native;
  constexpr int64_t kPitch = kPanelColumns<S>;
  for (int64_t first = 0; first < rows; first += kTileRows) {
    // Past the end the last row is read again, and its sums are thrown away.
    const S* row[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
      row[r] = a.data + (first + r < rows ? first + r : rows - 1) * a.row_stride;
    }
    Native sum[kTileRows][V] = {};
    const S* column = panel;
    for (int64_t k = 0, offset = 0; k < depth; ++k, offset += a.column_stride) {
      Native b[V];
      for (int v = 0; v < V; ++v) __builtin_memcpy(&b[v], column + v * kLanes<S>, sizeof(Native));
      column += V * kLanes<S>;
      for (int r = 0; r < kTileRows; ++r) {
        const S x = row[r][offset];
        for (int v = 0; v < V; ++v) sum[r][v] += x * b[v];
      }
    }
    for (int r = 0; r < kTileRows && first + r < rows; ++r) {
      S* target = sums + (first + r) * kPitch;
      for (int v = 0; v < V; ++v) {
        Native total = sum[r][v];
        if (add) {
          Native before;
          __builtin_memcpy(&before, target + v * kLanes<S>, sizeof(Native));
          total += before;
        }
        __builtin_memcpy(target + v * kLanes<S>, &total, sizeof(Native));
      }
    }
  }
}

// One thread's panel of B and what it takes to multiply by it.
template <class S>
class Panel {
 public:
  explicit Panel(int64_t depth) : values_(depth * kPanelColumns<S>) {}

  // Columns [first, first + count) of b, count at most kPanelColumns.
  void pack(MatrixView<S> b, int64_t depth, int64_t first, int64_t count) {
    depth_ = depth;
    vectors_ = static_cast<int>((count + kLanes<S> - 1) / kLanes<S>);
    const int64_t width = vectors_ * kLanes<S>;
    const S* source = b.data + first * b.column_stride;
    if (b.column_stride == 1) {
      for (int64_t k = 0; k < depth; ++k) {
        S* target = values_.data() + k * width;
        for (int64_t c = 0; c < count; ++c) target[c] = source[k * b.row_stride + c];
      }
    } else {
      for (int64_t c = 0; c < count; ++c) {
        S* target = values_.data() + c;
        const S* column = source + c * b.column_stride;
        for (int64_t k = 0; k < depth; ++k) target[k * width] = column[k * b.row_stride];
      }
    }
    for (int64_t k = 0; k < depth && count < width; ++k) {
      for (int64_t c = count; c < width; ++c) values_.data()[k * width + c] = S(0);
    }
  }

  // sums[i * kPanelColumns + c] = or += row i of a times column c of the panel.
  void multiply(MatrixView<S> a, int64_t rows, bool add, S* sums) const {
    multiply_vectors<kPanelVectors>(a, rows, add, sums);
  }

 private:
  template <int V>
  void multiply_vectors(MatrixView<S> a, int64_t rows, bool add, S* sums) const {
    if constexpr (V > 1) {
      if (vectors_ < V) return multiply_vectors<V - 1>(a, rows, add, sums);
    }
    multiply_rows<S, V>(a, rows, depth_, values_.data(), add, sums);
  }

  AlignedBuffer<S> values_;
  int64_t depth_ = 0;
  int vectors_ = 0;
};

ERD_NAMESPACE_END
