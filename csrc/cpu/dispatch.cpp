// Chooses the instruction set once, when the first kernel runs. Compiled without any of the
// variants' flags.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"

#if defined(ERD_HAVE_NEON_BF16)
#include <sys/auxv.h>
#endif

namespace erd {

namespace {

// Weights that came without their form for bf16 are multiplied as they are.
template <RefineKernel Native, RefineKernel Bf16>
void refine(const RefineCall& call, ParallelFor parallel_for) {
  const bool has_pairs = call.fragments != nullptr && call.fragment_biases == nullptr;
  (call.precision == Precision::bf16 && has_pairs ? Bf16 : Native)(call, parallel_for);
}

}  // namespace

// A variant, and the one whose geometry it takes: itself, or its own for shorter vectors.
#define ERD_DECLARE_VARIANT(arch, geometry_arch)                          \
  namespace geometry_arch {                                               \
  void run_geometry(const GeometryCall&, ParallelFor);                    \
  }                                                                       \
  namespace arch {                                                        \
  void run_refine(const RefineCall&, ParallelFor);                        \
  void run_refine_bf16(const RefineCall&, ParallelFor);                   \
  void run_regressor_forward(const RegressorForwardCall&, ParallelFor);   \
  void run_regressor_backward(const RegressorBackwardCall&, ParallelFor); \
  int64_t run_multiply_adds(int64_t steps, int64_t tasks, ParallelFor);   \
  void run_regressor_step(const RegressorStepCall&, ParallelFor);         \
  int64_t regressor_step_workspace(const RegressorShape&);                \
  constexpr CpuKernels kernels{#arch,                                     \
                               geometry_arch::run_geometry,               \
                               refine<run_refine, run_refine_bf16>,       \
                               run_regressor_forward,                     \
                               run_regressor_backward,                    \
                               run_multiply_adds,                         \
                               run_regressor_step,                        \
                               regressor_step_workspace};                 \
  }

// A variant that has only the refiner's bf16 products of its own and is another one otherwise.
#define ERD_DECLARE_BF16_VARIANT(arch, base)                    \
  namespace arch {                                              \
  void run_refine_bf16(const RefineCall&, ParallelFor);         \
  constexpr CpuKernels with_bf16(CpuKernels kernels) {          \
    kernels.name = #arch;                                       \
    kernels.refine = refine<base::run_refine, run_refine_bf16>; \
    return kernels;                                             \
  }                                                             \
  constexpr CpuKernels kernels = with_bf16(base::kernels);      \
  }

ERD_DECLARE_VARIANT(portable, portable)
#if defined(ERD_HAVE_AVX2)
ERD_DECLARE_VARIANT(avx2, avx2)
#endif
#if defined(ERD_HAVE_AVX512)
ERD_DECLARE_VARIANT(avx512, avx512_by_256_bits)
#endif
#if defined(ERD_HAVE_AVX512_BF16)
ERD_DECLARE_BF16_VARIANT(avx512_bf16, avx512)
#endif
#if defined(ERD_HAVE_NEON_BF16)
ERD_DECLARE_BF16_VARIANT(neon_bf16, portable)
#endif

namespace {

// The variants that this processor can run, best first.
std::vector<CpuKernels> runnable() {
  std::vector<CpuKernels> variants;
#if defined(ERD_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
#if defined(ERD_HAVE_AVX512_BF16)
    if (__builtin_cpu_supports("avx512bf16")) variants.push_back(avx512_bf16::kernels);
#endif
    variants.push_back(avx512::kernels);
  }
#endif
#if defined(ERD_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")) {
    variants.push_back(avx2::kernels);
  }
#endif
#if defined(ERD_HAVE_NEON_BF16)
  constexpr unsigned long kBf16 = 1UL << 14;  // HWCAP2_BF16, which older headers do not name
  if (getauxval(AT_HWCAP2) & kBf16) variants.push_back(neon_bf16::kernels);
#endif
  variants.push_back(portable::kernels);
  return variants;
}

// ERD_CPU_CAPABILITY names a lesser variant than the best: tests run them all on one machine, and a
// user can rule one out.
CpuKernels choose() {
  const std::vector<CpuKernels> variants = runnable();
  const char* wanted = std::getenv("ERD_CPU_CAPABILITY");
  if (wanted == nullptr) return variants.front();
  std::string names;
  for (const CpuKernels& variant : variants) {
    if (std::strcmp(variant.name, wanted) == 0) return variant;
    names += std::string(names.empty() ? "" : ", ") + variant.name;
  }
  throw std::runtime_error(
      std::string("ERD_CPU_CAPABILITY is '") + wanted +
      "', expected one that this library holds and this processor runs: " + names);
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = choose();
  return kernels;
}

}  // namespace erd
