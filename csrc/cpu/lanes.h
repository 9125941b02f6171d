// Moves samples between memory, where one sample's elements are contiguous, and SIMD registers,
// where one lane holds one sample. A block of samples is transposed once, then every formula runs
// lane by lane with no arithmetic across lanes: a sample's result does not depend on its
// neighbours, bit for bit.
#pragma once

#include <cstddef>
#include <new>
#include <utility>

#include "core/dual.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"

ERD_NAMESPACE_BEGIN

// Whether a sample's elements lie one after another.
ERD_HD bool is_dense(const Rows& rows) {
  return rows.channels == 1 ? rows.joint_stride == 1
                            : rows.channel_stride == 1 && rows.joint_stride == rows.channels;
}

// Elements [width] of one sample, one after another.
template <class S>
ERD_HD void load_row(const Rows& rows, int64_t sample, int64_t width, S* target) {
  const S* row = static_cast<const S*>(rows.data) + sample * rows.stride;
  for (int64_t e = 0; e < width; e += rows.channels, row += rows.joint_stride) {
    for (int64_t c = 0; c < rows.channels; ++c) target[e + c] = row[c * rows.channel_stride];
  }
}

// One element of each lane's sample. The vector is put together in a register: numbers stored one
// by one could not be read back as a vector until all of them have left for the cache.
template <class S, std::size_t... L>
ERD_HD NativeOf<S> gather(const S* const* sample, int64_t offset, std::index_sequence<L...>) {
  return NativeOf<S>{sample[L][offset]...};
}

// Elements [width] of `count` samples from `first` on into one vector of lanes: element e of lane l
// lands at target[e * pitch + l]. Lanes past `count` repeat the last sample, so that they stay
// harmless.
template <class S>
ERD_HD void load_vector(const Rows& rows, int64_t first, int64_t count, int64_t width,
                        int64_t pitch, S* target) {
  constexpr int kCount = kLanes<S>;
  if (count == 1 && is_dense(rows)) {
    const S* only = static_cast<const S*>(rows.data) + first * rows.stride;
    for (int64_t e = 0; e < width; ++e) {
      store_unaligned(NumberTraits<Simd<S>>::broadcast(only[e]).v, target + e * pitch);
    }
    return;
  }
  const S* sample[kCount];
  const S* next = static_cast<const S*>(rows.data) + first * rows.stride;
  for (int l = 0; l < kCount; ++l) {
    sample[l] = next;
    next += l + 1 < count ? rows.stride : 0;
  }
  if (is_dense(rows) && width >= kCount) {
    // The last square begins early enough to end with the row: some elements move twice.
    for (int64_t begin = 0; begin < width; begin += kCount) {
      const int64_t e = begin + kCount <= width ? begin : width - kCount;
      NativeOf<S> square[kCount];
      for (int l = 0; l < kCount; ++l) square[l] = load_unaligned(sample[l] + e);
      transpose<S>(square);
      for (int i = 0; i < kCount; ++i) store_unaligned(square[i], target + (e + i) * pitch);
    }
    return;
  }
  for (int64_t e = 0, joint = 0; e < width; e += rows.channels, joint += rows.joint_stride) {
    for (int64_t c = 0; c < rows.channels; ++c) {
      store_unaligned(
          gather<S>(sample, joint + c * rows.channel_stride, std::make_index_sequence<kCount>{}),
          target + (e + c) * pitch);
    }
  }
}

// Asks for samples that will be loaded soon.
template <class S>
ERD_HD void prefetch_rows(const Rows& rows, int64_t first, int64_t end, int64_t width) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S));
  if (rows.data == nullptr || rows.stride == 0 || !is_dense(rows)) return;
  const S* sample = static_cast<const S*>(rows.data) + first * rows.stride;
  for (int64_t i = first; i < end; ++i, sample += rows.stride) {
    for (int64_t e = 0; e < width; e += kLine) __builtin_prefetch(sample + e, 0, 2);
  }
}

// The same for any number of vectors, `lanes` lanes in all.
template <class S>
ERD_HD void load_lanes(const Rows& rows, int64_t first, int64_t count, int64_t lanes, int64_t width,
                       int64_t pitch, S* target) {
  for (int64_t l = 0; l < lanes; l += kLanes<S>) {
    const int64_t from = l < count ? l : count - 1;
    load_vector(rows, first + from, count - from, width, pitch, target + l);
  }
}

// The inverse, to rows that lie one after another.
template <class S>
ERD_HD void store_lanes(const S* source, int64_t first, int64_t count, int64_t width, int64_t pitch,
                        void* target) {
  constexpr int kCount = kLanes<S>;
  for (int64_t l = 0; l < count; l += kCount) {
    const int64_t filled = count - l < kCount ? count - l : kCount;
    S* rows = static_cast<S*>(target) + (first + l) * width;
    if (width < kCount) {
      for (int64_t i = 0; i < filled; ++i) {
        for (int64_t e = 0; e < width; ++e) rows[i * width + e] = source[e * pitch + l + i];
      }
      continue;
    }
    for (int64_t begin = 0; begin < width; begin += kCount) {
      const int64_t e = begin + kCount <= width ? begin : width - kCount;
      NativeOf<S> square[kCount];
      for (int i = 0; i < kCount; ++i) square[i] = load_unaligned(source + (e + i) * pitch + l);
      transpose<S>(square);
      for (int64_t i = 0; i < filled; ++i) store_unaligned(square[i], rows + i * width + e);
    }
  }
}

template <class S>
ERD_HD void fill_lanes(S value, int64_t lanes, int64_t width, int64_t pitch, S* target) {
  for (int64_t e = 0; e < width; ++e) {
    for (int64_t l = 0; l < lanes; ++l) target[e * pitch + l] = value;
  }
}

ERD_NAMESPACE_END
