// The refiner by plain multiply-adds, float32 and float64: all stages of the descent (paper, Eq. 1
// and 2) in one launch,
//
//   for k in 1..K:  y <- y + R_k(features(x, project(y + root)))
//
// A block takes a tile of up to 64 poses through all stages, then the next tile. Poses, features
// and activations stay in shared memory, activations as [unit][pose]. In a matrix product a thread
// owns four neighbouring poses and up to eight outputs: its sums stay in registers while the inputs
// run, and both operands come from shared memory in 16-byte pieces. The weights of all layers,
// stage after stage, are one long stream of small pieces which a ring of asynchronous copies brings
// in ahead of their use; it runs on across layers, stages and tiles.
//
// Each output is one chain of multiply-adds over its inputs in their order, whatever the size of
// the tile and of the batch, so a sample's result is the same bit for bit wherever it lies.
#include <stdexcept>
#include <string>

#include "cuda/refine_kernels.h"
#include "cuda/refine_simt.cuh"

ERD_NAMESPACE_BEGIN

namespace {

// Sizes of the block's shared memory, in elements of S.
template <class S>
struct SharedSizes {
  int samples, features, hidden, ring;

  ERD_HD SharedSizes(const RefineCall& call, const SimtPlan& plan)
      : samples(SampleTile<S>::pitch(call.joints) * plan.poses),
        features(round_up(feature_count(call), 4) * plan.poses),
        hidden(round_up(static_cast<int>(call.width), 4) * plan.poses),
        ring(kRing * plan.pass_rows * kPiecePitch<S>) {}
};

template <class S>
ERD_KERNEL(kSimtThreads, 1)
refine_simt(const RefineCall call, const SimtPlan plan) {
  SharedMemory memory;
  const SharedSizes<S> sizes(call, plan);
  S* ring = memory.take<S>(sizes.ring);
  const SampleTile<S> tile(memory.take<S>(sizes.samples), call.joints);
  S* features = memory.take<S>(sizes.features);
  S* hidden = memory.take<S>(sizes.hidden);
  S* next_hidden = plan.relu_block ? memory.take<S>(sizes.hidden) : hidden;
  auto* active = memory.take<int32_t>(plan.poses);

  const int thread = static_cast<int>(threadIdx.x);
  const int poses = plan.poses;
  const int stages = static_cast<int>(call.stages);
  for (int i = feature_count(call) * poses + thread; i < sizes.features; i += kSimtThreads) {
    features[i] = S(0);
  }
  for (int i = static_cast<int>(call.width) * poses + thread; i < sizes.hidden; i += kSimtThreads) {
    hidden[i] = S(0);
    next_hidden[i] = S(0);
  }

  const int64_t tiles = (call.count + poses - 1) / poses;
  const int64_t own_tiles = (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
  WeightStream<S> weights(call, plan, ring, own_tiles);

  for (int64_t first = int64_t{blockIdx.x} * poses; first < call.count;
       first += int64_t{gridDim.x} * poses) {
    tile.load(call, first, poses);
    if (thread < poses) active[thread] = 1;
    __syncthreads();
    for (int stage = 0; stage < stages; ++stage) {
      if (call.root_mode == RootMode::solve_each_stage ||
          (call.root_mode == RootMode::solve && stage == 0)) {
        if (thread < poses) active[thread] = solve_sample_root(call, tile.sample(thread));
        __syncthreads();
      }
      tile_features(call, tile, poses, [&](int p, int e, Vec2<S> pair) {
        features[e * poses + p] = pair.x;
        features[(e + 1) * poses + p] = pair.y;
      });

      // The stream's barriers stand between the layers' stores and the next layer's loads.
      S* current = hidden;
      S* other = next_hidden;
      for (int index = 0; index < plan.layers(); ++index) {
        const Layer<S> layer = layer_of<S>(call, plan, stage, index);
        const S* in = index == 0 ? features : current;
        const bool is_first = index == 0;
        const bool is_last = index + 1 == plan.layers();
        S* const before = current;
        S* const after = is_first ? current : other;
        multiply(layer, plan, in, weights, [&](int row, int pose, const S(&sum)[kPosesPerThread]) {
          if (is_last) {
#pragma unroll
            for (int c = 0; c < kPosesPerThread; ++c) {
              S& y = tile.sample(pose + c).data[kSlotPose][row];
              y = active[pose + c] ? y + sum[c] : y;
            }
            return;
          }
          Four<S> result;
          if (is_first) {
#pragma unroll
            for (int c = 0; c < kPosesPerThread; ++c) result.v[c] = relu(sum[c]);
          } else {
            const Four<S> old = as_four(before + row * poses + pose);
#pragma unroll
            for (int c = 0; c < kPosesPerThread; ++c) {
              result.v[c] = old.v[c] + relu(sum[c]);
            }
          }
          *reinterpret_cast<Four<S>*>(after + row * poses + pose) = result;
        });
        if (!is_first) {
          other = current;
          current = after;
        }
      }
      __syncthreads();
      if (call.every_stage || stage + 1 == stages) tile.store_pose(call, stage, first, poses);
    }
    __syncthreads();
  }
}

constexpr int kMostPoses = 64;
// Most rows (outputs) that a block works on at a time, and as few as it may be told to.
constexpr int kMostPassRows = 128;
constexpr int kLeastPassRows = 2;

SimtPlan make_plan(const RefineCall& call, int poses, int pass_rows) {
  const int groups = kSimtThreads * kPosesPerThread / poses;
  return {poses, groups < pass_rows ? groups : pass_rows, pass_rows,
          call.block == RegressorBlock::relu};
}

template <class S>
int64_t shared_bytes(const RefineCall& call, const SimtPlan& plan) {
  const SharedSizes<S> sizes(call, plan);
  return shared_size<S>(sizes.ring) + shared_size<S>(sizes.samples) +
         shared_size<S>(sizes.features) + (plan.relu_block ? 2 : 1) * shared_size<S>(sizes.hidden) +
         shared_size<int32_t>(plan.poses);
}

// The largest tile that fits, halved while some multiprocessors would have none.
template <class S>
SimtPlan choose_plan(const RefineCall& call, const CudaDevice& device) {
  const auto fits = [&](const SimtPlan& plan) {
    return shared_bytes<S>(call, plan) <= device.shared_bytes;
  };
  int poses = kMostPoses;
  while (poses > kPosesPerThread && (!fits(make_plan(call, poses, kMostPassRows)) ||
                                     (call.count + poses - 1) / poses < device.multiprocessors)) {
    poses /= 2;
  }
  int pass_rows = kMostPassRows;
  while (pass_rows > kLeastPassRows && !fits(make_plan(call, poses, pass_rows))) pass_rows /= 2;
  return make_plan(call, poses, pass_rows);
}

template <class S>
void run(const RefineCall& call, const CudaDevice& device) {
  const SimtPlan plan = choose_plan<S>(call, device);
  const int64_t bytes = shared_bytes<S>(call, plan);
  if (bytes > device.shared_bytes) {
    throw std::runtime_error("erd_cuda: refine with " + std::to_string(call.joints) +
                             " joints and width " + std::to_string(call.width) + " needs " +
                             std::to_string(bytes) + " bytes of shared memory, this GPU has " +
                             std::to_string(device.shared_bytes) +
                             " a block: use a narrower network, float32, or the CPU");
  }
  const int64_t tiles = (call.count + plan.poses - 1) / plan.poses;
  launch(refine_simt<S>, device, {grid_blocks(device, tiles, 1), kSimtThreads, bytes}, call, plan);
}

}  // namespace

ERD_NAMESPACE_END

namespace erd {

void run_refine_simt(const RefineCall& call, const CudaDevice& device) {
  if (call.scalar == ScalarType::float32) {
    run<float>(call, device);
  } else {
    run<double>(call, device);
  }
}

}  // namespace erd
