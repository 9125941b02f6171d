// Shared memory with gaps between its pieces, and cp.async.
#include <cstring>
#include <stdexcept>

#include "cuda_emulation/block.h"

namespace erd::emulation {
namespace {

constexpr int64_t kGap = 64;           // at least this much before and after a piece
constexpr unsigned char kFill = 0xff;  // NaN in every floating-point format

int64_t rounded(int64_t bytes) { return (bytes + 15) / 16 * 16; }

unsigned char* next_place(const Block& block) {
  unsigned char* after =
      block.pieces.empty() ? block.arena : block.pieces.back().begin + block.pieces.back().bytes;
  auto address = reinterpret_cast<uintptr_t>(after) + kGap;
  const auto real_offset = static_cast<uintptr_t>(block.taken);
  address += (real_offset - address) % 1024;
  return reinterpret_cast<unsigned char*>(address);
}

}  // namespace

void set_up_shared_memory(Block& block, unsigned char* arena, int64_t arena_bytes) {
  block.arena = arena;
  block.arena_bytes = arena_bytes;
  if (arena_bytes == 0) return;
  unpoison(arena, static_cast<size_t>(arena_bytes));
  std::memset(arena, kFill, static_cast<size_t>(arena_bytes));
  poison(arena, static_cast<size_t>(arena_bytes));
}

void* shared_piece(int piece, int64_t bytes, Location where) {
  const Unwatched unwatched;
  Block& block = *thread_now->block;
  const auto position = static_cast<size_t>(piece);
  if (position < block.pieces.size()) {
    const Piece& known = block.pieces[position];
    if (known.bytes == bytes) return known.begin;
    fail("SharedMemory::take", where,
         "takes " + std::to_string(bytes) + " bytes where another thread took " +
             std::to_string(known.bytes) + " at " + text(known.where));
  }
  const int64_t asked = launch_now->shared_bytes;
  if (bytes < 0 || block.taken + rounded(bytes) > asked) {
    fail("SharedMemory::take", where,
         std::to_string(bytes) + " bytes after " + std::to_string(block.taken) +
             ", the launch asked for " + std::to_string(asked) + " bytes of shared memory");
  }
  unsigned char* begin = next_place(block);
  if (begin + bytes + kGap > block.arena + block.arena_bytes) {
    fail("SharedMemory::take", where, "more pieces than the emulator has room for");
  }
  unpoison(begin, static_cast<size_t>(bytes));
  block.pieces.push_back({begin, bytes, where});
  block.taken += rounded(bytes);
  return begin;
}

void check_gaps(const Block& block) {
  if (block.pieces.empty()) return;
  unpoison(block.arena, static_cast<size_t>(block.arena_bytes));
  const unsigned char* from = block.arena;
  for (size_t i = 0; i <= block.pieces.size(); ++i) {
    const unsigned char* to = i < block.pieces.size() ? block.pieces[i].begin : from + kGap;
    for (const unsigned char* byte = from; byte != to; ++byte) {
      if (*byte == kFill) continue;
      const bool behind = i > 0;
      const Piece& piece = block.pieces[behind ? i - 1 : 0];
      throw std::runtime_error("CUDA emulation: block " + std::to_string(block.index) +
                               " wrote to shared memory " + (behind ? "behind" : "before") +
                               " the piece of " + std::to_string(piece.bytes) +
                               " bytes that was taken at " + text(piece.where));
    }
    if (i < block.pieces.size()) from = block.pieces[i].begin + block.pieces[i].bytes;
  }
}

void check_aligned(const char* what, Location where, const void* address, int64_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(alignment) == 0) return;
  fail(what, where, "an address that is not a multiple of " + std::to_string(alignment));
}

void check_shared(const char* what, Location where, const void* address, int64_t bytes,
                  int64_t alignment) {
  check_aligned(what, where, address, alignment);
  const auto* byte = static_cast<const unsigned char*>(address);
  for (const Piece& piece : thread_now->block->pieces) {
    if (byte >= piece.begin && byte + bytes <= piece.begin + piece.bytes) return;
  }
  fail(what, where, "an address outside the pieces of shared memory");
}

void async_issue(const AsyncCopy& copy) {
  const Unwatched unwatched;
  thread_now->copies.push_back(copy);
}

// Groups are told apart by a marker of no words at their end.
void async_commit() {
  const Unwatched unwatched;
  thread_now->copies.push_back({nullptr, {}, 0, true});
}

bool async_take(int pending, AsyncCopy* copy) {
  const Unwatched unwatched;
  auto& copies = thread_now->copies;
  size_t& first = thread_now->first_copy;
  int groups = 0;
  for (size_t i = first; i < copies.size(); ++i) groups += copies[i].committed ? 1 : 0;
  while (groups > pending) {
    *copy = copies[first++];
    if (!copy->committed) return true;
    --groups;
  }
  if (first == copies.size()) {
    copies.clear();
    first = 0;
  }
  return false;
}

}  // namespace erd::emulation
