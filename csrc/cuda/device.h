// The one door between the kernels and the machine that runs them.
//
// Kernels include this header and no CUDA header. Under nvcc it is PTX (ptx.h); under g++ it is the
// emulator of tests/cuda_emulation, which runs the same kernel sources on a CPU, thread by thread.
// So a kernel uses, besides threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp and
// the __*_sync shuffles and votes, only what stands here:
//
//   ERD_KERNEL(threads, blocks)  in place of `__global__ __launch_bounds__(threads, blocks) void`
//   ERD_CONSTANT                 in front of a kernel's parameter that is indexed by a number known
//                                at run time only: it stays where the launch put it
//   ERD_DEVICE                   in place of `__device__ __forceinline__`
//   SharedMemory                 hands out the block's dynamic shared memory, piece by piece
//   copy_async, ...              cp.async: global to shared memory, no register in between
//   mma, mma_k8, ldmatrix        tensor cores, fp16 and bf16
//   pack, unpack                 two 16-bit numbers in one register
//
// and in files *_sm90a.cu, for Hopper only, what ptx_hopper.h describes:
//
//   transfer_*, bulk_copy        copies to shared memory that a barrier there waits for
//   wgmma, wgmma_*               products of four warps, B in shared memory
#pragma once

#define ERD_DEVICE __device__ __forceinline__

#if defined(__CUDACC__)
#include "cuda/ptx.h"
#include "cuda/ptx_hopper.h"
#else
#include "cuda_emulation/emulator.h"
#include "cuda_emulation/hopper.h"
#endif
