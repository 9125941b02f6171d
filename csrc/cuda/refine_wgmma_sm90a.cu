// The collapsed refiner for many poses on Hopper, with warpgroup products (sm_90a).
//
//   for k in 1..K:  y <- y + W_out,k relu(W_in,k (x - project(y + root)) + b_in,k) + b_out,k
//
// As in refine_throughput.cu, a block holds the weights of as many stages as fit into its shared
// memory and runs over its poses once for each such group of stages; of the paper's size, all four
// fit. Each of its three warpgroups takes 64 poses through the stages, 16 a warp: row g or g + 8 of
// the warp is a pose, lane 4 g + t owns the joints t, t + 4, ... of both. Tensor cores read the
// weights from shared memory by themselves; the threads project, and turn the hidden units that the
// first product leaves in their registers into the operand of the second. They do so for one chunk
// of hidden units while the second product of the chunk before it runs; the other warpgroups are
// there to fill what gaps are left.
#include "cuda/fragments_wgmma.h"
#include "cuda/refine_joints.cuh"
#include "cuda/refine_kernels.h"
#include "cuda/vectors.h"

ERD_NAMESPACE_BEGIN

constexpr int kWarpgroups = 3;
constexpr int kRowsPerWarp = 16;
constexpr int kRowsPerBlock = 4 * kWarpgroups * kRowsPerWarp;

// Floats of a warp's scratch memory: four poses on their way out, or the roots of its poses.
ERD_HD int64_t wgmma_scratch_floats(int64_t joints) {
  return 12 * joints > 4 * kRowsPerWarp ? 12 * joints : 4 * kRowsPerWarp;
}

template <class Number, class Layout>
class WarpgroupTile {
 public:
  // `first` is the warp's first pose.
  ERD_DEVICE WarpgroupTile(const RefineInputs& in, float* scratch, int64_t first)
      : in_(in), scratch_(scratch), first_(first), lane_(threadIdx.x % 32) {}

