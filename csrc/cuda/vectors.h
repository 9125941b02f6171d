// Neighbouring numbers that move together, up to 16 bytes an access.
#pragma once

#include "cuda/device.h"

ERD_NAMESPACE_BEGIN

template <class T>
struct alignas(16) Four {
  T v[4];
};
template <class T>
struct alignas(2 * sizeof(T)) Two {
  T v[2];
};

// The numbers from here on, which are aligned as the type is.
template <class T>
ERD_DEVICE const Four<T>& as_four(const T* first) {
  return *reinterpret_cast<const Four<T>*>(first);
}
template <class T>
ERD_DEVICE const Two<T>& as_two(const T* first) {
  return *reinterpret_cast<const Two<T>*>(first);
}

ERD_NAMESPACE_END
