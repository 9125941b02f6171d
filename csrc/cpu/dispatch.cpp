// Chooses the instruction set once, when the first kernel runs. Compiled without any of the
// variants' flags.
#include "cpu/kernels.h"

namespace erd {

#define ERD_DECLARE_VARIANT(arch)                      \
  namespace arch {                                     \
  void run_geometry(const GeometryCall&, ParallelFor); \
  void run_refine(const RefineCall&, ParallelFor);     \
  }

ERD_DECLARE_VARIANT(portable)
#if defined(ERD_HAVE_AVX2)
ERD_DECLARE_VARIANT(avx2)
#endif
#if defined(ERD_HAVE_AVX512)
ERD_DECLARE_VARIANT(avx512)
#endif

namespace {

CpuKernels choose() {
#if defined(ERD_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return {"avx512", avx512::run_geometry, avx512::run_refine};
  }
#endif
#if defined(ERD_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2")) {
    return {"avx2", avx2::run_geometry, avx2::run_refine};
  }
#endif
  return {"portable", portable::run_geometry, portable::run_refine};
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = choose();
  return kernels;
}

}  // namespace erd
