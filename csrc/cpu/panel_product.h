// The matrix product of training, C = A B.
//
// B is read by panels, kPanelColumns wide and all of its depth, row after row, so that transposed
// matrices and ragged edges cost nothing in the loop that counts. That loop walks down the rows of
// A, kTileRows at a time, with all sums of a tile in registers. Every sum runs over the depth in
// order, wherever its row and column lie: results do not depend on how the work is cut.
//
// Activations lie in panels, too (Plane): columns of a layer are then one stretch of memory, fit to
// be a panel of B as they are.
#pragma once

#include <cstring>

#include "cpu/lanes.h"
#include "cpu/matrix_product.h"

ERD_NAMESPACE_BEGIN

constexpr int kTileRows = 6;
constexpr int kPanelVectors = kVectorRegisters == 32 ? 4 : 2;
template <class S>
constexpr int64_t kPanelColumns = kPanelVectors * kLanes<S>;

// Element (i, j) lies at data + i * row_stride + j * column_stride. Where a group stride is not 0,
// only kPanelColumns rows or columns follow each other like that, and groups of them lie that far
// apart.
template <class S>
struct MatrixView {
  const S* data;
  int64_t row_stride, column_stride;
  int64_t row_group_stride = 0, column_group_stride = 0;

  const S* row(int64_t i) const { return data + offset(i, row_stride, row_group_stride); }
  int64_t column(int64_t j) const { return offset(j, column_stride, column_group_stride); }

 private:
  static int64_t offset(int64_t i, int64_t stride, int64_t group_stride) {
    if (group_stride == 0) return i * stride;
    return i / kPanelColumns<S> * group_stride + i % kPanelColumns<S> * stride;
  }
};

// target[i * pitch + c] = or += row first + i of a times column c of the panel. Stride is a's
// column stride where it is known, else 0: that and two steps at a time leave little arithmetic on
// addresses beside the multiply-adds. More steps at a time would not fit into the registers.
template <class S, int V, int64_t Stride>
__attribute__((noinline)) void multiply_rows(const MatrixView<S>& a, int64_t first, int64_t count,
                                             int64_t first_k, int64_t depth, const S* panel,
                                             S* target, int64_t pitch) {
  using Native = typename Simd<S>::Native;
  constexpr int64_t kPitch = kPanelColumns<S>;
  const int64_t stride = Stride == 0 ? a.column_stride : Stride;
  const int64_t group = a.column_group_stride == 0 ? depth : kPitch;
  for (int64_t tile = 0; tile < count; tile += kTileRows) {
    // Past the end the last row is read again, and its sums are thrown away.
    const S* row[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
      row[r] = a.row(first + (tile + r < count ? tile + r : count - 1)) + a.column(first_k);
    }
    Native sum[kTileRows][V] = {};
    const S* b_row = panel;
    for (int64_t begin = 0; begin < depth; begin += group) {
      const int64_t end = depth - begin < group ? depth - begin : group;
      const auto step = [&](int64_t k) __attribute__((always_inline)) {
        Native b[V];
        for (int v = 0; v < V; ++v) {
          __builtin_memcpy(&b[v], b_row + k * kPitch + v * kLanes<S>, sizeof(Native));
        }
        for (int r = 0; r < kTileRows; ++r) {
          const S x = row[r][k * stride];
          for (int v = 0; v < V; ++v) sum[r][v] += x * b[v];
        }
      };
      int64_t k = 0;
      for (; k + 2 <= end; k += 2) {
        step(k);
        step(k + 1);
      }
      for (; k < end; ++k) step(k);
      b_row += end * kPitch;
      for (int r = 0; r < kTileRows; ++r) row[r] += a.column_group_stride;
    }
    for (int r = 0; r < kTileRows && tile + r < count; ++r) {
      S* sums = target + (tile + r) * pitch;
      for (int v = 0; v < V; ++v) {
        Native total = sum[r][v];
        if (first_k > 0) {
          Native before;
          __builtin_memcpy(&before, sums + v * kLanes<S>, sizeof(Native));
          total += before;
        }
        __builtin_memcpy(sums + v * kLanes<S>, &total, sizeof(Native));
      }
    }
  }
}

// A depth beyond this is summed in parts: that keeps a part of the panel in the cache, and float
// sums over very many rows accurate.
constexpr int64_t kPartDepth = 512;

// `columns` columns of B, at most kPanelColumns; row k of them is values[k * kPanelColumns ...].
template <class S>
struct Panel {
  S* values;
  int64_t depth, columns;

  // Columns [first, first + columns) of b, in row_stride and column_stride.
  void pack(const MatrixView<S>& b, int64_t first) const {
    constexpr int64_t kPitch = kPanelColumns<S>;
    const S* source = b.data + first * b.column_stride;
    if (columns < kPitch) std::memset(values, 0, sizeof(S) * static_cast<size_t>(depth * kPitch));
    if (b.column_stride != 1) {
      for (int64_t c = 0; c < columns; ++c) {
        const S* column = source + c * b.column_stride;
        for (int64_t k = 0; k < depth; ++k) values[k * kPitch + c] = column[k * b.row_stride];
      }
    } else {
      for (int64_t k = 0; k < depth; ++k) {
        std::memcpy(values + k * kPitch, source + k * b.row_stride,
                    sizeof(S) * static_cast<size_t>(columns));
      }
    }
  }

  // target[i * pitch + c] = row first + i of a, of `count`, times column c. Whole vectors are
  // written: up to kPanelColumns of a row, whatever `columns` is.
  void multiply(const MatrixView<S>& a, int64_t first, int64_t count, S* target,
                int64_t pitch = kPanelColumns<S>) const {
    multiply_vectors<kPanelVectors>(a, first, count, target, pitch);
  }

 private:
  template <int V>
  void multiply_vectors(const MatrixView<S>& a, int64_t first, int64_t count, S* target,
                        int64_t pitch) const {
    if constexpr (V > 1) {
      if (columns <= (V - 1) * kLanes<S>) {
        return multiply_vectors<V - 1>(a, first, count, target, pitch);
      }
    }
    for (int64_t k = 0; k < depth || k == 0; k += kPartDepth) {
      const auto multiply = a.column_stride == 1 ? multiply_rows<S, V, 1>
                            : a.column_stride == kPanelColumns<S>
                                ? multiply_rows<S, V, kPanelColumns<S>>
                                : multiply_rows<S, V, 0>;
      multiply(a, first, count, k, depth - k < kPartDepth ? depth - k : kPartDepth,
               values + k * kPanelColumns<S>, target, pitch);
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

// All panels of a matrix [depth, columns], one after the other.
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
  void pack(const MatrixView<S>& b, int64_t p) const {
    if (p < panel_count<S>(columns)) panel(p).pack(b, p * kPanelColumns<S>);
  }

  // The matrix itself and its transposed as factor A.
  MatrixView<S> by_rows() const {
    return {values, kPanelColumns<S>, 1, 0, depth * kPanelColumns<S>};
  }
  MatrixView<S> by_columns() const {
    return {values, 1, kPanelColumns<S>, depth * kPanelColumns<S>, 0};
  }
};

// A layer's units over the batch, [rows, units] in panels, which kernels fill as they go.
template <class S>
using Plane = PackedMatrix<S>;

ERD_NAMESPACE_END
