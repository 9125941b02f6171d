// Mistakes with Hopper's primitives. The kernels without them show that the emulator's warpgroup
// products and bulk copies do what they should.
#include <cstdio>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda_emulation/planted_bugs.h"

namespace {

using namespace erd;

enum class Mistake {
  none,
  no_transfer_wait,
  no_product_wait,
  no_product_fence,
  operand_overwritten,
};

constexpr int kRows = 64, kDepth = 16, kColumns = 48;

struct Product {
  const uint32_t* a;       // [64, 16], two numbers a word
  const unsigned char* b;  // [16, 48] in 8 x 8 blocks, those along k next to each other
  float* d;                // [64, 48]
  Mistake mistake;
};

// D = 2 A B by one warpgroup, in two products that build on each other.
template <class Number>
ERD_KERNEL(128, 1)
multiply_twice(Product p) {
  constexpr int kBytes = 2 * kDepth * kColumns;
  SharedMemory memory;
  unsigned char* b = memory.take<unsigned char>(kBytes);
  TransferBarrier* arrived = memory.take<TransferBarrier>(1);
  if (threadIdx.x == 0) transfer_init(arrived, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    transfer_expect(arrived, kBytes);
    bulk_copy(b, p.b, kBytes, arrived);
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t* row = p.a + (16 * warp + g) * kDepth / 2 + t;
  const uint32_t a[4] = {row[0], row[8 * kDepth / 2], row[4], row[8 * kDepth / 2 + 4]};
  if (p.mistake != Mistake::no_transfer_wait) transfer_wait(arrived, 0);

  float d[kColumns / 2] = {};
  if (p.mistake != Mistake::no_product_fence) wgmma_fence();
  const MatrixDescriptor matrix = describe_matrix(b, 128, 256);
  wgmma<Number, kColumns>(d, a, matrix, false);
  wgmma<Number, kColumns>(d, a, matrix, true);
  wgmma_commit();
  if (p.mistake == Mistake::operand_overwritten && threadIdx.x == 5) b[0] = 0;
  if (p.mistake != Mistake::no_product_wait) wgmma_wait<0>(d);
  for (int i = 0; i < kColumns / 2; ++i) {
    const int out_row = 16 * warp + g + i % 4 / 2 * 8;
    p.d[out_row * kColumns + i / 4 * 8 + 2 * t + i % 2] = d[i];
  }
}

CudaDevice hopper() { return {0, 90, 90, 2, emulation::shared_limit(90), nullptr}; }

template <class Number>
int run_product(Mistake mistake) {
  // Small whole numbers: exact in every format.
  const auto a_at = [](int m, int k) { return static_cast<float>((7 * m + 3 * k) % 11 - 5); };
  const auto b_at = [](int k, int n) { return static_cast<float>((5 * k + 2 * n) % 13 - 6); };
  std::vector<uint32_t> a(kRows * kDepth / 2), b(kColumns * kDepth / 2);
  for (int m = 0; m < kRows; ++m) {
    for (int k = 0; k < kDepth; k += 2) {
      a[static_cast<size_t>(m * kDepth + k) / 2] = Number::pack(a_at(m, k), a_at(m, k + 1));
    }
  }
  for (int n = 0; n < kColumns; ++n) {
    for (int k = 0; k < kDepth; k += 2) {
      const int word = (k / 8 * 128 + n / 8 * 256 + n % 8 * 16) / 4 + k % 8 / 2;
      b[static_cast<size_t>(word)] = Number::pack(b_at(k, n), b_at(k + 1, n));
    }
  }
  std::vector<float> d(kRows * kColumns, -1.0f);
  const LaunchShape shape = {
      1, 128, shared_size<unsigned char>(2 * kDepth * kColumns) + shared_size<TransferBarrier>(1)};
  launch(multiply_twice<Number>, hopper(), shape,
         Product{a.data(), reinterpret_cast<const unsigned char*>(b.data()), d.data(), mistake});
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      float expected = 0.0f;
      for (int k = 0; k < kDepth; ++k) expected += 2.0f * a_at(m, k) * b_at(k, n);
      const float found = d[static_cast<size_t>(m * kColumns + n)];
      if (found == expected) continue;
      std::fprintf(stderr, "wrong result: D[%d][%d] is %g\n", m, n, static_cast<double>(found));
      return 3;
    }
  }
  return 0;
}

template <Mistake M>
int run_planted(bool planted) {
  const Mistake mistake = planted ? M : Mistake::none;
  const int status = run_product<Fp16>(mistake);
  return status != 0 ? status : run_product<Bf16>(mistake);
}

}  // namespace

std::vector<PlantedBug> hopper_bugs() {
  return {
      {"no_transfer_wait", run_planted<Mistake::no_transfer_wait>},
      {"no_product_wait", run_planted<Mistake::no_product_wait>},
      {"no_product_fence", run_planted<Mistake::no_product_fence>},
      {"operand_overwritten", run_planted<Mistake::operand_overwritten>},
  };
}
