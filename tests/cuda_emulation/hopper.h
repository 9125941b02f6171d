// The host side of csrc/cuda/ptx_hopper.h, with the same functions. All of it needs compute
// capability 90. Data on its way, and sums in the making, are NaN until they are waited for.
#pragma once

#include <type_traits>
#include <vector>

#include "cuda_emulation/emulator.h"

ERD_NAMESPACE_BEGIN

struct alignas(8) TransferBarrier {
  uint64_t state;  // which of the emulator's barriers it is
};

void transfer_init(TransferBarrier* barrier, int arrivals,
                   emulation::Location where = emulation::Location::here());
void transfer_expect(TransferBarrier* barrier, int bytes,
                     emulation::Location where = emulation::Location::here());

}  // inline namespace
namespace emulation {

// A bulk copy between its two ends.
struct Transfer {
  void* target;
  std::vector<uint32_t> words;
  uint64_t barrier;
  char* token;
};
void transfer_begin(const char* what, Location where, Transfer transfer);
// Hands out a copy that the barrier still waits for; false: none is left.
bool transfer_take(uint64_t barrier, Transfer* transfer);
void transfer_end(const Transfer& transfer);
// Waits until the phase has ended (true) or there are copies to be carried out (false).
bool transfer_phase_ended(const char* what, Location where, uint64_t barrier, int parity);
// What was in `state`, for the barrier of an initialised TransferBarrier; else ends the run.
uint64_t transfer_barrier(const char* what, Location where, uint64_t state);

// One lane's part of a warpgroup product.
struct WarpgroupProduct {
  float* d;
  uint32_t a[4];
  const unsigned char* b;
  int along_k, along_n, columns;
  bool accumulate, brain;  // brain: bf16, not fp16
  uint32_t rows[2][8];     // this lane's columns of B: n = lane + 32 i, two numbers k a word
  float sums[32];
};
void wgmma_issue(Location where, WarpgroupProduct& product);
void wgmma_commit_group(Location where);
bool wgmma_take(Location where, int pending, WarpgroupProduct* product);
void wgmma_fence_registers(Location where);

}  // namespace emulation
inline namespace ERD_ARCH {

inline void bulk_copy(void* shared, const void* global, int bytes, TransferBarrier* barrier,
                      emulation::Location where = emulation::Location::here()) {
  emulation::require("bulk_copy", where, 90);
  emulation::check_shared("bulk_copy", where, shared, bytes, 16);
  emulation::check_aligned("bulk_copy", where, global, 16);
  if (bytes % 16 != 0) emulation::fail("bulk_copy", where, "a size that is no multiple of 16");
  emulation::Transfer transfer = {shared, {}, barrier->state, nullptr};
  const auto* source = static_cast<const AliasedWord*>(global);
  for (int i = 0; i < bytes / 4; ++i) transfer.words.push_back(source[i]);
  auto* target = static_cast<AliasedWord*>(shared);
  for (int i = 0; i < bytes / 4; ++i) target[i] = 0xffffffffu;
  emulation::transfer_begin("bulk_copy", where, transfer);
}

// Who waits first also carries out the copies that the barrier waits for.
inline void transfer_wait(TransferBarrier* barrier, int parity,
                          emulation::Location where = emulation::Location::here()) {
  emulation::require("transfer_wait", where, 90);
  const uint64_t which = emulation::transfer_barrier("transfer_wait", where, barrier->state);
  emulation::Transfer transfer;
  while (!emulation::transfer_phase_ended("transfer_wait", where, which, parity)) {
    if (!emulation::transfer_take(which, &transfer)) continue;
    auto* target = static_cast<AliasedWord*>(transfer.target);
    for (size_t i = 0; i < transfer.words.size(); ++i) target[i] = transfer.words[i];
    emulation::transfer_end(transfer);
  }
}

struct MatrixDescriptor {
  const unsigned char* begin;
  int along_k, along_n;
};

inline MatrixDescriptor describe_matrix(const void* shared, int along_k, int along_n,
                                        emulation::Location where = emulation::Location::here()) {
  emulation::check_shared("describe_matrix", where, shared, 128, 16);
  return {static_cast<const unsigned char*>(shared), along_k, along_n};
}

inline MatrixDescriptor advanced(MatrixDescriptor matrix, int bytes) {
  return {matrix.begin + bytes, matrix.along_k, matrix.along_n};
}

inline void wgmma_fence(emulation::Location where = emulation::Location::here()) {
  emulation::wgmma_fence_registers(where);
}
inline void wgmma_commit(emulation::Location where = emulation::Location::here()) {
  emulation::wgmma_commit_group(where);
}

// Reads this lane's share of B, where sanitizers see it.
inline void read_matrix(emulation::WarpgroupProduct& product, emulation::Location where) {
  for (int i = 0; i * 32 + emulation::lane() < product.columns; ++i) {
    const int n = 32 * i + emulation::lane();
    for (int half = 0; half < 2; ++half) {
      const unsigned char* row =
          product.b + half * product.along_k + n / 8 * product.along_n + n % 8 * 16;
      emulation::check_shared("wgmma", where, row, 16, 16);
      const auto* words = reinterpret_cast<const AliasedWord*>(row);
      for (int w = 0; w < 4; ++w) product.rows[i][4 * half + w] = words[w];
    }
  }
}

template <class Number, int N>
void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], MatrixDescriptor b, bool accumulate,
           emulation::Location where = emulation::Location::here()) {
  static_assert(N == 48 || N == 56 || N == 64, "ptx_hopper.h has no wgmma of this N");
  emulation::WarpgroupProduct product = {
      d,          {a[0], a[1], a[2], a[3]},          b.begin, b.along_k, b.along_n, N,
      accumulate, std::is_same<Number, Bf16>::value, {},      {}};
  read_matrix(product, where);
  emulation::wgmma_issue(where, product);
  for (float& sum : d) sum = NAN;
}

// A matter of the GPU's compiler alone.
template <int Steps>
void complete(uint32_t (&)[Steps][4]) {}

// B is read once more at the end: who changes it before that is in the way of the product.
template <int Pending, int Count>
void wgmma_wait(float (&)[Count], emulation::Location where = emulation::Location::here()) {
  emulation::WarpgroupProduct product;
  while (emulation::wgmma_take(where, Pending, &product)) {
    read_matrix(product, where);
    for (int i = 0; i < product.columns / 2; ++i) product.d[i] = product.sums[i];
  }
}

ERD_NAMESPACE_END
