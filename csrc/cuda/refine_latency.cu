// The collapsed refiner for few poses, on tensor cores (sm_80 and up).
//
// A block takes 16 poses through all stages. Between the products a warp has one pose (two where
// registers are short) and a lane is one of its joints; in the products the 16 poses are the rows
// of a tile and every warp has some of the hidden units, whose weights it reads from the cache
// straight into registers, before the features they wait for are there. The warps' shares of the
// increments meet in shared memory: two barriers per stage, and a block reads every weight
// once for 16 poses.
#include "cuda/refine_collapsed.cuh"
#include "cuda/refine_kernels.h"

ERD_NAMESPACE_BEGIN

constexpr int kPoses = 16;  // of a block

// Eight warps have twice the registers of sixteen, and need them for these sizes.
template <bool Split, class Layout>
constexpr int kWarps = Split || Layout::joints > 5 ? 8 : 16;

// Row pitches that keep the lanes of a warp on different banks, in units of 32 bits.
template <class Layout>
constexpr int kFeaturePitch = Layout::joints == 8 ? 36 : 20;
template <class Layout>
constexpr int kSharePitch = Layout::columns + 8;

// What a lane knows of one pose.
struct JointState {
  int64_t sample;
  Vec3<float> pose;
  Vec2<float> keypoint;
  Vec3<float> root;
  bool active;  // has a root; others keep their pose
  bool writes;
};

// The lane's operand out of the features in shared memory: word j of a row is joint j.
template <class Number, bool Split, class Layout>
ERD_DEVICE FeatureOperand<Number, Split, Layout> read_features(const Packed<Number, Split>* rows,
                                                               int lane) {
  FeatureOperand<Number, Split, Layout> operand;
#pragma unroll
  for (int m = 0; m < Layout::joints; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      operand.set(m, half, rows[(lane / 4 + 8 * half) * kFeaturePitch<Layout> + 4 * m + lane % 4]);
    }
  }
  return operand;
}

template <class Number, bool Split, class Layout>
ERD_KERNEL((32 * kWarps<Split, Layout>), 1)
refine_latency(const RefineInputs in) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  constexpr int warps = kWarps<Split, Layout>;
  constexpr int poses = kPoses / warps;  // of a warp
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  SharedMemory memory;
  auto* features = memory.take<Packed<Number, Split>>(kPoses * kFeaturePitch<Layout>);
  auto* shares = memory.take<float>(warps * kPoses * kSharePitch<Layout>);

  const int chunks = in.width / 16;
  const int sharing = chunks < warps ? chunks : warps;
  const int64_t stage_bytes = Layout::stage_bytes(in.width, Split);
  const auto weights_of = [&](int stage, int chunk) {
    return in.fragments + stage * stage_bytes + chunk * (Split ? 2 : 1) * Layout::chunk_bytes;
  };
  const bool has_joint = lane < in.joints;
  const int joint = has_joint ? lane : in.joints - 1;
  // Where the second product leaves this joint's coordinates.
  const int first_value = 3 * (lane / 4);
  const auto column = [&](int c) {
    return 8 * ((first_value + c) / 2) + 2 * (lane % 4) + (first_value + c) % 2;
  };

  const int64_t tiles = (in.count + kPoses - 1) / kPoses;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    JointState state[poses] = {};
#pragma unroll
    for (int i = 0; i < poses; ++i) {
      JointState& s = state[i];
      const int64_t row = tile * kPoses + warp * poses + i;
      s.sample = row < in.count ? row : in.count - 1;
      s.writes = has_joint && row < in.count;
      s.active = true;
      s.pose = read_triple(in.pose, s.sample, joint);
      s.keypoint = read_pair(in.keypoints, s.sample, joint);
      s.root = {0.0f, 0.0f, 0.0f};
      if (in.root_mode == RootMode::given) s.root = read_triple(in.root, s.sample, 0);
    }
    JointRows stored = in.pose;

