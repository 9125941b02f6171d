// How a layer's matrix product is spread over threads, and what is done with its results while they
// are in the cache.
#pragma once

#include "cpu/panel_product.h"

ERD_NAMESPACE_BEGIN

// Calls body(begin, end) on ranges that cover [0, count).
template <class Body>
void parallel(ParallelFor threads, int64_t count, int64_t grain, const Body& body) {
  threads.run(
      count, grain,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<Body*>(&body));
}

// Rows in blocks of about equal size, at most kBlockRows.
constexpr int64_t kBlockRows = 16 * kTileRows;

struct RowBlocks {
  int64_t rows, step, count;

  explicit RowBlocks(int64_t rows_) : rows(rows_) {
    const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
    const int64_t even = blocks == 0 ? 1 : (rows + blocks - 1) / blocks;
    step = (even + kTileRows - 1) / kTileRows * kTileRows;
    count = (rows + step - 1) / step;
  }
  int64_t first(int64_t block) const { return block * step; }
  int64_t size(int64_t block) const {
    return rows - first(block) < step ? rows - first(block) : step;
  }
};

// A block of results: element (i, c) of the product is row(i - first_row)[c - first_column].
template <class S>
struct Block {
  int64_t first_row, rows, first_column, columns;
  const S* sums;

  const S* row(int64_t i) const { return sums + i * kPanelColumns<S>; }
};

template <class S>
struct Product {
  MatrixView<S> a;  // [rows, depth]
  MatrixView<S> b;  // [depth, columns]
  int64_t rows, depth, columns;

  int64_t panels() const { return (columns + kPanelColumns<S> - 1) / kPanelColumns<S>; }
  int64_t first_column(int64_t panel) const { return panel * kPanelColumns<S>; }
  int64_t panel_columns(int64_t panel) const {
    const int64_t left = columns - first_column(panel);
    return left < kPanelColumns<S> ? left : kPanelColumns<S>;
  }
};

// A depth beyond this is summed in parts: that keeps the panel in the cache, and float sums over
// very many rows accurate.
constexpr int64_t kPartDepth = 512;

// finish(block) for every block of the product, in any order.
template <class S, class Finish>
void for_each_block(ParallelFor threads, const Product<S>& product, const Finish& finish) {
  const RowBlocks blocks(product.rows);
  parallel(threads, product.panels() * blocks.count, 1, [&](int64_t begin, int64_t end) {
    Panel<S> panel(product.depth < kPartDepth ? product.depth : kPartDepth);
    AlignedBuffer<S> sums(blocks.step * kPanelColumns<S>);
    int64_t packed = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t p = task / blocks.count, b = task % blocks.count;
      for (int64_t k = 0; k < product.depth || k == 0; k += kPartDepth) {
        const int64_t depth = product.depth - k < kPartDepth ? product.depth - k : kPartDepth;
        // Neighbouring tasks share a panel that holds the whole depth.
        if (packed != p || product.depth > kPartDepth) {
          panel.pack(product.b.from_row(k), depth, product.first_column(p),
                     product.panel_columns(p));
        }
        const MatrixView<S> a = product.a.from_row(blocks.first(b));
        panel.multiply({a.data + k * a.column_stride, a.row_stride, a.column_stride},
                       blocks.size(b), k > 0, sums.data());
      }
      packed = p;
      finish(Block<S>{blocks.first(b), blocks.size(b), product.first_column(p),
                      product.panel_columns(p), sums.data()});
    }
  });
}

// For results that depend on whole columns: finish(block) for every block of a panel's columns,
// from the first row to the last, then done(first_column, columns).
template <class S, class Finish, class Done>
void for_each_panel(ParallelFor threads, const Product<S>& product, const Finish& finish,
                    const Done& done) {
  const RowBlocks blocks(product.rows);
  parallel(threads, product.panels(), 1, [&](int64_t begin, int64_t end) {
    Panel<S> panel(product.depth);
    AlignedBuffer<S> sums(blocks.step * kPanelColumns<S>);
    for (int64_t p = begin; p < end; ++p) {
      panel.pack(product.b, product.depth, product.first_column(p), product.panel_columns(p));
      for (int64_t b = 0; b < blocks.count; ++b) {
        panel.multiply(product.a.from_row(blocks.first(b)), blocks.size(b), false, sums.data());
        finish(Block<S>{blocks.first(b), blocks.size(b), product.first_column(p),
                        product.panel_columns(p), sums.data()});
      }
      done(product.first_column(p), product.panel_columns(p));
    }
  });
}

// What a layer multiplies its units by: `scale` where bit `layer` of their bytes lets them pass,
// else 0. The loops over columns have no branches, so that they become SIMD.
template <class S>
void read_factors(const uint8_t* __restrict passes, int layer, int64_t columns, S scale,
                  S* __restrict factors) {
  for (int64_t c = 0; c < columns; ++c) {
    factors[c] = scale * static_cast<S>(passes[c] >> layer & 1);
  }
}

// 0 for a unit that does not pass, whatever it holds.
template <class S>
ERD_HD S pass(S factor, S value) {
  return factor > S(0) ? factor * value : S(0);
}

// Takes the bit away from the units whose ReLU is closed. NaN is not <= 0: it stays visible, as in
// torch's ReLU.
template <class S>
void close_units(const S* __restrict values, int layer, int64_t columns,
                 uint8_t* __restrict passes) {
  const uint8_t bit = static_cast<uint8_t>(1 << layer);
  for (int64_t c = 0; c < columns; ++c) {
    const uint8_t closed = values[c] <= S(0) ? bit : uint8_t{0};
    passes[c] = static_cast<uint8_t>(passes[c] & ~closed);
  }
}

// Sums over rows of very many numbers: in S within a group of rows, in double across groups.
constexpr int64_t kSumRows = 64;

template <class S>
class ColumnSums {
 public:
  ColumnSums() = default;

  // Row after row; `part` receives the addends of one row by column.
  template <class Addend>
  void add(int64_t rows, int64_t columns, const Addend& addend) {
    for (int64_t first = 0; first < rows; first += kSumRows) {
      S part[kPanelColumns<S>] = {};
      const int64_t end = rows - first < kSumRows ? rows : first + kSumRows;
      for (int64_t i = first; i < end; ++i) {
        for (int64_t c = 0; c < columns; ++c) part[c] += addend(i, c);
      }
      for (int64_t c = 0; c < columns; ++c) total[c] += part[c];
    }
  }

  double total[kPanelColumns<S>] = {};
};

ERD_NAMESPACE_END
