// Threads that wait for one another: the block's barrier, and lanes of a warp that exchange values.
#include <cstdio>

#include "cuda_emulation/block.h"
#include "cuda_emulation/emulator.h"

namespace erd::emulation {
namespace {

std::string hexadecimal(uint32_t mask) {
  char buffer[16];
  std::snprintf(buffer, sizeof(buffer), "0x%08x", mask);
  return buffer;
}

Collective& join(Warp& warp, const char* what, Location where, uint32_t mask, bool orders_memory) {
  const uint32_t own = 1u << (thread_now->index % 32);
  for (Collective& candidate : warp.open) {
    if (candidate.mask != mask || (candidate.arrived & own) != 0) continue;
    if (candidate.what != what || candidate.where.line != where.line) {
      fail(what, where,
           "divergent warp, other lanes of mask " + hexadecimal(mask) + " are in " +
               candidate.what + " at " + text(candidate.where));
    }
    return candidate;
  }
  char* token = orders_memory ? &warp.tokens[warp.collectives++ % sizeof(warp.tokens)] : nullptr;
  warp.open.push_back({what, where, mask, 0, token, {}, {}});
  return warp.open.back();
}

}  // namespace

void block_barrier(const char* what, Location where) {
  const Unwatched unwatched;
  Barrier& barrier = thread_now->block->barrier;
  if (barrier.arrived == 0) {
    barrier.what = what;
    barrier.where = where;
    barrier.first_thread = thread_now->index;
  } else if (barrier.where.line != where.line) {
    fail(what, where,
         "divergent barrier, thread " + std::to_string(barrier.first_thread) + " waits in " +
             barrier.what + " at " + text(barrier.where));
  }
  char* token = &barrier.tokens[barrier.phase & 1];
  release(token);
  if (++barrier.arrived < launch_now->threads) {
    barrier.waiting.push_back(thread_now);
    wait_here(what, where, 0);
  } else {
    for (Thread* thread : barrier.waiting) make_ready(thread);
    barrier.waiting.clear();
    barrier.arrived = 0;
    ++barrier.phase;
  }
  acquire(token);
}

void warp_collective(const char* what, Location where, uint32_t mask, bool orders_memory,
                     void* payload, void (*finish)(void* const* payloads, uint32_t mask)) {
  const Unwatched unwatched;
  Thread* thread = thread_now;
  const unsigned lane = thread->index % 32;
  if ((mask >> lane & 1) == 0) {
    fail(what, where,
         "the mask " + hexadecimal(mask) + " does not name lane " + std::to_string(lane) +
             ", which calls");
  }
  Warp& warp = thread->block->warps[thread->index / 32];
  Collective& collective = join(warp, what, where, mask, orders_memory);
  char* token = collective.token;
  if (token != nullptr) release(token);
  collective.arrived |= 1u << lane;
  collective.payloads[lane] = payload;
  collective.threads[lane] = thread;
  if (collective.arrived != mask) {
    wait_here(what, where, mask);
  } else {
    if (finish != nullptr) finish(collective.payloads, mask);
    for (unsigned other = 0; other < 32; ++other) {
      if (other != lane && (mask >> other & 1) != 0) make_ready(collective.threads[other]);
    }
    warp.open.erase(warp.open.begin() + (&collective - warp.open.data()));
  }
  if (token != nullptr) acquire(token);
}

namespace {

struct Exchange {
  uint64_t bits, received;
  int source;
};

void exchange(void* const* payloads, uint32_t mask) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    auto* own = static_cast<Exchange*>(payloads[lane]);
    own->received = static_cast<Exchange*>(payloads[own->source])->bits;
  }
}

struct Vote {
  bool vote;
  uint32_t result;
};

void count_votes(void* const* payloads, uint32_t mask) {
  uint32_t result = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0 && static_cast<Vote*>(payloads[lane])->vote) result |= 1u << lane;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0) static_cast<Vote*>(payloads[lane])->result = result;
  }
}

}  // namespace

uint64_t shuffle(const char* what, Location where, uint32_t mask, uint64_t bits, int source) {
  if (source < 0 || source > 31 || (mask >> source & 1) == 0) {
    fail(what, where,
         "reads lane " + std::to_string(source) + ", which the mask " + hexadecimal(mask) +
             " does not name");
  }
  Exchange payload = {bits, 0, source};
  warp_collective(what, where, mask, false, &payload, exchange);
  return payload.received;
}

uint32_t ballot(const char* what, Location where, uint32_t mask, bool vote) {
  Vote payload = {vote, 0};
  warp_collective(what, where, mask, false, &payload, count_votes);
  return payload.result;
}

}  // namespace erd::emulation

void __syncwarp(unsigned mask, erd::emulation::Location where) {
  erd::emulation::warp_collective("__syncwarp", where, mask, true, nullptr, nullptr);
}