  ERD_DEVICE void load(const JointRows& pose) {
#pragma unroll
    for (int i = 0; i < Layout::columns / 2; ++i) y_[i] = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t sample = sample_of(half);
      root_[half] = {0.0f, 0.0f, 0.0f};
      // Where the warp has no pose at all, it only lends its hands to the products.
      active_[half] = has_poses();
#pragma unroll
      for (int m = 0; m < Layout::slots; ++m) {
        const int joint = readable(joint_of(m));
        keypoint_[half][m] = read_pair(in_.keypoints, sample, joint);
        if (has_poses()) set_position(m, half, read_triple(pose, sample, joint));
      }
      if (in_.root_mode == RootMode::given) root_[half] = read_triple(in_.root, sample, 0);
    }
  }

  // The loop is not unrolled, the code is long; results pass through scratch memory because
  // registers have no index.
  ERD_DEVICE void solve_roots(const JointRows& pose) {
    if (!has_poses()) return;
    with_camera_model(in_.camera_model, [&](auto tag) {
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        const SolvedRoot solved = solve_shared_root<4, Layout::slots, decltype(tag)::model>(
            in_, pose, sample_of(half), lane_ % 4);
        if (lane_ % 4 == 0) {
          float* target = scratch_ + 4 * (8 * half + lane_ / 4);
          target[0] = solved.root.x;
          target[1] = solved.root.y;
          target[2] = solved.root.z;
          target[3] = solved.solved ? 1.0f : 0.0f;
        }
      }
    });
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* source = scratch_ + 4 * (8 * half + lane_ / 4);
      root_[half] = {source[0], source[1], source[2]};
      active_[half] = source[3] != 0.0f;
    }
    __syncwarp();
  }

  ERD_DEVICE void run_stage(const unsigned char* weights, const float* b_out) {
    uint32_t features[Layout::steps][4] = {};
    compute_features(features);
    add_bias(b_out);
    __syncwarp();

    Hidden hidden;
    Activated left, right;
    MatrixDescriptor w_in = describe_matrix(weights, Layout::step_bytes / 2, 128);
    MatrixDescriptor w_out =
        describe_matrix(weights + Layout::first_bytes, Layout::out_step_bytes / 2, 128);
    wgmma_fence();
    start_hidden(hidden, features, w_in);
    wgmma_wait<0>(hidden);
    activate(hidden, left);
#pragma unroll 1
    for (int rest = Layout::chunks(in_.width) - 2; rest > 0; rest -= 2) {
      turn(left, hidden, right, features, w_in, w_out);
      turn(right, hidden, left, features, w_in, w_out);
    }
    turn(left, hidden, right, features, w_in, w_out);
    wgmma_fence();
    start_increment(right, w_out);
    wgmma_wait<0>(y_);
  }

  // To (N, J, 3), four poses at a time through scratch memory, so that neighbouring lanes write
  // neighbouring addresses.
  ERD_DEVICE void store(float* output) {
    const int width = 3 * in_.joints;
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int64_t first = first_ + 4 * quarter;
      const int64_t left = in_.count - first;
      const int count = width * static_cast<int>(left < 0 ? 0 : left < 4 ? left : 4);
      to_scratch(quarter);
      __syncwarp();
      for (int i = lane_; i < count; i += 32) output[first * width + i] = scratch_[i];
      __syncwarp();
    }
  }

 private:
  using Hidden = float[Layout::chunk_units / 2];            // results of the first product
  using Activated = uint32_t[Layout::chunk_units / 16][4];  // operands of the second

  ERD_DEVICE bool has_poses() const { return first_ < in_.count; }
  ERD_DEVICE int joint_of(int m) const { return 4 * m + lane_ % 4; }
  ERD_DEVICE int readable(int joint) const { return joint < in_.joints ? joint : in_.joints - 1; }
  ERD_DEVICE int64_t sample_of(int half) const {
    const int64_t sample = first_ + 8 * half + lane_ / 4;
    return sample < in_.count ? sample : in_.count - 1;
  }

  // Where the second product leaves coordinate v of the lane's first four joints, and the two spare
  // values behind them.
  static ERD_DEVICE int index_of(int half, int v) { return 4 * (v / 2) + 2 * half + v % 2; }

  ERD_DEVICE void set_position(int m, int half, Vec3<float> p) {
    if (m < 4) {
      y_[index_of(half, 3 * m)] = p.x;
      y_[index_of(half, 3 * m + 1)] = p.y;
      y_[index_of(half, 3 * m + 2)] = p.z;
      return;
    }
    // Lanes 2 and 3 keep z of the joint that is lane 0's and 1's.
    const float z = __shfl_xor_sync(0xffffffffu, p.z, 2);
    y_[index_of(half, 12)] = lane_ % 4 < 2 ? p.x : z;
    y_[index_of(half, 13)] = p.y;
  }

  ERD_DEVICE Vec3<float> position(int m, int half) const {
    if (m < 4) {
      return {y_[index_of(half, 3 * m)], y_[index_of(half, 3 * m + 1)],
              y_[index_of(half, 3 * m + 2)]};
    }
    const float spare = y_[index_of(half, 12)];
    return {spare, y_[index_of(half, 13)], __shfl_xor_sync(0xffffffffu, spare, 2)};
  }

  // The operand of the first product. Whatever was projected without a root counts for nothing.
  ERD_DEVICE void compute_features(uint32_t (&features)[Layout::steps][4]) const {
    constexpr int last = Layout::slots - 1;
    const uint32_t ones = Number::pack(1.0f, 1.0f);
    const bool usual = static_cast<CameraModel>(in_.camera_model) == CameraModel::pinhole &&
                       in_.features == Features::residual;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vec2<float> f[Layout::slots];
      if (!usual) {
        any_features(half, f);
      } else if (in_.confidence.data != nullptr) {
        pinhole_residuals<true>(half, f);
      } else {
        pinhole_residuals<false>(half, f);
      }
#pragma unroll
      for (int m = 0; m < Layout::slots; ++m) {
        uint32_t packed = Number::pack(f[m].x * in_.feature_scale, f[m].y * in_.feature_scale);
        if (m == last && joint_of(m) >= Layout::joints) {
          packed = joint_of(m) == Layout::joints ? ones : 0u;
        }
        features[m / 2][2 * (m % 2) + half] = active_[half] ? packed : 0u;
      }
    }
  }

  // Lanes without a joint of their own take the last one's data: their weights are zero.
  template <bool Weighted>
  ERD_DEVICE void pinhole_residuals(int half, Vec2<float> (&f)[Layout::slots]) const {
    const int64_t sample = sample_of(half);
    const Intrinsics<float> camera = read_intrinsics(in_.intrinsics, sample);
#pragma unroll
    for (int m = 0; m < Layout::slots; ++m) {
      const float confidence = Weighted ? *in_.confidence.at(sample, readable(joint_of(m))) : 1.0f;
      f[m] = residual_feature<CameraModel::pinhole>(
          keypoint_[half][m], confidence, position(m, half), root_[half], camera,
          DistortionCoefficients<float>::zero(), in_.residual_limit);
    }
  }

  // Lenses and other features make for long code: a loop, that picks its joint's registers by
  // comparing.
  ERD_DEVICE void any_features(int half, Vec2<float> (&f)[Layout::slots]) const {
    const int64_t sample = sample_of(half);
    const Intrinsics<float> camera = read_intrinsics(in_.intrinsics, sample);
    const DistortionCoefficients<float> d = read_distortion(in_.distortion, sample);
    Vec3<float> positions[Layout::slots];
#pragma unroll
    for (int m = 0; m < Layout::slots; ++m) {
      positions[m] = position(m, half);
      f[m] = {0.0f, 0.0f};
    }
    with_camera_model(in_.camera_model, [&](auto tag) {
#pragma unroll 1
      for (int i = 0; i < Layout::slots; ++i) {
        Vec3<float> p = positions[0];
        Vec2<float> keypoint = keypoint_[half][0];
#pragma unroll
        for (int m = 1; m < Layout::slots; ++m) {
          p = m == i ? positions[m] : p;
          keypoint = m == i ? keypoint_[half][m] : keypoint;
        }
        const Vec2<float> feature = feature_of<decltype(tag)::model>(
            in_, sample, joint_of(i), keypoint, p, root_[half], camera, d);
#pragma unroll
        for (int m = 0; m < Layout::slots; ++m) f[m] = m == i ? feature : f[m];
      }
    });
  }

  // Rows 4 quarter to 4 quarter + 3.
  ERD_DEVICE void to_scratch(int quarter) {
#pragma unroll
    for (int m = 0; m < Layout::slots; ++m) {
      const Vec3<float> p = position(m, quarter / 2);
      if (lane_ / 16 != quarter % 2 || joint_of(m) >= in_.joints) continue;
      float* slot = scratch_ + 3 * (lane_ / 4 % 4 * in_.joints + joint_of(m));
      slot[0] = p.x;
      slot[1] = p.y;
      slot[2] = p.z;
    }
  }

  ERD_DEVICE void add_bias(const float* b_out) {
#pragma unroll
    for (int tile = 0; tile < Layout::columns / 8; ++tile) {
      const Two<float> bias = as_two(b_out + 8 * tile + 2 * (lane_ % 4));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (active_[half]) {
          y_[4 * tile + 2 * half] += bias.v[0];
          y_[4 * tile + 2 * half + 1] += bias.v[1];
        }
      }
    }
  }

  // The two products of one chunk of hidden units, from its weights.
  static ERD_DEVICE void start_hidden(Hidden& hidden, const uint32_t (&features)[Layout::steps][4],
                                      MatrixDescriptor w_in) {
#pragma unroll
    for (int s = 0; s < Layout::steps; ++s) {
      wgmma<Number, Layout::chunk_units>(hidden, features[s],
                                         advanced(w_in, s * Layout::step_bytes), s > 0);
    }
    wgmma_commit();
  }

  ERD_DEVICE void start_increment(const Activated& activated, MatrixDescriptor w_out) {
#pragma unroll
    for (int s = 0; s < Layout::chunk_units / 16; ++s) {
      wgmma<Number, Layout::columns>(y_, activated[s], advanced(w_out, s * Layout::out_step_bytes),
                                     true);
    }
    wgmma_commit();
  }

  static ERD_DEVICE void activate(const Hidden& hidden, Activated& activated) {
#pragma unroll
    for (int i = 0; i < Layout::chunk_units / 4; ++i) {
      activated[i / 4][i % 4] = Number::pack_relu(hidden[2 * i], hidden[2 * i + 1]);
    }
  }

  // Adds the increment of a chunk whose hidden units are `activated`, computes those of the next
  // chunk meanwhile, and moves on to that.
  ERD_DEVICE void turn(const Activated& activated, Hidden& hidden, Activated& next,
                       const uint32_t (&features)[Layout::steps][4], MatrixDescriptor& w_in,
                       MatrixDescriptor& w_out) {
    w_in = advanced(w_in, Layout::chunk_bytes);
    wgmma_fence();
    start_hidden(hidden, features, w_in);
    start_increment(activated, w_out);
    wgmma_wait<1>(hidden);
    activate(hidden, next);
    complete(next);
    wgmma_wait<0>(y_);
    w_out = advanced(w_out, Layout::chunk_bytes);
  }

  const RefineInputs& in_;
  float* scratch_;
  int64_t first_;
  int lane_;
  float y_[Layout::columns / 2];
  Vec2<float> keypoint_[2][Layout::slots];
  Vec3<float> root_[2];
  bool active_[2];
};

