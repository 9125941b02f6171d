// The launch loop: sets blocks up, lets fibers run in random order, names who waits for whom when
// nobody can go on.
#include "cuda_emulation/runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "cuda_emulation/block.h"

namespace erd::emulation {

Launch* launch_now = nullptr;
Thread* thread_now = nullptr;

namespace {

int64_t launch_count = 0;

struct Device {
  int capability;
  int64_t shared_kilobytes;
};
constexpr Device kDevices[] = {{75, 64},  {80, 163},  {86, 99}, {89, 99},
                               {90, 227}, {100, 227}, {120, 99}};

// Fibers and shared memory outlive launches: making them costs more than many kernels.
std::vector<std::unique_ptr<Fiber>> fibers;

struct Arenas {
  std::vector<unsigned char*> begin;
  int64_t bytes = 0;
};
Arenas arenas;

// A run may have this many arenas in use before the first is used again. Under ThreadSanitizer
// blocks are not ordered one after another, so they must not share memory.
#if defined(ERD_EMULATION_TSAN)
constexpr size_t kArenas = 64;
#else
constexpr size_t kArenas = 16;
#endif
// Room for the gaps between pieces.
constexpr int64_t kGaps = 96 * 1024;

int environment_number(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == 0 ? otherwise : std::atoi(value);
}

void run_body(void* argument) {
  Thread* thread = static_cast<Thread*>(argument);
  acquire(&launch_now->started);
  try {
    (*launch_now->body)();
  } catch (const std::exception& error) {
    if (launch_now->error.empty()) launch_now->error = error.what();
  }
  release(&launch_now->ended);
  thread->progress = Progress::returned;
  thread->fiber->suspend(true);
}

std::string ranges(std::vector<unsigned>& numbers) {
  std::sort(numbers.begin(), numbers.end());
  std::string result;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    result += (result.empty() ? "" : ", ") + std::to_string(numbers[i]);
    if (end - i > 1) result += "-" + std::to_string(numbers[end - 1]);
    i = end;
  }
  return result;
}

// Which threads wait where.
std::string deadlock(const Block& block) {
  std::map<std::tuple<std::string, std::string, uint32_t>, std::vector<unsigned>> groups;
  std::vector<unsigned> returned;
  for (const Thread& thread : block.threads) {
    if (thread.progress == Progress::returned) {
      returned.push_back(thread.index);
    } else {
      groups[{thread.waits_in, text(thread.waits_at), thread.waits_for_lanes}].push_back(
          thread.index);
    }
  }
  std::string message = "deadlock: in block " + std::to_string(block.index);
  for (auto& [where, threads] : groups) {
    message += " threads " + ranges(threads) + " wait in " + std::get<0>(where) + " at " +
               std::get<1>(where);
    if (std::get<2>(where) != 0) {
      char mask[16];
      std::snprintf(mask, sizeof(mask), "0x%08x", std::get<2>(where));
      message += std::string(" for lanes ") + mask;
    }
    message += ";";
  }
  if (!returned.empty()) message += " threads " + ranges(returned) + " have returned;";
  message.pop_back();
  return message;
}

void admit_conditional(Launch& launch) {
  auto& list = launch.conditional;
  for (size_t i = 0; i < list.size();) {
    Thread* thread = list[i];
    if (thread->condition(thread->condition_argument)) {
      list[i] = list.back();
      list.pop_back();
      make_ready(thread);
    } else {
      ++i;
    }
  }
}

void run_block(Launch& launch, Block& block) {
  launch.ready.clear();
  launch.conditional.clear();
  for (Thread& thread : block.threads) make_ready(&thread);
  while (true) {
    if (launch.ready.empty()) admit_conditional(launch);
    if (launch.ready.empty()) break;
    const size_t choice = launch.random() % launch.ready.size();
    Thread* thread = launch.ready[choice];
    launch.ready[choice] = launch.ready.back();
    launch.ready.pop_back();
    thread_now = thread;
    thread->fiber->resume();
    if (!launch.error.empty()) throw std::runtime_error("CUDA emulation: " + launch.error);
  }
  for (const Thread& thread : block.threads) {
    if (thread.progress != Progress::returned) {
      throw std::runtime_error("CUDA emulation: " + deadlock(block));
    }
  }
  check_gaps(block);
}

void check_launch(const Launch& launch) {
  const auto refuse = [](const std::string& why) {
    throw std::runtime_error("CUDA emulation: invalid launch: " + why);
  };
  if (launch.blocks < 1 || launch.blocks > 2147483647) {
    refuse(std::to_string(launch.blocks) + " blocks, a grid has 1 to 2147483647");
  }
  if (launch.threads < 1 || launch.threads > 1024) {
    refuse(std::to_string(launch.threads) + " threads, a block has 1 to 1024");
  }
  const int64_t limit = shared_limit(launch.capability);
  if (launch.shared_bytes < 0 || launch.shared_bytes > limit) {
    refuse(std::to_string(launch.shared_bytes) + " bytes of shared memory, compute capability " +
           std::to_string(launch.capability) + " has " + std::to_string(limit));
  }
}

unsigned char* arena(size_t position, int64_t bytes) {
  if (arenas.bytes < bytes) {
    for (unsigned char* old : arenas.begin) {
      unpoison(old, static_cast<size_t>(arenas.bytes));
      munmap(old, static_cast<size_t>(arenas.bytes));
    }
    arenas.begin.clear();
    arenas.bytes = bytes;
  }
  position %= kArenas;
  while (arenas.begin.size() <= position) {
    void* mapping = mmap(nullptr, static_cast<size_t>(arenas.bytes), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    arenas.begin.push_back(static_cast<unsigned char*>(mapping));
  }
  return arenas.begin[position];
}

}  // namespace

int64_t shared_limit(int compute_capability) {
  for (const Device& device : kDevices) {
    if (device.capability == compute_capability) return device.shared_kilobytes * 1024;
  }
  throw std::runtime_error("CUDA emulation: there is no device of compute capability " +
                           std::to_string(compute_capability));
}

int emulated_compute_capability() { return environment_number("ERD_EMULATED_DEVICE", 80); }

int64_t launches() { return launch_count; }

void run(int compute_capability, int64_t blocks, int threads, int64_t shared_bytes,
         const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Launch launch;
  launch.capability = compute_capability;
  launch.blocks = blocks;
  launch.shared_bytes = shared_bytes;
  launch.threads = threads;
  launch.body = &body;
  check_launch(launch);
  ++launch_count;
  launch.random.seed(static_cast<uint64_t>(environment_number("ERD_EMULATION_SEED", 0)));
  launch_now = &launch;

  const size_t count = static_cast<size_t>(threads);
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
  const int64_t arena_bytes = shared_bytes == 0 ? 0 : shared_bytes + kGaps;
  size_t next_fiber = 0;
  try {
    for (int64_t index = 0; index < blocks; ++index) {
      Block block;
      block.index = static_cast<unsigned>(index);
      set_up_shared_memory(block, arena(static_cast<size_t>(index), arena_bytes), arena_bytes);
      block.warps.resize((count + 31) / 32);
      block.threads.resize(count);
      for (size_t t = 0; t < count; ++t) {
        Thread& thread = block.threads[t];
        thread.fiber = fibers[next_fiber++ % count].get();
        thread.block = &block;
        thread.index = static_cast<unsigned>(t);
        thread.fiber->start(run_body, &thread);
      }
      // Another fiber for the same thread of the next block: ThreadSanitizer can then tell them
      // apart.
      next_fiber += 5;
      release(&launch.started);
      run_block(launch, block);
      if (static_cast<size_t>(index + 1) % kArenas == 0) acquire(&launch.ended);
      thread_now = nullptr;
    }
  } catch (...) {
    // Their stacks hold abandoned frames.
    fibers.clear();
    thread_now = nullptr;
    launch_now = nullptr;
    throw;
  }
  acquire(&launch.ended);
  launch_now = nullptr;
}

Index thread_index() { return {thread_now->index, 0, 0}; }
Index block_index() { return {thread_now->block->index, 0, 0}; }
Index block_size() { return {static_cast<unsigned>(launch_now->threads), 1, 1}; }
Index grid_size() { return {static_cast<unsigned>(launch_now->blocks), 1, 1}; }
int compute_capability() { return launch_now->capability; }
int lane() { return static_cast<int>(thread_now->index % 32); }

std::string text(Location where) {
  return std::string(where.file) + ":" + std::to_string(where.line);
}

std::string name_of(const Thread& thread) {
  return "block " + std::to_string(thread.block->index) + ", thread " +
         std::to_string(thread.index);
}

void fail(const char* what, Location where, const std::string& why) {
  throw std::runtime_error(std::string(what) + " at " + text(where) + " (" + name_of(*thread_now) +
                           "): " + why);
}

void require(const char* what, Location where, int at_least) {
  if (launch_now->capability >= at_least) return;
  fail(what, where,
       "needs compute capability " + std::to_string(at_least) + ", this device has " +
           std::to_string(launch_now->capability));
}

void require_exactly(const char* what, Location where, int capability) {
  if (launch_now->capability == capability) return;
  fail(what, where,
       "exists on compute capability " + std::to_string(capability) + " only, this device has " +
           std::to_string(launch_now->capability));
}

void make_ready(Thread* thread) {
  thread->progress = Progress::ready;
  launch_now->ready.push_back(thread);
}

void wait_here(const char* what, Location where, uint32_t lanes) {
  Thread* thread = thread_now;
  thread->progress = Progress::waiting;
  thread->waits_in = what;
  thread->waits_at = where;
  thread->waits_for_lanes = lanes;
  thread->fiber->suspend(false);
}

void wait_until(const char* what, Location where, bool (*condition)(void*), void* argument) {
  const Unwatched unwatched;
  if (condition(argument)) return;
  thread_now->condition = condition;
  thread_now->condition_argument = argument;
  launch_now->conditional.push_back(thread_now);
  wait_here(what, where, 0);
}

}  // namespace erd::emulation
