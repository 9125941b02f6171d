// The matrix product of training, C = A B, for matrices in any strides.
//
// B is read by panels, some vectors wide and all of its depth: one vector after the other in the
// order in which they are read, zeros past the last column, so that transposed matrices and ragged
// edges cost nothing in the loop that counts. That loop walks down the rows of A, kTileRows at a
// time, with all sums of a tile in registers. Every sum runs over the depth in order, wherever its
// row and column lie: results do not depend on how the work is cut.
#pragma once

#include <cstring>

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

// A depth beyond this is summed in parts: that keeps a part of the panel in the cache, and float
// sums over very many rows accurate.
constexpr int64_t kPartDepth = 512;

// Columns of B, at most kPanelColumns of them, in `values`, which has depth * kPanelColumns elements.
template <class S>
struct Panel {
  S* values;
  int64_t depth, columns;

  int vectors() const { return static_cast<int>((columns + kLanes<S> - 1) / kLanes<S>); }

  // Columns [first, first + columns) of b.
  void pack(MatrixView<S> b, int64_t first) const {
    const int64_t width = vectors() * kLanes<S>;
    const S* source = b.data + first * b.column_stride;
    if (columns < width) std::memset(values, 0, sizeof(S) * static_cast<size_t>(depth * width));
    if (b.column_stride != 1) {
      for (int64_t c = 0; c < columns; ++c) {
        const S* column = source + c * b.column_stride;
        for (int64_t k = 0; k < depth; ++k) values[k * width + c] = column[k * b.row_stride];
      }
    } else if (columns == kPanelColumns<S>) {
      for (int64_t k = 0; k < depth; ++k) {
        std::memcpy(values + k * width, source + k * b.row_stride, sizeof(S) * kPanelColumns<S>);
      }
    } else {
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t c = 0; c < columns; ++c) values[k * width + c] = source[k * b.row_stride + c];
      }
    }
  }

  // sums[i * kPanelColumns + c] = row i of a times column c of the panel.
  void multiply(MatrixView<S> a, int64_t rows, S* sums) const {
    multiply_vectors<kPanelVectors>(a, rows, sums);
  }

 private:
  template <int V>
  void multiply_vectors(MatrixView<S> a, int64_t rows, S* sums) const {
    if constexpr (V > 1) {
      if (vectors() < V) return multiply_vectors<V - 1>(a, rows, sums);
    }
    for (int64_t k = 0; k < depth || k == 0; k += kPartDepth) {
      multiply_rows<S, V>({a.data + k * a.column_stride, a.row_stride, a.column_stride}, rows,
                          depth - k < kPartDepth ? depth - k : kPartDepth,
                          values + k * V * kLanes<S>, k > 0, sums);
    }
  }
};

template <class S>
int64_t panel_count(int64_t columns) {
  return (columns + kPanelColumns<S> - 1) / kPanelColumns<S>;
}
template <class S>
int64_t panel_columns(int64_t columns, int64_t panel) {
  const int64_t left = columns - panel * kPanelColumns<S>;
  return left < kPanelColumns<S> ? left : kPanelColumns<S>;
}

// All panels of a matrix [depth, columns], which every thread reads.
template <class S>
struct PackedMatrix {
  S* values;
  int64_t depth, columns;

  static int64_t size(int64_t depth, int64_t columns) {
    return panel_count<S>(columns) * depth * kPanelColumns<S>;
  }
  Panel<S> panel(int64_t p) const {
    return {values + p * depth * kPanelColumns<S>, depth, panel_columns<S>(columns, p)};
  }
  // Panel p of b, if it has so many.
  void pack(MatrixView<S> b, int64_t p) const {
    if (p < panel_count<S>(columns)) panel(p).pack(b, p * kPanelColumns<S>);
  }
};

ERD_NAMESPACE_END
