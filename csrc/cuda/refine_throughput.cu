// The collapsed refiner for many poses, on tensor cores (sm_80 and up).
//
//   for k in 1..K:  y <- y + W_out,k relu(W_in,k (x - project(y + root)) + b_in,k) + b_out,k
//
// A block holds the weights of as many stages as fit into its shared memory; where not all do, it
// runs over its poses once for each group of stages. A warp takes 32 poses (16 where registers are
// short) through these stages without leaving its registers: row g of a tile is a pose, lane 4 g +
// t owns every fourth of its joints, and that is just how the tensor cores hand over the outputs of
// one product and want the operands of the next (fragments.h). Within a group of stages
// poses are read once and written once; a root that is solved for anew in every stage reads the
// keypoints again.
#include "cuda/refine_collapsed.cuh"
#include "cuda/refine_kernels.h"

ERD_NAMESPACE_BEGIN

constexpr int kThroughputWarps = 8;

template <bool Split, class Layout>
constexpr int kRowTiles = !Split && Layout::joints <= 5 ? 2 : 1;

// Floats of a warp's scratch memory: eight poses on their way out, or the roots of its tiles.
ERD_HD int64_t scratch_floats(int64_t joints) { return 24 * joints > 128 ? 24 * joints : 128; }

template <class Number, bool Split, class Layout>
class WarpTile {
 public:
  static constexpr int row_tiles = kRowTiles<Split, Layout>;
  static constexpr int rows = 16 * row_tiles;
  // Where registers are short, every stage reads the keypoints anew.
  static constexpr bool keeps_keypoints = !Split || Layout::joints <= 5;

  ERD_DEVICE WarpTile(const RefineInputs& in, float* scratch, int32_t tile)
      : in_(in), scratch_(scratch), tile_(tile), lane_(threadIdx.x % 32) {}

