// Scratch memory of one thread, aligned for any vector register.
#pragma once

#include <cstddef>
#include <cstdint>
#include <forward_list>
#include <new>

#include "core/scalar.h"

ERD_NAMESPACE_BEGIN

constexpr std::size_t kScratchAlignment = 64;

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
  static constexpr std::align_val_t alignment() { return std::align_val_t{kScratchAlignment}; }
  T* data_;
};

// Buffers that live as long as this object, which belongs on the stack: the first ones are part of
// it. Asking the allocator for as much takes a tenth of the time in which a pose is refined.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* take(int64_t size) {
    const std::size_t lines =
        (static_cast<std::size_t>(size) * sizeof(T) + kScratchAlignment - 1) / kScratchAlignment;
    const std::size_t bytes = lines * kScratchAlignment;
    if (bytes > sizeof near_ - used_) {
      return reinterpret_cast<T*>(far_.emplace_front(static_cast<int64_t>(bytes)).data());
    }
    char* const place = near_ + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(place);
  }

 private:
  alignas(kScratchAlignment) char near_[32 * 1024];
  std::size_t used_ = 0;
  std::forward_list<AlignedBuffer<char>> far_;
};

ERD_NAMESPACE_END