template <class Number, class Layout>
ERD_KERNEL(128 * kWarpgroups, 1)
refine_wgmma(const RefineInputs in, const int32_t resident) {
  using Tile = WarpgroupTile<Number, Layout>;
  const int stage_bytes = static_cast<int>(Layout::stage_bytes(in.width));
  SharedMemory memory;
  auto* weights = memory.take<unsigned char>(int64_t{resident} * stage_bytes);
  auto* biases = memory.take<float>(resident * Layout::stage_biases);
  auto* scratch = memory.take<float>(4 * kWarpgroups * wgmma_scratch_floats(in.joints)) +
                  threadIdx.x / 32 * wgmma_scratch_floats(in.joints);
  auto* ready = memory.take<TransferBarrier>(resident);
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int i = 0; i < resident; ++i) transfer_init(ready + i, 1);
  }
  __syncthreads();

  const int64_t output_size = in.count * 3 * in.joints;
  const auto slice = [&](int stage) {
    return in.output + (in.every_stage ? stage * output_size : 0);
  };
  int parity = 0;
  for (int first = 0; first < in.stages; first += resident) {
    const int last = first + resident < in.stages ? first + resident : in.stages;
    if (threadIdx.x == 0) {
      // Stage by stage, so that the first one can begin.
#pragma unroll 1
      for (int stage = first; stage < last; ++stage) {
        constexpr int bias_bytes = Layout::stage_biases * static_cast<int>(sizeof(float));
        const int place = stage - first;
        transfer_expect(ready + place, stage_bytes + bias_bytes);
        bulk_copy(weights + place * stage_bytes, in.fragments + int64_t{stage} * stage_bytes,
                  stage_bytes, ready + place);
        bulk_copy(biases + place * Layout::stage_biases,
                  in.biases + int64_t{stage} * Layout::stage_biases, bias_bytes, ready + place);
      }
    }

    const int warp = threadIdx.x / 32;
    for (int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + warp * kRowsPerWarp;
         row - warp % 4 * kRowsPerWarp < in.count; row += int64_t{gridDim.x} * kRowsPerBlock) {
      Tile tile(in, scratch, row);
      const auto pose_before = [&](int stage) {
        return stage == 0 ? in.pose : dense_rows(slice(stage - 1), in.joints, 3);
      };
      tile.load(pose_before(first));
#pragma unroll 1
      for (int stage = first; stage < last; ++stage) {
        if (in.root_mode == RootMode::solve_each_stage) {
          // The solve reads poses from memory.
          if (stage > first && !in.every_stage) tile.store(slice(stage - 1));
          tile.solve_roots(pose_before(stage));
        } else if (in.root_mode == RootMode::solve && stage == first) {
          tile.solve_roots(in.pose);
        }
        transfer_wait(ready + (stage - first), parity);
        tile.run_stage(weights + (stage - first) * stage_bytes,
                       biases + (stage - first) * Layout::stage_biases);
        if (in.every_stage || stage + 1 == last) tile.store(slice(stage));
      }
    }
    __syncthreads();
    parity ^= 1;
  }
}

