// CUDA's small vectors, with the alignment that makes the GPU move each in one access.
#pragma once

#include <cstdint>

#define ERD_VECTOR_TYPES(scalar, name)                                                         \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                 \
  struct alignas(sizeof(scalar) < 8 ? 4 * sizeof(scalar) : 16) name##4 { scalar x, y, z, w; }; \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                         \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

ERD_VECTOR_TYPES(float, float)
ERD_VECTOR_TYPES(double, double)
ERD_VECTOR_TYPES(int, int)
ERD_VECTOR_TYPES(unsigned, uint)
#undef ERD_VECTOR_TYPES