  ERD_DEVICE void load(const JointRows& pose) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t sample = sample_of(r, half);
#pragma unroll
        for (int m = 0; m < Layout::joints; ++m) {
          const int joint = readable(joint_of(m));
          const Vec3<float> p = read_triple(pose, sample, joint);
          value(r, half, 3 * m) = p.x;
          value(r, half, 3 * m + 1) = p.y;
          value(r, half, 3 * m + 2) = p.z;
          if constexpr (keeps_keypoints) {
            keypoint_[r][half][m] = read_pair(in_.keypoints, sample, joint);
          }
        }
        if (in_.root_mode == RootMode::given) {
          root_[r][half] = read_triple(in_.root, sample, 0);
        }
#pragma unroll
        for (int i = Layout::values; i < 2 * Layout::tiles; ++i) value(r, half, i) = 0.0f;
      }
    }
  }

  // The loop over row tiles is not unrolled, the code is long; results pass through scratch memory
  // because registers have no index.
  ERD_DEVICE void solve_roots(const JointRows& pose) {
    __syncwarp();
    with_camera_model(in_.camera_model, [&](auto tag) {
#pragma unroll 1
      for (int i = 0; i < 2 * row_tiles; ++i) {
        const int row = 8 * i + lane_ / 4;
        const SolvedRoot solved = solve_shared_root<4, Layout::joints, decltype(tag)::model>(
            in_, pose, clamped(int64_t{tile_} * rows + row), lane_ % 4);
        if (lane_ % 4 == 0) {
          float* target = scratch_ + 4 * row;
          target[0] = solved.root.x;
          target[1] = solved.root.y;
          target[2] = solved.root.z;
          target[3] = solved.solved ? 1.0f : 0.0f;
        }
      }
    });
    __syncwarp();
    unsolved_ = 0;
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* source = scratch_ + 4 * (16 * r + 8 * half + lane_ / 4);
        root_[r][half] = {source[0], source[1], source[2]};
        if (source[3] == 0.0f) unsolved_ |= 1u << (2 * r + half);
      }
    }
    __syncwarp();
  }

  ERD_DEVICE void run_stage(const unsigned char* weights, const float* biases) {
    FeatureOperand<Number, Split, Layout> features[row_tiles];
    compute_features(features);
    const float* b_out = biases + in_.width + 2 * (lane_ % 4);
    const int chunks = in_.width / 16;
    if constexpr (Split) {
      // Increments are summed apart: next to a pose of half a metre they would lose their last
      // bits.
      float sum[row_tiles][Layout::tiles][4] = {};
      run_chunks(sum, features, weights, biases, chunks);
      add_bias(b_out, sum);
    } else {
      // Here they do not matter beside the rounding of the operands.
      run_chunks(y_, features, weights, biases, chunks);
      const float none[row_tiles][Layout::tiles][4] = {};
      add_bias(b_out, none);
    }
  }

  // To (N, J, 3), eight poses at a time through scratch memory, so that neighbouring lanes write
  // neighbouring addresses.
  ERD_DEVICE void store(float* output) {
    const int width = 3 * in_.joints;
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to_scratch(r, half);
        __syncwarp();
        const int64_t first = int64_t{tile_} * rows + 16 * r + 8 * half;
        const int64_t left = in_.count - first;
        const int count = width * static_cast<int>(left < 0 ? 0 : left < 8 ? left : 8);
        for (int i = lane_; i < count; i += 32) output[first * width + i] = scratch_[i];
        __syncwarp();
      }
    }
  }

 private:
  ERD_DEVICE int joint_of(int m) const { return 4 * m + lane_ % 4; }
  ERD_DEVICE int readable(int joint) const { return joint < in_.joints ? joint : in_.joints - 1; }
  ERD_DEVICE int64_t clamped(int64_t sample) const {
    return sample < in_.count ? sample : in_.count - 1;
  }
  ERD_DEVICE int64_t sample_of(int r, int half) const {
    return clamped(int64_t{tile_} * rows + 16 * r + 8 * half + lane_ / 4);
  }
  ERD_DEVICE bool is_active(int r, int half) const { return !(unsolved_ >> (2 * r + half) & 1); }
  // Coordinate i of the lane's joints, where the second product leaves it.
  ERD_DEVICE float& value(int r, int half, int i) { return y_[r][i / 2][2 * half + i % 2]; }

  ERD_DEVICE void compute_features(FeatureOperand<Number, Split, Layout> (&features)[row_tiles]) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Vec2<float> f[Layout::joints];
        if (static_cast<CameraModel>(in_.camera_model) == CameraModel::pinhole) {
          pinhole_features(r, half, f);
        } else {
          lens_features(r, half, f);
        }
        // Whatever was projected without a root: nothing times zero.
        const bool active = is_active(r, half);
