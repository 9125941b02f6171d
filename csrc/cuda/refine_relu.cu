// The refiner with the relu block on tensor cores: all stages of the descent (paper, Eq. 1 and 2)
// in one launch, each stage a chain of four layers,
//
//   h <- relu(W_in f + b_in),  twice h <- h + relu(W h + b),  y <- y + W_out h + b_out.
//
// A block of 8 warps takes a tile of poses through all stages, then the next tile: 128 or 64 poses
// where there are many, 16 where there are few and every multiprocessor shall have some. Poses are
// the rows of each product, one warp owns up to 64 of them and up to 64 outputs. The activations h
// lie in shared memory in 16 bits; a layer's sums stay in registers until the whole block has read
// its inputs, then replace them. The pose y stays in float32. Weights come in the tensor cores' own
// order (fragments_relu.h) as one linear stream, through a ring of asynchronous copies that runs on
// across layers, stages and tiles.
//
// An output's sum runs over its inputs in their order, whatever the tile: a sample's result is the
// same bit for bit wherever it lies in the batch.

#include "cuda/refine_kernels.h"
#include "cuda/refine_relu.cuh"
#include "cuda/refine_samples.cuh"

ERD_NAMESPACE_BEGIN

namespace {

template <class Number, bool Split, int M>
class ReluTile {
 public:
  const ReluPlan& plan;
  const SampleTile<float>& samples;
  const Activations<Number, Split>& activations;
  const int32_t* active;
  FragmentStream<kPairBytes<Split>>& weights;

  // Layer `index` of a stage, whose biases start at `biases`.
  ERD_DEVICE void run_layer(int index, const float* biases) {
    const ReluLayer layer = plan.sizes.layer(index);
    const int pairs = (layer.pairs + plan.warp_columns - 1) / plan.warp_columns;
    if (pairs <= 1) {
      run_pairs<1>(index, layer, biases);
    } else if (pairs <= 2) {
      run_pairs<2>(index, layer, biases);
    } else {
      run_pairs<kReluMostPairs>(index, layer, biases);
    }
  }

