// Barriers that count bytes, and products of warpgroups.
#include "cuda_emulation/hopper.h"

#include <algorithm>

#include "cuda_emulation/block.h"

namespace erd::emulation {

namespace {

// So that a TransferBarrier that nobody initialised (NaN) is told from one that is.
constexpr uint64_t kMark = 0xb1a5000000000000u;

CountingBarrier& counting(uint64_t which) {
  return launch_now->counting_barriers[static_cast<size_t>(which)];
}

struct PhaseWish {
  CountingBarrier* barrier;
  int parity;
};

bool has_ended(const PhaseWish& wish) { return wish.barrier->parity != wish.parity; }

bool has_news(void* argument) {
  const auto* wish = static_cast<const PhaseWish*>(argument);
  return has_ended(*wish) || !wish->barrier->transfers.empty();
}

void end_phase_if_complete(CountingBarrier& barrier) {
  if (barrier.missing_arrivals > 0 || barrier.missing_bytes != 0) return;
  barrier.parity ^= 1;
  barrier.missing_arrivals = barrier.arrivals;
}

}  // namespace

uint64_t transfer_barrier(const char* what, Location where, uint64_t state) {
  const uint64_t which = state ^ kMark;
  if (which >= launch_now->counting_barriers.size()) {
    fail(what, where, "the barrier was not initialised");
  }
  return which;
}

void transfer_begin(const char* what, Location where, Transfer transfer) {
  const Unwatched unwatched;
  transfer.barrier = transfer_barrier(what, where, transfer.barrier);
  // The copy comes after all that its issuer knows of.
  launch_now->transfer_tokens.push_back(std::make_unique<char>());
  transfer.token = launch_now->transfer_tokens.back().get();
  release(transfer.token);
  counting(transfer.barrier).transfers.push_back(std::move(transfer));
}

bool transfer_take(uint64_t which, Transfer* transfer) {
  const Unwatched unwatched;
  auto& transfers = counting(which).transfers;
  if (transfers.empty()) return false;
  const size_t choice = launch_now->random() % transfers.size();
  *transfer = std::move(transfers[choice]);
  transfers.erase(transfers.begin() + static_cast<std::ptrdiff_t>(choice));
  acquire(transfer->token);
  return true;
}

void transfer_end(const Transfer& transfer) {
  const Unwatched unwatched;
  CountingBarrier& barrier = counting(transfer.barrier);
  release(&barrier.tokens[barrier.parity]);
  barrier.missing_bytes -= static_cast<int64_t>(4 * transfer.words.size());
  end_phase_if_complete(barrier);
}

bool transfer_phase_ended(const char* what, Location where, uint64_t which, int parity) {
  const Unwatched unwatched;
  PhaseWish wish = {&counting(which), parity};
  wait_until(what, where, has_news, &wish);
  if (!has_ended(wish)) return false;
  acquire(&wish.barrier->tokens[parity]);
  return true;
}

void wgmma_fence_registers(Location where) {
  require_exactly("wgmma_fence", where, 90);
  thread_now->products_fenced = true;
}

void wgmma_commit_group(Location where) {
  const Unwatched unwatched;
  require_exactly("wgmma_commit", where, 90);
  for (PendingProduct& pending : thread_now->products) ++pending.groups_since;
}

namespace {

template <class Number>
void multiply(void* const* payloads) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& own = *static_cast<WarpgroupProduct*>(payloads[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < own.columns / 2; ++i) {
      const int row = g + i % 4 / 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
      const auto& of_column = *static_cast<WarpgroupProduct*>(payloads[column % 32]);
      float sum = own.accumulate ? own.sums[i] : 0.0f;
      for (int k = 0; k < 16; k += 2) {
        // Who has A[row][k] and the next one: register and lane as in mma.
        const auto& of_row = *static_cast<WarpgroupProduct*>(payloads[4 * g + k % 8 / 2]);
        const float2 left = Number::unpack(of_row.a[k / 8 * 2 + row / 8]);
        const float2 right = Number::unpack(of_column.rows[column / 32][k / 2]);
        sum += left.x * right.x;
        sum += left.y * right.y;
      }
      own.sums[i] = sum;
    }
  }
}

void multiply_warp(void* const* payloads, uint32_t) {
  if (static_cast<WarpgroupProduct*>(payloads[0])->brain) {
    multiply<Bf16>(payloads);
  } else {
    multiply<Fp16>(payloads);
  }
}

}  // namespace

void wgmma_issue(Location where, WarpgroupProduct& product) {
  const Unwatched unwatched;
  require_exactly("wgmma", where, 90);
  if (launch_now->threads % 128 != 0) fail("wgmma", where, "a block of incomplete warpgroups");
  if (!thread_now->products_fenced) fail("wgmma", where, "wgmma_fence is missing before it");
  std::copy(product.d, product.d + product.columns / 2, product.sums);
  auto& products = thread_now->products;
  for (const PendingProduct& earlier : products) {
    // A product that goes on with an unfinished one's sums.
    if (earlier.product.d == product.d) {
      std::copy(earlier.product.sums, earlier.product.sums + product.columns / 2, product.sums);
    }
  }
  warp_collective("wgmma", where, 0xffffffffu, false, &product, multiply_warp);
  products.push_back({product, 0});
}

bool wgmma_take(Location where, int pending, WarpgroupProduct* product) {
  const Unwatched unwatched;
  require_exactly("wgmma_wait", where, 90);
  thread_now->products_fenced = false;
  auto& products = thread_now->products;
  if (products.empty() || products.front().groups_since <= pending) return false;
  *product = products.front().product;
  products.erase(products.begin());
  return true;
}

}  // namespace erd::emulation

ERD_NAMESPACE_BEGIN

using namespace emulation;

void transfer_init(TransferBarrier* barrier, int arrivals, Location where) {
  const Unwatched unwatched;
  require("transfer_init", where, 90);
  check_shared("transfer_init", where, barrier, sizeof(*barrier), 8);
  auto& known = launch_now->counting_barriers;
  barrier->state = known.size() ^ kMark;
  known.emplace_back();
  known.back().arrivals = known.back().missing_arrivals = arrivals;
}

void transfer_expect(TransferBarrier* barrier, int bytes, Location where) {
  const Unwatched unwatched;
  require("transfer_expect", where, 90);
  CountingBarrier& counted = counting(transfer_barrier("transfer_expect", where, barrier->state));
  if (counted.missing_arrivals == 0) {
    fail("transfer_expect", where, "more arrivals than the barrier counts");
  }
  release(&counted.tokens[counted.parity]);
  --counted.missing_arrivals;
  counted.missing_bytes += bytes;
  end_phase_if_complete(counted);
}

ERD_NAMESPACE_END
