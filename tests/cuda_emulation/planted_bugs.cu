// Small kernels with a mistake that can be switched on: proof that the bench finds what it is for,
// and that the same kernels without the mistake raise no alarm.
//
//   bugs_plain NAME clean|planted     NAME may be "all"
//
// Exit status 0: the right result. 3: a wrong one. 4: the emulator refused, its message is on
// stderr. Anything else comes from a sanitizer.
#include <cstdio>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <vector>

#include "cuda/launch.h"
#include "cuda_emulation/planted_bugs.h"

namespace {

using namespace erd;

constexpr int kThreads = 64;
constexpr unsigned kFullWarp = 0xffffffffu;

struct Problem {
  const float* in;
  float* out;
  int64_t count;
  bool mistake;
};

ERD_DEVICE int64_t global_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// ---- memory: AddressSanitizer, UndefinedBehaviorSanitizer ---------------------------------------

ERD_KERNEL(64, 1) read_past_the_tail(Problem p) {
  const int64_t i = global_thread();
  const float x = i < p.count || p.mistake ? p.in[i] : 0.0f;
  if (i < p.count) p.out[i] = x;
  if (x == -3.0f) p.out[0] = x;
}

ERD_KERNEL(64, 1) store_past_the_tail(Problem p) {
  const int64_t i = global_thread();
  if (i < p.count || p.mistake) p.out[i] = i < p.count ? p.in[i] : 0.0f;
}

ERD_KERNEL(64, 1) copy_past_the_tail(Problem p) {
  SharedMemory memory;
  float* tile = memory.take<float>(kThreads);
  const int64_t i = global_thread();
  copy_async<4>(tile + threadIdx.x, p.in + i, i < p.count || p.mistake);
  copy_async_commit();
  copy_async_wait<0>();
  if (i < p.count) p.out[i] = tile[threadIdx.x];
}

ERD_KERNEL(64, 1) overrun_shared_memory(Problem p) {
  SharedMemory memory;
  float* tile = memory.take<float>(kThreads - 1);
  float* other = memory.take<float>(kThreads);
  const int64_t i = global_thread();
  other[threadIdx.x] = 0.0f;
  if (threadIdx.x < kThreads - 1 || p.mistake) tile[threadIdx.x] = 1.0f;
  if (i < p.count) p.out[i] = p.in[i] + other[threadIdx.x];
}

ERD_KERNEL(64, 1) misaligned_vector(Problem p) {
  const int64_t i = 4 * global_thread();
  if (i + 5 > p.count) {
    for (int64_t j = i; j < p.count; ++j) p.out[j] = p.in[j];
    return;
  }
  const float4 x = *reinterpret_cast<const float4*>(p.in + i + (p.mistake ? 1 : 0));
  p.out[i] = x.x;
  p.out[i + 1] = x.y;
  p.out[i + 2] = x.z;
  p.out[i + 3] = x.w;
}

// ---- order: ThreadSanitizer ---------------------------------------------------------------------

ERD_KERNEL(64, 1) no_block_barrier(Problem p) {
  SharedMemory memory;
  float* tile = memory.take<float>(kThreads);
  const int64_t first = int64_t{blockIdx.x} * kThreads, i = first + threadIdx.x;
  tile[threadIdx.x] = i < p.count ? p.in[i] : 0.0f;
  if (!p.mistake) __syncthreads();
  const int64_t mirrored = first + kThreads - 1 - threadIdx.x;
  if (mirrored < p.count) p.out[mirrored] = tile[kThreads - 1 - threadIdx.x];
}

ERD_KERNEL(64, 1) no_warp_barrier(Problem p) {
  SharedMemory memory;
  float* tile = memory.take<float>(kThreads);
  const int64_t i = global_thread();
  tile[threadIdx.x] = i < p.count ? p.in[i] : 0.0f;
  if (p.mistake) {
    // Brings the lanes together, but promises nothing about their stores.
    __any_sync(kFullWarp, 1);
  } else {
    __syncwarp();
  }
  if ((i ^ 1) < p.count) p.out[i ^ 1] = tile[threadIdx.x ^ 1];
}

// Two tiles through one buffer: the second may overwrite what a slow thread has still to read.
ERD_KERNEL(64, 1) buffer_reused_too_soon(Problem p) {
  SharedMemory memory;
  float* tile = memory.take<float>(kThreads);
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t first = int64_t{blockIdx.x} * kThreads; first < p.count; first += step) {
    const int64_t i = first + threadIdx.x, mirrored = first + kThreads - 1 - threadIdx.x;
    if (!p.mistake) __syncthreads();
    tile[threadIdx.x] = i < p.count ? p.in[i] : 0.0f;
    __syncthreads();
    if (mirrored < p.count) p.out[mirrored] = tile[kThreads - 1 - threadIdx.x];
  }
}

ERD_KERNEL(64, 1) blocks_write_the_same(Problem p) {
  const int64_t i = global_thread();
  if (i < p.count) p.out[i] = p.in[i];
  // The neighbour block's first number: the same value, yet two writers.
  const int64_t next = (int64_t{blockIdx.x} + 1) * kThreads;
  if (p.mistake && threadIdx.x == 7 && next < p.count) p.out[next] = p.in[next];
}

// ---- waiting: the emulator itself ---------------------------------------------------------------

ERD_KERNEL(64, 1) no_copy_wait(Problem p) {
  SharedMemory memory;
  float* tile = memory.take<float>(kThreads);
  const int64_t i = global_thread();
  copy_async<4>(tile + threadIdx.x, p.in + i, i < p.count);
  copy_async_commit();
  if (!p.mistake) copy_async_wait<0>();
  if (i < p.count) p.out[i] = tile[threadIdx.x];
}

