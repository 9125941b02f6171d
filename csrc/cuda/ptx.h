// The device side of device.h: inline PTX behind plain functions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/portability.h"

#define ERD_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define ERD_CONSTANT const __grid_constant__

ERD_NAMESPACE_BEGIN

// The block's dynamic shared memory. Every thread takes the same pieces in the same order; the
// sizes add up to what the launch asked for, each rounded up to 16 bytes.
class SharedMemory {
 public:
  ERD_DEVICE SharedMemory() {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    next_ = shared_bytes;
  }
  template <class T>
  ERD_DEVICE T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return piece;
  }

 private:
  unsigned char* next_;
};

ERD_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Bytes is 4, 8 or 16, both addresses are aligned to it. With valid == false the destination is
// filled with zeros and the source is not touched. Before sm_80 the copy is an ordinary one.
template <int Bytes>
ERD_DEVICE void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  const int size = valid ? Bytes : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
               "l"(global), "n"(Bytes), "r"(size)
               : "memory");
#else
  uint32_t* target = static_cast<uint32_t*>(shared);
  const uint32_t* source = static_cast<const uint32_t*>(global);
#pragma unroll
  for (int i = 0; i < Bytes / 4; ++i) target[i] = valid ? source[i] : 0u;
#endif
}

ERD_DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most Pending of this thread's latest groups are unfinished. Other threads see the
// data after the next barrier.
template <int Pending>
ERD_DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

// Two 16-bit numbers in one register, the first in the low half. Values beyond fp16's range become
// its largest number, NaN stays NaN.
struct Fp16 {
  static ERD_DEVICE float clamp(float x) {
    x = x > 65504.0f ? 65504.0f : x;
    return x < -65504.0f ? -65504.0f : x;
  }
  static ERD_DEVICE uint32_t pack(float first, float second) {
#if __CUDA_ARCH__ >= 800
    uint32_t packed;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(first), "f"(second));
    return packed;
#else
    const __half2 packed = __floats2half2_rn(clamp(first), clamp(second));
    return *reinterpret_cast<const uint32_t*>(&packed);
#endif
  }
  // pack of max(x, 0); NaN stays NaN.
  static ERD_DEVICE uint32_t pack_relu(float first, float second) {
    uint32_t packed = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.relu.satfinite.f16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(first), "f"(second));
#endif
    return packed;
  }
  static ERD_DEVICE float2 unpack(uint32_t packed) {
    return __half22float2(*reinterpret_cast<const __half2*>(&packed));
  }
};

struct Bf16 {
  static ERD_DEVICE uint32_t pack(float first, float second) {
    const __nv_bfloat162 packed = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&packed);
  }
  static ERD_DEVICE uint32_t pack_relu(float first, float second) {
    uint32_t packed = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.relu.bf16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(first), "f"(second));
#endif
    return packed;
  }
  static ERD_DEVICE float2 unpack(uint32_t packed) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&packed));
  }
};

// D += A B on one warp's tensor core: A 16 x 16, B 16 x 8, D 16 x 8. With group g = lane / 4 and
// t = lane % 4, registers hold two neighbours each:
//   a[0] A[g][2t, 2t+1]   a[1] A[g+8][2t, 2t+1]   a[2] A[g][2t+8, 2t+9]   a[3] A[g+8][2t+8, 2t+9]
//   b[0] B[2t, 2t+1][g]   b[1] B[2t+8, 2t+9][g]
//   d[0], d[1] D[g][2t, 2t+1]                     d[2], d[3] D[g+8][2t, 2t+1]
// sm_80 and up.
template <class Number>
ERD_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
// The same with K = 8: A[.][2t, 2t+1] and B[2t, 2t+1][g] only.
template <class Number>
ERD_DEVICE void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b);

#if __CUDA_ARCH__ >= 800 || !defined(__CUDA_ARCH__)
#define ERD_MMA(number, type)                                                                    \
  template <>                                                                                    \
  ERD_DEVICE void mma<number>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                          \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"          \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                \
  }                                                                                              \
  template <>                                                                                    \
  ERD_DEVICE void mma_k8<number>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {          \
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." type "." type                           \
                 ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                      \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                \
                 : "r"(a0), "r"(a1), "r"(b));                                                    \
  }
ERD_MMA(Fp16, "f16")
ERD_MMA(Bf16, "bf16")
#undef ERD_MMA
#endif

// Four 8 x 8 matrices of 16-bit numbers from shared memory: lane l gives the address of row l % 8
// of matrix l / 8 (16 bytes, aligned) and receives r[i] = matrix i [l / 4][2 (l % 4), +1].
ERD_DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

ERD_NAMESPACE_END
