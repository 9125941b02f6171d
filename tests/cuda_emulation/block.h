// What the emulator keeps about the blocks that run at the moment. Internal: kernels see runtime.h.
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_emulation/fiber.h"
#include "cuda_emulation/hopper.h"

namespace erd::emulation {

struct Block;

// A warpgroup product that was not waited for, and how many groups were closed since.
struct PendingProduct {
  WarpgroupProduct product;
  int groups_since;
};

enum class Progress { ready, waiting, returned };

struct Thread {
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  unsigned index = 0;
  Progress progress = Progress::ready;
  // While waiting: for what, where, and with which lanes (0: not a matter of lanes).
  const char* waits_in = "";
  Location waits_at = {"", 0};
  uint32_t waits_for_lanes = 0;
  // Or until this becomes true.
  bool (*condition)(void*) = nullptr;
  void* condition_argument = nullptr;
  std::vector<AsyncCopy> copies;  // oldest first; those before first_copy are done
  size_t first_copy = 0;
  std::vector<PendingProduct> products;
  bool products_fenced = false;
};

// Threads that wait for one another. Two tokens take turns: with a single one, a thread that is
// already on its way to the next meeting would seem to have met the others there.
struct Barrier {
  int arrived = 0;
  const char* what = "";
  Location where = {"", 0};
  unsigned first_thread = 0;
  unsigned phase = 0;
  char tokens[2] = {};
  std::vector<Thread*> waiting;
};

// A TransferBarrier. Its tokens take turns with its phases.
struct CountingBarrier {
  int arrivals = 0, missing_arrivals = 0;
  int64_t missing_bytes = 0;
  int parity = 0;  // of the phase that goes on
  char tokens[2] = {};
  std::vector<Transfer> transfers;
};

// Lanes of one warp that exchange values or wait for one another.
struct Collective {
  const char* what;
  Location where;
  uint32_t mask, arrived;
  char* token;  // nullptr: no order of memory accesses follows
  void* payloads[32];
  Thread* threads[32];
};

struct Warp {
  std::vector<Collective> open;
  unsigned collectives = 0;
  char tokens[64] = {};  // in turns, as in Barrier
};

struct Piece {
  unsigned char* begin;
  int64_t bytes;
  Location where;
};

struct Block {
  unsigned index = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  // Shared memory: pieces keep their real offset modulo 1024 and have a gap before and after them.
  unsigned char* arena = nullptr;
  int64_t arena_bytes = 0;
  std::vector<Piece> pieces;
  int64_t taken = 0;  // bytes of a GPU's shared memory
};

// One launch.
struct Launch {
  int capability;
  int64_t blocks, shared_bytes;
  int threads;
  const std::function<void()>* body;
  std::mt19937_64 random;
  std::vector<Thread*> ready, conditional;
  std::deque<CountingBarrier> counting_barriers;
  std::deque<std::unique_ptr<char>> transfer_tokens;
  std::string error;
  char started = 0, ended = 0;  // tokens
};

extern Launch* launch_now;
extern Thread* thread_now;

// Leaves the calling thread until others have made it ready.
void wait_here(const char* what, Location where, uint32_t lanes);
// Leaves the calling thread until the condition holds; what makes it hold is another thread.
void wait_until(const char* what, Location where, bool (*condition)(void*), void* argument);
void make_ready(Thread* thread);
void set_up_shared_memory(Block& block, unsigned char* arena, int64_t arena_bytes);
// Throws when a thread wrote into a gap.
void check_gaps(const Block& block);

std::string text(Location where);
// "block 3, thread 37"
std::string name_of(const Thread& thread);

}  // namespace erd::emulation
