// What the processor gives to a program that does nothing but multiply and add: the ceiling that
// benchmarks hold the kernels against.
#include "cpu/kernels.h"
#include "cpu/matrix_product.h"

ERD_NAMESPACE_BEGIN

namespace {

using Vector = Simd<float>;

// Multiply-adds that do not wait for each other: enough to hide the latency of one (4 cycles, two
// to four a cycle), few enough to stay in the registers beside the factor.
constexpr int kChains = kVectorRegisters == 32 ? 24 : 12;

// Known to nobody before the loop begins: nothing can be computed in advance.
volatile float factor = 1e-9f;

void run_chains(int64_t steps) {
  const Vector a = NumberTraits<Vector>::broadcast(factor);
  Vector chains[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) chains[i] = NumberTraits<Vector>::broadcast(1.0f + i);
  for (int64_t step = 0; step < steps; ++step) {
    // Sums grow where they are, the only way that NEON has, and by less than rounding leaves:
    // neither infinity nor a slow denormal number ever comes up.
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) chains[i] += a * chains[i];
  }
  Vector sum = chains[0];
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum += chains[i];
  float total = 0;
  for (int lane = 0; lane < kLanes<float>; ++lane) total += sum.v[lane];
  // Somebody reads the result, as far as the compiler knows.
  volatile float sink = total;
  static_cast<void>(sink);
}

}  // namespace

int64_t run_multiply_adds(int64_t steps, int64_t tasks, ParallelFor threads) {
  threads.run(
      tasks, 1,
      [](void* context, int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) run_chains(*static_cast<int64_t*>(context));
      },
      &steps);
  return 2 * kChains * kLanes<float> * steps * tasks;
}

ERD_NAMESPACE_END
