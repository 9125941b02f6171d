// How the work on a batch is spread over threads, and vectors of neighbouring columns: their
// numbers, which of them pass a layer, their sums over the batch.
#pragma once

#include <atomic>

#include "core/dropout.h"
#include "cpu/panel_product.h"

ERD_NAMESPACE_BEGIN

// Calls body(begin, end) on ranges that cover [0, count), at least `grain` long but for the last.
// Threads fetch them as they finish, large ones first: some run slower than others on a machine
// that is not theirs alone.
template <class Body>
void parallel(ParallelFor threads, int64_t count, int64_t grain, const Body& body) {
  struct Work {
    const Body& body;
    const int64_t count, grain;
    std::atomic<int64_t> next{0};
  } work{body, count, grain};
  threads.run(
      count, grain,
      [](void* context, int64_t first, int64_t last) {
        Work& work = *static_cast<Work*>(context);
        const int64_t workers = (work.count + last - first - 1) / (last - first);
        int64_t begin = work.next.load(std::memory_order_relaxed);
        while (begin < work.count) {
          const int64_t left = work.count - begin;
          const int64_t share = workers == 1 ? left : left / (2 * workers);
          int64_t end = begin + (share > work.grain ? share : work.grain);
          if (end > work.count) end = work.count;
          if (!work.next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
          work.body(begin, end);
          begin = work.next.load(std::memory_order_relaxed);
        }
      },
      &work);
}

// Rows that a thread takes through all layers at a time: few enough to stay in the cache, and for
// the results of a panel to lie on the stack.
constexpr int64_t kBlockRows = 17 * kTileRows;
// Fewer tiles than these are not worth fetching.
constexpr int64_t kThreadTiles = 3;

// body(first, count) on blocks of rows that cover [0, rows).
template <class Body>
void for_each_row_block(ParallelFor threads, int64_t rows, const Body& body) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  parallel(threads, tiles, kThreadTiles, [&](int64_t begin, int64_t end) {
    const int64_t blocks = ((end - begin) * kTileRows + kBlockRows - 1) / kBlockRows;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = (begin + (end - begin) * b / blocks) * kTileRows;
      const int64_t last = (begin + (end - begin) * (b + 1) / blocks) * kTileRows;
      body(first, (last < rows ? last : rows) - first);
    }
  });
}

template <class S>
using Vector = typename Simd<S>::Native;
template <class S>
using VectorMask = typename SimdMask<S>::Native;

// How many of a vector's columns exist: all of them, or fewer at the matrix's right edge.
template <class S>
struct Whole {};
struct Part {
  int64_t columns;
};

// body(column, Whole or Part) for every vector of a panel.
template <class S, class Body>
ERD_HD void for_each_vector(int64_t columns, const Body& body) {
  if (columns == kPanelColumns<S>) {
    for (int64_t c = 0; c < kPanelColumns<S>; c += kLanes<S>) body(c, Whole<S>{});
  } else {
    for (int64_t c = 0; c < columns; c += kLanes<S>) {
      body(c, Part{columns - c < kLanes<S> ? columns - c : kLanes<S>});
    }
  }
}

template <class S>
ERD_HD Vector<S> load(const S* source, Whole<S> = {}) {
  Vector<S> v;
  __builtin_memcpy(&v, source, sizeof v);
  return v;
}
template <class S>
ERD_HD Vector<S> load(const S* source, Part part) {
  Vector<S> v = {};
  for (int64_t c = 0; c < part.columns; ++c) v[c] = source[c];
  return v;
}
template <class S>
ERD_HD void store(Vector<S> v, S* target, Whole<S> = {}) {
  __builtin_memcpy(target, &v, sizeof v);
}
template <class S>
ERD_HD void store(Vector<S> v, S* target, Part part) {
  for (int64_t c = 0; c < part.columns; ++c) target[c] = v[c];
}

// The bytes that say which layers neighbouring units pass, core/dropout.h, one in each lane.
template <class S>
struct Passes {
  VectorMask<S> bytes;

  VectorMask<S> layer(int l) const { return (bytes & (1 << l)) != 0; }
  // Takes the layer's bit from units of the mask.
  void close(int l, VectorMask<S> mask) { bytes &= ~(mask & (1 << l)); }
};

template <class S>
struct PassBytes {
  typedef uint8_t Native __attribute__((vector_size(kLanes<S>)));
};

template <class S>
ERD_HD Passes<S> load_passes(const uint8_t* source, Whole<S>) {
  typename PassBytes<S>::Native bytes;
  __builtin_memcpy(&bytes, source, sizeof bytes);
  return {__builtin_convertvector(bytes, VectorMask<S>)};
}
template <class S>
ERD_HD Passes<S> load_passes(const uint8_t* source, Part part) {
  Passes<S> passes = {};
  for (int64_t c = 0; c < part.columns; ++c) passes.bytes[c] = source[c];
  return passes;
}
template <class S>
ERD_HD void store_passes(Passes<S> passes, uint8_t* target, Whole<S>) {
  using Bytes = typename PassBytes<S>::Native;
  const Bytes bytes = __builtin_convertvector(passes.bytes, Bytes);
  __builtin_memcpy(target, &bytes, sizeof bytes);
}
template <class S>
ERD_HD void store_passes(Passes<S> passes, uint8_t* target, Part part) {
  for (int64_t c = 0; c < part.columns; ++c) target[c] = static_cast<uint8_t>(passes.bytes[c]);
}

// 0 for a unit that does not pass, whatever it holds.
template <class S>
ERD_HD Vector<S> pass(VectorMask<S> mask, Vector<S> value, S scale) {
  return mask ? scale * value : Vector<S>{};
}

// Sums over rows of very many numbers: in S within a group of rows, in double across groups.
constexpr int64_t kSumRows = 64;

template <class S>
struct ColumnSum {
  double total[kLanes<S>] = {};

  // addend(row) is a vector of columns.
  template <class Addend>
  void add(int64_t rows, const Addend& addend) {
    for (int64_t first = 0; first < rows; first += kSumRows) {
      Vector<S> part = {};
      const int64_t end = rows - first < kSumRows ? rows : first + kSumRows;
      for (int64_t i = first; i < end; ++i) part += addend(i);
      for (int l = 0; l < kLanes<S>; ++l) total[l] += part[l];
    }
  }
  Vector<S> rounded() const {
    Vector<S> sum;
    for (int l = 0; l < kLanes<S>; ++l) sum[l] = static_cast<S>(total[l]);
    return sum;
  }
};

ERD_NAMESPACE_END
