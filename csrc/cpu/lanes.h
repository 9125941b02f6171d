// Moves samples between memory, where one sample's elements are contiguous, and SIMD registers,
// where one lane holds one sample. A block of samples is transposed once, then every formula runs
// lane by lane with no arithmetic across lanes: a sample's result does not depend on its
// neighbours, bit for bit.
#pragma once

#include <cstddef>
#include <new>

#include "core/dual.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

ERD_NAMESPACE_BEGIN

// Scratch memory of one thread, aligned for any vector register.
template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t size)
      : data_(static_cast<T*>(
            ::operator new(static_cast<std::size_t>(size) * sizeof(T), alignment()))) {}
  ~AlignedBuffer() { ::operator delete(data_, alignment()); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  static constexpr std::align_val_t alignment() { return std::align_val_t{64}; }
  T* data_;
};

// Elements [width] of `count` samples from `first` on into lanes: element e of lane l lands at
// target[e * pitch + l]. Lanes past `count` repeat the last sample, so that they stay harmless.
template <class S>
ERD_HD void load_lanes(const Rows& rows, int64_t first, int64_t count, int64_t lanes, int64_t width,
                       int64_t pitch, S* target) {
  const S* base = static_cast<const S*>(rows.data) + first * rows.stride;
  for (int64_t l = 0; l < lanes; ++l) {
    const S* row = base + (l < count ? l : count - 1) * rows.stride;
    for (int64_t e = 0; e < width; e += rows.channels, row += rows.joint_stride) {
      for (int64_t c = 0; c < rows.channels; ++c) {
        target[(e + c) * pitch + l] = row[c * rows.channel_stride];
      }
    }
  }
}

// The inverse, to rows that lie one after another.
template <class S>
ERD_HD void store_lanes(const S* source, int64_t first, int64_t count, int64_t width, int64_t pitch,
                        void* target) {
  S* base = static_cast<S*>(target) + first * width;
  for (int64_t l = 0; l < count; ++l) {
    for (int64_t e = 0; e < width; ++e) base[l * width + e] = source[e * pitch + l];
  }
}

template <class S>
ERD_HD void fill_lanes(S value, int64_t lanes, int64_t width, int64_t pitch, S* target) {
  for (int64_t e = 0; e < width; ++e) {
    for (int64_t l = 0; l < lanes; ++l) target[e * pitch + l] = value;
  }
}

ERD_NAMESPACE_END