#pragma unroll
        for (int m = 0; m < Layout::joints; ++m) {
          features[r].set(m, half,
                          Packed<Number, Split>::of(active ? f[m].x * in_.feature_scale : 0.0f,
                                                    active ? f[m].y * in_.feature_scale : 0.0f));
        }
      }
    }
  }

  ERD_DEVICE void pinhole_features(int r, int half, Vec2<float> (&f)[Layout::joints]) {
    const int64_t sample = sample_of(r, half);
    const Intrinsics<float> camera = read_intrinsics(in_.intrinsics, sample);
#pragma unroll
    for (int m = 0; m < Layout::joints; ++m) {
      const Vec3<float> p = {value(r, half, 3 * m), value(r, half, 3 * m + 1),
                             value(r, half, 3 * m + 2)};
      Vec2<float> keypoint;
      if constexpr (keeps_keypoints) {
        keypoint = keypoint_[r][half][m];
      } else {
        keypoint = read_pair(in_.keypoints, sample, readable(joint_of(m)));
      }
      f[m] = feature_of<CameraModel::pinhole>(in_, sample, joint_of(m), keypoint, p, root_[r][half],
                                              camera, DistortionCoefficients<float>::zero());
    }
  }

  // Distortion makes for long code: joints pass through scratch memory, where a loop can index
  // them.
  ERD_DEVICE void lens_features(int r, int half, Vec2<float> (&f)[Layout::joints]) {
    const int64_t sample = sample_of(r, half);
    const Intrinsics<float> camera = read_intrinsics(in_.intrinsics, sample);
    const DistortionCoefficients<float> d = read_distortion(in_.distortion, sample);
    to_scratch(r, half);
    with_lens(in_.camera_model, [&](auto tag) {
#pragma unroll 1
      for (int m = 0; m < Layout::joints; ++m) {
        const int joint = joint_of(m);
        if (joint >= in_.joints) break;
        float* slot = in_scratch(joint);
        const Vec2<float> feature = feature_of<decltype(tag)::model>(
            in_, sample, joint, read_pair(in_.keypoints, sample, joint),
            Vec3<float>{slot[0], slot[1], slot[2]}, root_[r][half], camera, d);
        slot[0] = feature.x;
        slot[1] = feature.y;
      }
    });
#pragma unroll
    for (int m = 0; m < Layout::joints; ++m) {
      f[m] = {0.0f, 0.0f};
      if (joint_of(m) < in_.joints) f[m] = {in_scratch(joint_of(m))[0], in_scratch(joint_of(m))[1]};
    }
  }

  // The lane's joint in scratch memory, which holds eight poses.
  ERD_DEVICE float* in_scratch(int joint) const {
    return scratch_ + 3 * (lane_ / 4 * in_.joints + joint);
  }

  ERD_DEVICE void to_scratch(int r, int half) {
#pragma unroll
    for (int m = 0; m < Layout::joints; ++m) {
      if (joint_of(m) >= in_.joints) continue;
      float* slot = in_scratch(joint_of(m));
      slot[0] = value(r, half, 3 * m);
      slot[1] = value(r, half, 3 * m + 1);
      slot[2] = value(r, half, 3 * m + 2);
    }
  }

  ERD_DEVICE void run_chunks(float (&sum)[row_tiles][Layout::tiles][4],
                             const FeatureOperand<Number, Split, Layout> (&features)[row_tiles],
                             const unsigned char* weights, const float* biases, int chunks) const {
    const float* bias = biases + 4 * (lane_ % 4);
    bool active[row_tiles][2];
#pragma unroll
    for (int i = 0; i < 2 * row_tiles; ++i) active[i / 2][i % 2] = is_active(i / 2, i % 2);
#pragma unroll 1
    for (int p = 0; p < chunks; ++p) {
      if constexpr (Split) {
        multiply_split_chunk<Number>(sum, features, active, bias, weights, lane_);
      } else {
        multiply_chunk(sum, features, active, bias, ChunkWeights<Layout>::load(weights, lane_));
      }
      weights += (Split ? 2 : 1) * Layout::chunk_bytes;
      bias += 16;
    }
  }

  ERD_DEVICE void add_bias(const float* b_out, const float (&sum)[row_tiles][Layout::tiles][4]) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
      for (int tile = 0; tile < Layout::tiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float increment = sum[r][tile][i] + b_out[8 * tile + i % 2];
          if (is_active(r, i / 2)) y_[r][tile][i] += increment;
        }
      }
    }
  }

  const RefineInputs& in_;
  float* scratch_;
  int32_t tile_;
  int lane_;
  float y_[row_tiles][Layout::tiles][4];
  Vec2<float> keypoint_[row_tiles][2][keeps_keypoints ? Layout::joints : 1];
  Vec3<float> root_[row_tiles][2];
  uint32_t unsolved_ = 0;  // bit 2 r + half: the pose has no root
};

