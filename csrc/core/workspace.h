// Memory that a caller lends to a kernel, in pieces.
#pragma once

#include <cstdint>

#include "core/portability.h"

ERD_NAMESPACE_BEGIN

// Cuts a call's workspace into arrays; without a workspace it only measures what they need.
class WorkspaceCutter {
 public:
  explicit WorkspaceCutter(void* workspace) : begin_(static_cast<char*>(workspace)) {}

  template <class T>
  T* take(int64_t count) {
    T* const here = begin_ == nullptr ? nullptr : reinterpret_cast<T*>(begin_ + size_);
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return here;
  }
  int64_t size() const { return size_; }

 private:
  char* begin_;
  int64_t size_ = 0;
};

ERD_NAMESPACE_END
