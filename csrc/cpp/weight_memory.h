// Memory for weights that are read in every call: whole cache lines, in huge pages where the system
// has them.
//
// A second-level cache finds a line's place by its physical address. Pages of 4 KiB lie anywhere in
// physical memory: by luck some places of the cache get more of the weights than they hold. A page
// of 2 MiB fills all places evenly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace erd_cuda {

class WeightMemory {
 public:
  WeightMemory() = default;

  // Zeros.
  explicit WeightMemory(int64_t floats) {
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
    // An even place in the cache is worth most of one huge page, but not all of it.
    const size_t alignment = bytes < kHugePage / 16 ? kLine : kHugePage;
    const size_t whole = (bytes + alignment - 1) / alignment * alignment;
    memory_.reset(static_cast<float*>(std::aligned_alloc(alignment, whole)));
    if (memory_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Advice: without it, or with a system that does not follow it, all works as well.
    if (alignment == kHugePage) madvise(memory_.get(), whole, MADV_HUGEPAGE);
#endif
    std::memset(memory_.get(), 0, bytes);
  }

  float* data() const { return memory_.get(); }

 private:
  static constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;

  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
};

}  // namespace erd_cuda