ERD_KERNEL(64, 1) divergent_barrier(Problem p) {
  const int64_t i = global_thread();
  if (p.mistake && threadIdx.x < 3) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  if (i < p.count) p.out[i] = p.in[i];
}

ERD_KERNEL(64, 1) barrier_after_return(Problem p) {
  const int64_t i = global_thread();
  if (p.mistake && i >= p.count) return;
  __syncthreads();
  if (i < p.count) p.out[i] = p.in[i];
}

ERD_KERNEL(64, 1) wrong_shuffle_mask(Problem p) {
  const int64_t i = global_thread();
  const float x = i < p.count ? p.in[i] : 0.0f;
  // Lanes of the upper half never come to the shuffle of which the mask names them.
  float y = x;
  if (threadIdx.x % 32 < 16) y = __shfl_xor_sync(p.mistake ? kFullWarp : 0xffffu, x, 1);
  if (threadIdx.x % 32 < 16) y = __shfl_xor_sync(0xffffu, y, 1);
  if (i < p.count) p.out[i] = y;
}

ERD_KERNEL(64, 1) reads_an_unnamed_lane(Problem p) {
  const int64_t i = global_thread();
  const float x = i < p.count ? p.in[i] : 0.0f;
  float y = x;
  if (threadIdx.x % 32 < 16) y = __shfl_sync(0xffffu, x, (threadIdx.x % 16) + (p.mistake ? 1 : 0));
  if (i < p.count) p.out[i] = y;
}

ERD_KERNEL(64, 1) takes_more_than_asked(Problem p) {
  SharedMemory memory;
  float* tile = memory.take<float>(p.mistake ? 3 * kThreads : 2 * kThreads);
  const int64_t i = global_thread();
  tile[threadIdx.x] = i < p.count ? p.in[i] : 0.0f;
  if (i < p.count) p.out[i] = tile[threadIdx.x];
}

ERD_KERNEL(64, 1) uninitialised_shared_memory(Problem p) {
  SharedMemory memory;
  float* sum = memory.take<float>(kThreads);
  const int64_t i = global_thread();
  if (!p.mistake) sum[threadIdx.x] = 0.0f;
  if (i < p.count) p.out[i] = (sum[threadIdx.x] += p.in[i]);
}

// Multiplies by the identity on tensor cores, which a GPU of compute capability 75 has not.
ERD_KERNEL(64, 1) tensor_cores_too_old(Problem p) {
  const int64_t i = global_thread();
  if (i < p.count) p.out[i] = p.in[i];
  float d[4] = {};
  const uint32_t a[4] = {};
  if (p.mistake) mma<Fp16>(d, a, 0, 0);
}

// ---- running one --------------------------------------------------------------------------------

template <void (*Kernel)(Problem), int64_t Blocks = 5>
int run_planted(bool mistake) {
  constexpr int64_t kCount = 5 * kThreads - 13;  // a tail in the last block
  std::vector<float> in(kCount), out(kCount, -1.0f);
  for (int64_t i = 0; i < kCount; ++i) in[static_cast<size_t>(i)] = static_cast<float>(i) + 0.5f;
  launch(Kernel, cuda_device(0, nullptr),
         LaunchShape{Blocks, kThreads, 2 * shared_size<float>(kThreads)},
         Problem{in.data(), out.data(), kCount, mistake});
  for (int64_t i = 0; i < kCount; ++i) {
    if (out[static_cast<size_t>(i)] == in[static_cast<size_t>(i)]) continue;
    std::fprintf(stderr, "wrong result: element %ld is %g\n", static_cast<long>(i),
                 static_cast<double>(out[static_cast<size_t>(i)]));
    return 3;
  }
  return 0;
}

#define ERD_BUG(kernel) {#kernel, run_planted<kernel>}
const PlantedBug kBugs[] = {
    ERD_BUG(read_past_the_tail),
    ERD_BUG(store_past_the_tail),
    ERD_BUG(copy_past_the_tail),
    ERD_BUG(overrun_shared_memory),
    ERD_BUG(misaligned_vector),
    ERD_BUG(no_block_barrier),
    ERD_BUG(no_warp_barrier),
    {"buffer_reused_too_soon", run_planted<buffer_reused_too_soon, 2>},
    ERD_BUG(blocks_write_the_same),
    ERD_BUG(no_copy_wait),
    ERD_BUG(divergent_barrier),
    ERD_BUG(barrier_after_return),
    ERD_BUG(wrong_shuffle_mask),
    ERD_BUG(reads_an_unnamed_lane),
    ERD_BUG(takes_more_than_asked),
    ERD_BUG(uninitialised_shared_memory),
    ERD_BUG(tensor_cores_too_old),
};

}  // namespace

int main(int count, char** words) {
  std::vector<PlantedBug> bugs(std::begin(kBugs), std::end(kBugs));
  for (const PlantedBug& bug : hopper_bugs()) bugs.push_back(bug);
  bool found = false;
  for (const PlantedBug& bug : bugs) {
    const bool named =
        count == 3 && (std::strcmp(words[1], "all") == 0 || std::strcmp(words[1], bug.name) == 0);
    if (!named) continue;
    found = true;
    try {
      const int status = bug.run(std::strcmp(words[2], "planted") == 0);
      if (status != 0) return status;
    } catch (const std::runtime_error& error) {
      std::fprintf(stderr, "%s: %s\n", bug.name, error.what());
      return 4;
    }
  }
  if (found) return 0;
  std::fprintf(stderr, "usage: %s NAME clean|planted, NAME one of", words[0]);
  for (const PlantedBug& bug : bugs) std::fprintf(stderr, " %s", bug.name);
  std::fprintf(stderr, "\n");
  return 2;
}
