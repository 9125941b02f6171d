// Makes one header serve three compilers' views of it: nvcc (host and device), and g++ or clang
// once per CPU instruction set.
#pragma once

#if defined(__CUDACC__)
#define ERD_HD __host__ __device__ __forceinline__
#elif defined(ERD_EMULATION)
// The test bench has no use for speed, and all the more for short builds.
#define ERD_HD inline
#else
#define ERD_HD inline __attribute__((always_inline))
#endif

// In front of a loop whose body is long and whose speed does not matter on a GPU.
#if defined(__CUDA_ARCH__)
#define ERD_ROLLED _Pragma("unroll 1")
#else
#define ERD_ROLLED
#endif

// The CPU kernels are compiled several times into one library, each time for another instruction
// set. Everything they instantiate lives in a namespace of that instruction set's name, so that the
// linker can never merge an AVX-512 copy of a function into the code that runs on an older
// processor.
#if !defined(ERD_ARCH)
#define ERD_ARCH portable
#endif

#define ERD_NAMESPACE_BEGIN \
  namespace erd {           \
  inline namespace ERD_ARCH {
#define ERD_NAMESPACE_END \
  }                       \
  }
