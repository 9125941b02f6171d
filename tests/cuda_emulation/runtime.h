// How an emulated kernel runs: blocks one after another, the threads of a block as fibers on one OS
// thread. A thread runs until it waits for others; who goes on then is drawn at random from
// ERD_EMULATION_SEED. What a GPU would answer with a hang or an undefined result throws
// std::runtime_error out of run() and names the kernel's line.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace erd::emulation {

struct Index {
  unsigned x, y, z;
};

// A line of a kernel. As default argument of a primitive it is the primitive's caller.
struct Location {
  const char* file;
  int line;
  static Location here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Runs body() once per thread. Throws what went wrong.
void run(int compute_capability, int64_t blocks, int threads, int64_t shared_bytes,
         const std::function<void()>& body);

// How many times run() was called.
int64_t launches();

// The most dynamic shared memory a block may ask for, in bytes; throws for an unknown device.
int64_t shared_limit(int compute_capability);
// The device that ERD_EMULATED_DEVICE names, 80 by default.
int emulated_compute_capability();

// ---- for primitives, called by a running thread -------------------------------------------------

// A thread stays at its place for as long as it runs, so these may be computed once.
Index thread_index() __attribute__((const));
Index block_index() __attribute__((const));
Index block_size() __attribute__((const));
Index grid_size() __attribute__((const));
int compute_capability() __attribute__((const));
int lane() __attribute__((const));

// Ends the run with a message about the calling thread.
[[noreturn]] void fail(const char* what, Location where, const std::string& why);
// Ends the run unless the device is at least (exactly) of this compute capability.
void require(const char* what, Location where, int at_least);
void require_exactly(const char* what, Location where, int capability);

// Waits until all threads of the block are here.
void block_barrier(const char* what, Location where);

// Waits until all lanes of `mask` are here with the same primitive. The last one to come calls
// finish(payloads, mask), which moves data between the lanes' payloads; lanes outside the mask have
// nullptr there. Only with orders_memory may the lanes rely on each other's earlier stores.
void warp_collective(const char* what, Location where, uint32_t mask, bool orders_memory,
                     void* payload, void (*finish)(void* const* payloads, uint32_t mask));

// Piece number `piece` of the block's shared memory: `bytes` of NaN on the first thread's call.
void* shared_piece(int piece, int64_t bytes, Location where);
// Ends the run unless [address, address + bytes) lies in one piece of the block's shared memory and
// is aligned to `alignment`.
void check_shared(const char* what, Location where, const void* address, int64_t bytes,
                  int64_t alignment);
void check_aligned(const char* what, Location where, const void* address, int64_t alignment);

// cp.async of the calling thread: copies that were issued and not yet waited for.
struct AsyncCopy {
  void* target;
  uint32_t words[4];
  int32_t count;
  bool committed;
};
void async_issue(const AsyncCopy& copy);
void async_commit();
// Takes the oldest copy that does not belong to the latest `pending` groups; false: none is left.
bool async_take(int pending, AsyncCopy* copy);

}  // namespace erd::emulation
