// The host side of csrc/cuda/device.h: everything a kernel may use, for g++. The same kernel
// sources that nvcc compiles run here thread by thread, under any sanitizer, with every access
// checked that the hardware would take on trust.
//
// What deviates from a GPU on purpose, so that mistakes show: shared memory starts as NaN, with
// gaps between the pieces; what an asynchronous operation writes is NaN until it is waited for;
// threads run in a random order; all threads of a block must come to the same barrier.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/portability.h"
#include "cuda_emulation/runtime.h"
#include "cuda_emulation/vector_types.h"

#define __device__
#define __host__
#define __global__
#if defined(ERD_EMULATION)
#define __forceinline__ inline  // see core/portability.h
#else
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define ERD_KERNEL(threads, blocks) void
#define ERD_CONSTANT const

#define threadIdx (::erd::emulation::thread_index())
#define blockIdx (::erd::emulation::block_index())
#define blockDim (::erd::emulation::block_size())
#define gridDim (::erd::emulation::grid_size())

// ---- barriers, shuffles, votes ------------------------------------------------------------------

inline void __syncthreads(erd::emulation::Location where = erd::emulation::Location::here()) {
  erd::emulation::block_barrier("__syncthreads", where);
}

void __syncwarp(unsigned mask = 0xffffffffu,
                erd::emulation::Location where = erd::emulation::Location::here());

namespace erd::emulation {

// The bits of one lane's value, given and received.
uint64_t shuffle(const char* what, Location where, uint32_t mask, uint64_t bits, int source);
uint32_t ballot(const char* what, Location where, uint32_t mask, bool vote);

template <class T>
T shuffle_value(const char* what, Location where, uint32_t mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(what, where, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace erd::emulation

// Sources outside the segment of `width` lanes give a lane its own value back.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              erd::emulation::Location where = erd::emulation::Location::here()) {
  const int first = erd::emulation::lane() & ~(width - 1);
  return erd::emulation::shuffle_value("__shfl_sync", where, mask, value,
                                       first | (source & (width - 1)));
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 erd::emulation::Location where = erd::emulation::Location::here()) {
  const int lane = erd::emulation::lane(), source = lane - static_cast<int>(distance);
  return erd::emulation::shuffle_value("__shfl_up_sync", where, mask, value,
                                       source < (lane & ~(width - 1)) ? lane : source);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   erd::emulation::Location where = erd::emulation::Location::here()) {
  const int lane = erd::emulation::lane(), source = lane + static_cast<int>(distance);
  return erd::emulation::shuffle_value("__shfl_down_sync", where, mask, value,
                                       source > (lane | (width - 1)) ? lane : source);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  erd::emulation::Location where = erd::emulation::Location::here()) {
  const int lane = erd::emulation::lane(), source = lane ^ lanes;
  return erd::emulation::shuffle_value("__shfl_xor_sync", where, mask, value,
                                       source > (lane | (width - 1)) ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int vote,
                              erd::emulation::Location where = erd::emulation::Location::here()) {
  return erd::emulation::ballot("__ballot_sync", where, mask, vote != 0);
}

inline int __any_sync(unsigned mask, int vote,
                      erd::emulation::Location where = erd::emulation::Location::here()) {
  return erd::emulation::ballot("__any_sync", where, mask, vote != 0) != 0;
}

inline int __all_sync(unsigned mask, int vote,
                      erd::emulation::Location where = erd::emulation::Location::here()) {
  return erd::emulation::ballot("__all_sync", where, mask, vote != 0) == mask;
}

template <class T>
T __ldg(const T* global, erd::emulation::Location where = erd::emulation::Location::here()) {
  erd::emulation::check_aligned("__ldg", where, global, alignof(T));
  return *global;
}

ERD_NAMESPACE_BEGIN

// ---- memory -------------------------------------------------------------------------------------

class SharedMemory {
 public:
  template <class T>
  T* take(int64_t count, emulation::Location where = emulation::Location::here()) {
    return static_cast<T*>(
        emulation::shared_piece(next_++, count * static_cast<int64_t>(sizeof(T)), where));
  }

 private:
  int next_ = 0;
};

// Accesses through it may alias anything, and sanitizers see each of them.
typedef uint32_t __attribute__((may_alias)) AliasedWord;

template <int Bytes>
void copy_async(void* shared, const void* global, bool valid = true,
                emulation::Location where = emulation::Location::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  emulation::check_shared("copy_async", where, shared, Bytes, Bytes);
  emulation::AsyncCopy copy = {shared, {}, Bytes / 4, false};
  if (valid) {
    emulation::check_aligned("copy_async", where, global, Bytes);
    const auto* source = static_cast<const AliasedWord*>(global);
    for (int i = 0; i < Bytes / 4; ++i) copy.words[i] = source[i];
  }
  const bool at_once = emulation::compute_capability() < 80;
  auto* target = static_cast<AliasedWord*>(shared);
  for (int i = 0; i < Bytes / 4; ++i) target[i] = at_once ? copy.words[i] : 0xffffffffu;
  if (!at_once) emulation::async_issue(copy);
}

inline void copy_async_commit() { emulation::async_commit(); }

template <int Pending>
void copy_async_wait() {
  emulation::AsyncCopy copy;
  while (emulation::async_take(Pending, &copy)) {
    auto* target = static_cast<AliasedWord*>(copy.target);
    for (int i = 0; i < copy.count; ++i) target[i] = copy.words[i];
  }
}

// ---- 16-bit numbers and tensor cores ------------------------------------------------------------

struct Fp16 {
  static uint32_t pack(float first, float second);
  static uint32_t pack_relu(float first, float second,
                            emulation::Location where = emulation::Location::here());
  static float2 unpack(uint32_t packed);
};

struct Bf16 {
  static uint32_t pack(float first, float second);
  static uint32_t pack_relu(float first, float second,
                            emulation::Location where = emulation::Location::here());
  static float2 unpack(uint32_t packed);
};

// Defined for Fp16 and Bf16 in tensor_cores.cpp; registers as in csrc/cuda/ptx.h.
template <class Number>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         emulation::Location where = emulation::Location::here());
template <class Number>
void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b,
            emulation::Location where = emulation::Location::here());

// Passes the lanes' rows around: rows[i] is lane i's 16 bytes.
void distribute_matrices(emulation::Location where, const uint32_t (&row)[4], uint32_t (&r)[4]);

inline void ldmatrix(uint32_t (&r)[4], const void* row,
                     emulation::Location where = emulation::Location::here()) {
  emulation::check_shared("ldmatrix", where, row, 16, 16);
  const auto* words = static_cast<const AliasedWord*>(row);
  const uint32_t own[4] = {words[0], words[1], words[2], words[3]};
  distribute_matrices(where, own, r);
}

ERD_NAMESPACE_END