template <class Number, bool Split, class Layout>
ERD_KERNEL(32 * kThroughputWarps, 1)
refine_throughput(const RefineInputs in, const int32_t resident) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Tile = WarpTile<Number, Split, Layout>;
  const int64_t stage_bytes = Layout::stage_bytes(in.width, Split);
  const int64_t stage_biases = Layout::stage_biases(in.width);
  SharedMemory memory;
  auto* weights = memory.take<unsigned char>(resident * stage_bytes);
  auto* biases = memory.take<float>(resident * stage_biases);
  auto* scratch = memory.take<float>(kThroughputWarps * scratch_floats(in.joints)) +
                  threadIdx.x / 32 * scratch_floats(in.joints);

  // No memory holds 2^31 tiles.
  const auto tiles = static_cast<int32_t>((in.count + Tile::rows - 1) / Tile::rows);
  const int64_t output_size = in.count * 3 * in.joints;
  const auto slice = [&](int stage) {
    return in.output + (in.every_stage ? stage * output_size : 0);
  };
  for (int first = 0; first < in.stages; first += resident) {
    const int last = first + resident < in.stages ? first + resident : in.stages;
    const unsigned char* source = in.fragments + first * stage_bytes;
    for (int64_t i = threadIdx.x; i < (last - first) * stage_bytes / 16; i += blockDim.x) {
      copy_async<16>(weights + 16 * i, source + 16 * i);
    }
    const float* source_biases = in.biases + first * stage_biases;
    for (int64_t i = threadIdx.x; i < (last - first) * stage_biases; i += blockDim.x) {
      copy_async<4>(biases + i, source_biases + i);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();

    const auto step = static_cast<int32_t>(int64_t{gridDim.x} * kThroughputWarps);
    const auto start =
        static_cast<int32_t>(int64_t{blockIdx.x} * kThroughputWarps + threadIdx.x / 32);
    for (int32_t i = start; i < tiles; i += step) {
      Tile tile(in, scratch, i);
      JointRows pose = first == 0 ? in.pose : dense_rows(slice(first - 1), in.joints, 3);
      tile.load(pose);
      for (int stage = first; stage < last; ++stage) {
        if (in.root_mode == RootMode::solve_each_stage && stage > first) {
          // The solve reads poses from memory.
          if (!in.every_stage) tile.store(slice(stage - 1));
          pose = dense_rows(slice(stage - 1), in.joints, 3);
        }
        if (in.root_mode == RootMode::solve_each_stage) {
          tile.solve_roots(pose);
        } else if (in.root_mode == RootMode::solve && stage == first) {
          tile.solve_roots(in.pose);
        }
        tile.run_stage(weights + (stage - first) * stage_bytes,
                       biases + (stage - first) * stage_biases);
        if (in.every_stage || stage + 1 == last) tile.store(slice(stage));
      }
    }
    __syncthreads();
  }
#endif
}

namespace {

template <bool Split, class Layout>
int64_t shared_bytes(const RefineCall& call, int64_t resident) {
  return shared_size<unsigned char>(resident * Layout::stage_bytes(call.width, Split)) +
         shared_size<float>(resident * Layout::stage_biases(call.width)) +
         shared_size<float>(kThroughputWarps * scratch_floats(call.joints));
}

template <bool Split, class Layout>
int64_t resident_stages(const RefineCall& call, const CudaDevice& device) {
  int64_t resident = call.stages;
  while (resident > 0 && shared_bytes<Split, Layout>(call, resident) > device.shared_bytes) {
    --resident;
  }
  return resident;
}

template <class Number, bool Split, class Layout>
void start(const RefineCall& call, const CudaDevice& device) {
  const int64_t resident = resident_stages<Split, Layout>(call, device);
  constexpr int64_t rows = WarpTile<Number, Split, Layout>::rows * kThroughputWarps;
  const LaunchShape shape = {grid_blocks(device, (call.count + rows - 1) / rows, 1),
                             32 * kThroughputWarps, shared_bytes<Split, Layout>(call, resident)};
  launch(refine_throughput<Number, Split, Layout>, device, shape, refine_inputs(call),
         static_cast<int32_t>(resident));
}

}  // namespace
ERD_NAMESPACE_END

namespace erd {

bool throughput_kernel_fits(const RefineCall& call, const CudaDevice& device) {
  bool fits = false;
  if (!fragments_exist(call) || device.code_capability < 80) return fits;
  with_collapsed_kernel(call, [&](auto kernel) {
    using K = decltype(kernel);
    fits = resident_stages<K::Split, typename K::Layout>(call, device) > 0;
  });
  return fits;
}

void run_refine_throughput(const RefineCall& call, const CudaDevice& device) {
  with_collapsed_kernel(call, [&](auto kernel) {
    using K = decltype(kernel);
    start<typename K::Number, K::Split, typename K::Layout>(call, device);
  });
}

}  // namespace erd
