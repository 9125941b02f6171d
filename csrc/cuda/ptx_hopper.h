// What Hopper adds, behind plain functions: products of whole warpgroups, bulk copies that report
// to a barrier in shared memory. Included by device.h; for files *_sm90a.cu only, which no other
// GPU compiles.
//
// A warpgroup is four warps of a block, aligned to 128 threads, that run the same instructions.
#pragma once

#include "cuda/ptx.h"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

ERD_NAMESPACE_BEGIN

// ---- barriers that count arrivals and bytes -----------------------------------------------------

// In shared memory. A phase ends when `arrivals` threads have arrived and all expected bytes have
// come. Phases are numbered by their parity, the first is 0.
struct alignas(8) TransferBarrier {
  uint64_t state;
};

// One thread; a __syncthreads comes before anyone uses it.
ERD_DEVICE void transfer_init(TransferBarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
  // The copy engine sees the barrier too.
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and lets the phase wait for this many bytes more.
ERD_DEVICE void transfer_expect(TransferBarrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Waits for the end of the phase of this parity. Then its bytes are there for this thread.
ERD_DEVICE void transfer_wait(TransferBarrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Copies `bytes` of global memory; both addresses and the size are multiples of 16. The barrier of
// the same block counts the bytes. One thread issues it.
ERD_DEVICE void bulk_copy(void* shared, const void* global, int bytes, TransferBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// ---- products of a warpgroup --------------------------------------------------------------------

// B [16, N] of 16-bit numbers in shared memory, as 8 x 8 blocks of 128 bytes: block (k / 8, n / 8)
// lies (k / 8) * along_k + (n / 8) * along_n bytes after the first, multiples of 16; in it, eight
// rows of 16 bytes: row n % 8 holds the eight numbers k % 8. Aligned to 16 bytes. It comes from
// bulk_copy: products need not see what threads have stored there themselves.
struct MatrixDescriptor {
  uint64_t bits;
};

ERD_DEVICE MatrixDescriptor describe_matrix(const void* shared, int along_k, int along_n) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffffu) >> 4); };
  return {field(shared_address(shared)) | field(static_cast<uint32_t>(along_k)) << 16 |
          field(static_cast<uint32_t>(along_n)) << 32};
}

// The same for a matrix that lies `bytes` further on, a multiple of 16. Only the address changes,
// it never carries into the other fields.
ERD_DEVICE MatrixDescriptor advanced(MatrixDescriptor matrix, int bytes) {
  const uint32_t low = static_cast<uint32_t>(matrix.bits) + static_cast<uint32_t>(bytes >> 4);
  return {(matrix.bits >> 32 << 32) | low};
}

// Comes before the first product, and before one whose registers were used otherwise since.
ERD_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ERD_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most Pending of the latest groups are unfinished. `d` are accumulators that may be read
// afterwards: naming them keeps the compiler from reading them before.
template <int Pending, int Count>
ERD_DEVICE void wgmma_wait(float (&d)[Count]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The operands of a later product have been computed when the program comes here: the compiler
// would put that off beyond the next wait.
template <int Steps>
ERD_DEVICE void complete(uint32_t (&a)[Steps][4]) {
#pragma unroll
  for (int i = 0; i < 4 * Steps; ++i) asm volatile("" : "+r"(a[i / 4][i % 4]));
}

// D = A B, or D += A B, for the 64 rows of a warpgroup: warp w has rows 16 w to 16 w + 15, A in
// registers like mma's (ptx.h). N is 48, 56 or 64. d[4 i] to d[4 i + 3] are mma's d of columns 8 i
// to 8 i + 7. Runs on while the threads go on: nobody touches d and A before wgmma_wait.
template <class Number, int N>
ERD_DEVICE void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], MatrixDescriptor b,
                      bool accumulate);

// The names of the first 24, 28 and 32 registers, and the sums that are in them.
#define ERD_NAMES_24                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23"
#define ERD_NAMES_28 ERD_NAMES_24 ", %24, %25, %26, %27"
#define ERD_NAMES_32 ERD_NAMES_28 ", %28, %29, %30, %31"
#define ERD_SUMS_AT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ERD_SUMS_24 \
  ERD_SUMS_AT(0), ERD_SUMS_AT(4), ERD_SUMS_AT(8), ERD_SUMS_AT(12), ERD_SUMS_AT(16), ERD_SUMS_AT(20)
#define ERD_SUMS_28 ERD_SUMS_24, ERD_SUMS_AT(24)
#define ERD_SUMS_32 ERD_SUMS_28, ERD_SUMS_AT(28)

// `sums` is N / 2; a0 to b and `more` are the registers after them.
#define ERD_WGMMA(number, type, n, sums, a0, a1, a2, a3, b_name, more)                             \
  template <>                                                                                      \
  ERD_DEVICE void wgmma<number, n>(float (&d)[sums], const uint32_t (&a)[4], MatrixDescriptor b,   \
                                   bool accumulate) {                                              \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, " more                                    \
                 ", 0;\n"                                                                          \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                   \
                 " {" ERD_NAMES_##sums "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b_name              \
                                       ", adds, 1, 1, 0;\n}"                                       \
                 : ERD_SUMS_##sums                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits), "r"(int{accumulate})); \
  }
#define ERD_WGMMA_BOTH(n, sums, a0, a1, a2, a3, b, more)   \
  ERD_WGMMA(Fp16, "f16", n, sums, a0, a1, a2, a3, b, more) \
  ERD_WGMMA(Bf16, "bf16", n, sums, a0, a1, a2, a3, b, more)
ERD_WGMMA_BOTH(48, 24, "%24", "%25", "%26", "%27", "%28", "%29")
ERD_WGMMA_BOTH(56, 28, "%28", "%29", "%30", "%31", "%32", "%33")
ERD_WGMMA_BOTH(64, 32, "%32", "%33", "%34", "%35", "%36", "%37")
#undef ERD_WGMMA_BOTH
#undef ERD_WGMMA
#undef ERD_SUMS_32
#undef ERD_SUMS_28
#undef ERD_SUMS_24
#undef ERD_SUMS_AT
#undef ERD_NAMES_32
#undef ERD_NAMES_28
#undef ERD_NAMES_24

ERD_NAMESPACE_END

#endif