 private:
  template <int Pairs>
  ERD_DEVICE void run_pairs(int index, const ReluLayer& layer, const float* biases) {
    const int warp = static_cast<int>(threadIdx.x / 32);
    const WarpPlace place = {warp / plan.warp_columns * 16 * M, warp % plan.warp_columns * Pairs};
    const float scale = biases[index];
    const float* bias = biases + kReluLayers + index * plan.sizes.width;
    float sum[M][2 * Pairs][4];
    multiply_layer<Number, Split, M, Pairs>(activations, layer, place, weights, sum);
    if (index + 1 == kReluLayers) {
      finish_layer<M, Pairs>(layer, place, bias, scale, sum,
                             [&](int pose, int column, float first, float second) {
                               if (!active[pose]) return;
                               float* y = samples.sample(pose).data[kSlotPose];
                               if (column < plan.sizes.outputs) y[column] += first;
                               if (column + 1 < plan.sizes.outputs) y[column + 1] += second;
                             });
      return;
    }
    // The results replace what other warps may still be reading.
    __syncthreads();
    finish_layer<M, Pairs>(
        layer, place, bias, scale, sum, [&](int pose, int column, float first, float second) {
          float2 h = {relu(first), relu(second)};
          if (index > 0) {
            const float2 before = activations.load(pose, column);
            h.x += before.x;
            h.y += before.y;
          }
          activations.store(pose, column, NumberPair<Number, Split>::of(h.x, h.y));
        });
  }
};

// M: groups of 16 poses per warp.
template <class Number, bool Split, int M>
ERD_KERNEL(kReluThreads, 1)
refine_relu(const RefineCall call, const ReluPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  SharedMemory memory;
  const int poses = plan.poses;
  auto* ring = memory.take<unsigned char>(int64_t{plan.ring} * plan.piece_bytes);
  auto* high = memory.take<uint16_t>(int64_t{poses} * plan.row_halves);
  auto* low = Split ? memory.take<uint16_t>(int64_t{poses} * plan.row_halves) : high;
  const SampleTile<float> samples(
      memory.take<float>(int64_t{poses} * SampleTile<float>::pitch(call.joints)), call.joints);
  auto* active = memory.take<int32_t>(poses);
  const Activations<Number, Split> activations(high, low, plan.row_halves);

  const int thread = static_cast<int>(threadIdx.x);
  const int stages = static_cast<int>(call.stages);
  const int64_t tiles = (call.count + poses - 1) / poses;
  const int64_t own_tiles = (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
  FragmentStream<kPairBytes<Split>> weights(call, plan, ring, own_tiles);
  ReluTile<Number, Split, M> tile = {plan, samples, activations, active, weights};

  for (int64_t first = int64_t{blockIdx.x} * poses; first < call.count;
       first += int64_t{gridDim.x} * poses) {
    samples.load(call, first, poses);
    if (thread < poses) active[thread] = 1;
    __syncthreads();
    const float* biases = call.fragment_biases;
    for (int stage = 0; stage < stages; ++stage, biases += plan.sizes.stage_biases()) {
      if (call.root_mode == RootMode::solve_each_stage ||
          (call.root_mode == RootMode::solve && stage == 0)) {
        if (thread < poses) active[thread] = solve_sample_root(call, samples.sample(thread));
        __syncthreads();
      }
      // The first layer's padding: columns that hold the last stage's activations.
      const int padding = plan.sizes.layer(0).steps * 16 - plan.sizes.features;
      for (int i = 2 * (thread / poses); i < padding; i += 2 * (kReluThreads / poses)) {
        activations.store(thread % poses, plan.sizes.features + i, {0, 0});
      }
      tile_features(call, samples, poses, [&](int p, int e, Vec2<float> pair) {
        activations.store(p, e,
                          NumberPair<Number, Split>::of(pair.x * call.feature_scale,
                                                        pair.y * call.feature_scale));
      });
      for (int layer = 0; layer < kReluLayers; ++layer) tile.run_layer(layer, biases);
      __syncthreads();
      if (call.every_stage || stage + 1 == stages) samples.store_pose(call, stage, first, poses);
    }
    __syncthreads();
  }
#endif
}

int64_t shared_bytes(const RefineCall& call, const ReluPlan& plan, bool split) {
  return shared_size<unsigned char>(int64_t{plan.ring} * plan.piece_bytes) +
         (split ? 2 : 1) * shared_size<uint16_t>(int64_t{plan.poses} * plan.row_halves) +
         shared_size<float>(int64_t{plan.poses} * SampleTile<float>::pitch(call.joints)) +
         shared_size<int32_t>(plan.poses);
}

// Room for the weights of 32 inputs at width 256 (16 in split precision): one piece ought
// to be worked on for longer than the next one takes to arrive.
constexpr int kPieceBytes = 16 * 1024;

// A plan for tiles of this size; poses is 0 where none fits.
ReluPlan make_plan(const RefineCall& call, const CudaDevice& device, int poses) {
  const bool split = call.precision == Precision::split;
  ReluPlan plan;
  plan.sizes = relu_sizes(call);
  plan.poses = poses;
  plan.warp_columns = poses == 128 ? kReluWarps / 2 : kReluWarps;
  int widest_pairs = 0, columns = 0;
  for (int i = 0; i < kReluLayers; ++i) {
    const ReluLayer layer = plan.sizes.layer(i);
    widest_pairs = layer.pairs > widest_pairs ? layer.pairs : widest_pairs;
    columns = layer.steps * 16 > columns ? layer.steps * 16 : columns;
  }
  plan.row_halves = columns + 8;
  const int step_bytes = widest_pairs * (split ? 1024 : 512);
  plan.piece_bytes = step_bytes > kPieceBytes ? step_bytes : kPieceBytes;
  const bool fits_registers = widest_pairs <= kReluMostPairs * plan.warp_columns;
  for (plan.ring = 3; plan.ring >= 2; --plan.ring) {
    if (fits_registers && shared_bytes(call, plan, split) <= device.shared_bytes) return plan;
  }
  plan.poses = 0;
  return plan;
}

// An estimate of how long a tile takes, not measured on a GPU yet: the smallest mostly waits for
// the weights, the largest computes.
int tile_cost(int poses) { return poses == 128 ? 5 : poses == 64 ? 3 : 2; }

// The plan that takes the least time; poses is 0 where none fits.
ReluPlan choose_plan(const RefineCall& call, const CudaDevice& device) {
  ReluPlan best;
  best.poses = 0;
  int64_t best_cost = 0;
  for (const int poses : {128, 64, 16}) {
    if (call.variant == RefineVariant::latency && poses != 16) continue;
    if (call.variant == RefineVariant::throughput && best.poses != 0) continue;
    const ReluPlan plan = make_plan(call, device, poses);
    if (plan.poses == 0) continue;
    const int64_t tiles = (call.count + poses - 1) / poses;
    const int64_t rounds = (tiles + device.multiprocessors - 1) / device.multiprocessors;
    const int64_t cost = rounds * tile_cost(poses);
    if (best.poses == 0 || cost < best_cost) {
      best = plan;
      best_cost = cost;
    }
  }
  return best;
}

template <class Number, bool Split>
void start(const RefineCall& call, const CudaDevice& device, const ReluPlan& plan) {
  const int64_t tiles = (call.count + plan.poses - 1) / plan.poses;
  const LaunchShape shape = {grid_blocks(device, tiles, 1), kReluThreads,
                             shared_bytes(call, plan, Split)};
  launch(plan.poses == 16 ? refine_relu<Number, Split, 1> : refine_relu<Number, Split, 4>, device,
         shape, call, plan);
}

}  // namespace

ERD_NAMESPACE_END

namespace erd {

bool relu_kernel_fits(const RefineCall& call, const CudaDevice& device) {
  return relu_fragments_exist(call) && call.precision != Precision::native &&
         device.code_capability >= 80 && choose_plan(call, device).poses != 0;
}

void run_refine_relu(const RefineCall& call, const CudaDevice& device) {
  const ReluPlan plan = choose_plan(call, device);
  switch (call.precision) {
    case Precision::split:
      return start<Fp16, true>(call, device, plan);
    case Precision::bf16:
      return start<Bf16, false>(call, device, plan);
    default:
      return start<Fp16, false>(call, device, plan);
  }
}

}  // namespace erd