namespace {

template <class Layout>
int64_t shared_bytes(const RefineCall& call, int64_t resident) {
  return shared_size<unsigned char>(resident * Layout::stage_bytes(call.width)) +
         shared_size<float>(resident * Layout::stage_biases) +
         shared_size<float>(4 * kWarpgroups * wgmma_scratch_floats(call.joints)) +
         shared_size<TransferBarrier>(resident);
}

template <class Layout>
int64_t resident_stages(const RefineCall& call, const CudaDevice& device) {
  int64_t resident = call.stages;
  while (resident > 0 && shared_bytes<Layout>(call, resident) > device.shared_bytes) --resident;
  return resident;
}

template <class Number, class Layout>
void start(const RefineCall& call, const CudaDevice& device) {
  const int64_t resident = resident_stages<Layout>(call, device);
  const int64_t tiles = (call.count + kRowsPerBlock - 1) / kRowsPerBlock;
  const LaunchShape shape = {grid_blocks(device, tiles, 1), 128 * kWarpgroups,
                             shared_bytes<Layout>(call, resident)};
  launch(refine_wgmma<Number, Layout>, device, shape, refine_inputs(call),
         static_cast<int32_t>(resident));
}

}  // namespace
ERD_NAMESPACE_END

namespace erd {

bool wgmma_kernel_fits(const RefineCall& call, const CudaDevice& device) {
  // Hopper alone has these instructions.
  if (!wgmma_fragments_exist(call) || device.compute_capability != 90) return false;
  bool fits = false;
  with_wgmma_layout(call.joints, [&](auto layout) {
    fits = resident_stages<decltype(layout)>(call, device) > 0;
  });
  return fits;
}

void run_refine_wgmma(const RefineCall& call, const CudaDevice& device) {
  with_wgmma_layout(call.joints, [&](auto layout) {
    using Layout = decltype(layout);
    if (call.precision == Precision::bf16) {
      start<Bf16, Layout>(call, device);
    } else {
      start<Fp16, Layout>(call, device);
    }
  });
}

}  // namespace erd