#pragma unroll 1
    for (int stage = 0; stage < in.stages; ++stage) {
      ChunkWeights<Layout> weights;
      if constexpr (!Split) {
        if (warp < sharing) weights = ChunkWeights<Layout>::load(weights_of(stage, warp), lane);
      }
      with_camera_model(in.camera_model, [&](auto tag) {
        constexpr CameraModel model = decltype(tag)::model;
#pragma unroll
        for (int i = 0; i < poses; ++i) {
          JointState& s = state[i];
          // Rows past the end do not solve: they would read a pose while its own warp writes it.
          if (in.solves(stage) && tile * kPoses + warp * poses + i < in.count) {
            const auto solved = solve_shared_root<32, 1, model>(in, stored, s.sample, lane);
            s.root = solved.root;
            s.active = solved.solved;
          }
          Vec2<float> f = feature_of<model>(in, s.sample, lane, s.keypoint, s.pose, s.root,
                                            read_intrinsics(in.intrinsics, s.sample),
                                            read_distortion(in.distortion, s.sample));
          if (!s.active) f = {0.0f, 0.0f};
          if (lane < 4 * Layout::joints) {
            features[(warp * poses + i) * kFeaturePitch<Layout> + lane] =
                Packed<Number, Split>::of(f.x * in.feature_scale, f.y * in.feature_scale);
          }
        }
      });
      __syncthreads();

      const float* biases = in.biases + stage * Layout::stage_biases(in.width);
      if (warp < sharing) {
        const FeatureOperand<Number, Split, Layout> operand[1] = {
            read_features<Number, Split, Layout>(features, lane)};
        const bool all_active[1][2] = {{true, true}};
        float share[1][Layout::tiles][4] = {};
#pragma unroll 1
        for (int chunk = warp; chunk < chunks; chunk += warps) {
          const float* bias = biases + 16 * chunk + 4 * (lane % 4);
          if constexpr (Split) {
            multiply_split_chunk<Number>(share, operand, all_active, bias, weights_of(stage, chunk),
                                         lane);
          } else {
            if (chunk != warp) weights = ChunkWeights<Layout>::load(weights_of(stage, chunk), lane);
            multiply_chunk(share, operand, all_active, bias, weights);
          }
        }
        float* target = shares + (warp * kPoses + lane / 4) * kSharePitch<Layout> + 2 * (lane % 4);
#pragma unroll
        for (int t = 0; t < Layout::tiles; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            target[8 * t + i / 2 * 8 * kSharePitch<Layout> + i % 2] = share[0][t][i];
          }
        }
      }
      __syncthreads();

      // A solve before the next stage reads the pose from memory.
      const bool stores =
          stage + 1 == in.stages || in.every_stage || in.root_mode == RootMode::solve_each_stage;
      float* slice = in.output + (in.every_stage ? stage * in.count * 3 * in.joints : 0);
#pragma unroll
      for (int i = 0; i < poses; ++i) {
        JointState& s = state[i];
        if (s.active && has_joint) {
          float increment[3];
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            const float* source = shares + (warp * poses + i) * kSharePitch<Layout> + column(c);
            float sum = source[0];
            for (int w = 1; w < sharing; ++w) sum += source[w * kPoses * kSharePitch<Layout>];
            increment[c] = sum + biases[in.width + column(c)];
          }
          s.pose.x += increment[0];
          s.pose.y += increment[1];
          s.pose.z += increment[2];
        }
        if (stores && s.writes) {
          float* target = slice + (s.sample * in.joints + joint) * 3;
          target[0] = s.pose.x;
          target[1] = s.pose.y;
          target[2] = s.pose.z;
        }
      }
      if (stores) {
        stored = dense_rows(slice, in.joints, 3);
        __syncwarp();
      }
    }
  }
#endif
}

namespace {

template <class Number, bool Split, class Layout>
int64_t shared_bytes() {
  return shared_size<Packed<Number, Split>>(kPoses * kFeaturePitch<Layout>) +
         shared_size<float>(int64_t{kWarps<Split, Layout>} * kPoses * kSharePitch<Layout>);
}

template <class Number, bool Split, class Layout>
void start(const RefineCall& call, const CudaDevice& device) {
  const int64_t tiles = (call.count + kPoses - 1) / kPoses;
  const LaunchShape shape = {grid_blocks(device, tiles, 1), 32 * kWarps<Split, Layout>,
                             shared_bytes<Number, Split, Layout>()};
  launch(refine_latency<Number, Split, Layout>, device, shape, refine_inputs(call));
}

}  // namespace
ERD_NAMESPACE_END

namespace erd {

bool latency_kernel_fits(const RefineCall& call, const CudaDevice& device) {
  bool fits = false;
  if (!fragments_exist(call) || device.code_capability < 80) return fits;
  with_collapsed_kernel(call, [&](auto kernel) {
    using K = decltype(kernel);
    fits = shared_bytes<typename K::Number, K::Split, typename K::Layout>() <= device.shared_bytes;
  });
  return fits;
}

void run_refine_latency(const RefineCall& call, const CudaDevice& device) {
  with_collapsed_kernel(call, [&](auto kernel) {
    using K = decltype(kernel);
    start<typename K::Number, K::Split, typename K::Layout>(call, device);
  });
}

}  // namespace erd
