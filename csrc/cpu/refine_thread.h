// One thread's share of the fused refiner: all stages of the descent (paper, Eq. 1 and 2) for one
// block of poses while it sits in the first-level cache.
//
//   for k in 1..K:  y <- y + R_k(features(x, project(y + root)))
//
// A thread takes a range of vectors of poses, one pose a lane, and works on them in blocks of up to
// kMaxVectors: joints, features and activations are rows of lanes. A single pose has its joints in
// the lanes instead (joint_lanes.h). The regressor R_k is the caller's, in plain numbers
// (refine.cpp) or in pairs of bf16 (refine_bf16.cpp); memory per thread is a few block-sized
// buffers, whatever the batch.
#pragma once

#include <cstring>

#include "core/feature_count.h"
#include "core/sample_functions.h"
#include "core/stage_features.h"
#include "core/weight_columns.h"
#include "cpu/few_poses.h"
#include "cpu/joint_lanes.h"
#include "cpu/lanes.h"
#include "cpu/matrix_product.h"

ERD_NAMESPACE_BEGIN

// NaN is not below 0: it stays visible, as in torch's ReLU. Written so that it is the processor's
// own maximum.
template <class S>
ERD_HD Simd<S> relu(Simd<S> x) {
  const Simd<S> zero = constant<Simd<S>>(0);
  return select(zero > x, zero, x);
}

// `Regressor` computes R_k; it is made of a call, the number of vectors in its widest block and
// memory. It has a Scalar and four functions, three of which hand sums to `add`, which adds them to
// the poses:
//
//   apply<V>(stage, features, add)      for V vectors of poses; add(output, v, vector over poses)
//   serves_few()                        whether there are the next two
//   apply_few<P>(stage, features, add)  for the first P poses of a vector of them; add(pose, first
//                                       output, vector over outputs)
//   apply_one(stage, features, add)     for one pose, whose features follow each other, zeros after
//                                       them; add(first output, vector over outputs)
template <class Regressor>
class RefineThread {
 public:
  // For blocks of up to `widest` vectors: one pose must not pay for memory that it leaves unused.
  RefineThread(const RefineCall& call, int64_t widest, Scratch& scratch)
      : call_(call),
        samples_(scratch.take<T>(kMaxVectors * (6 * call.joints + kIntrinsics + kDistortion + 3))),
        features_(scratch.take<T>(widest * feature_count(call))),
        row_(scratch.take<S>(row_size(call))),
        regressor_(call, widest, scratch) {}

  template <CameraModel M, int V>
  void refine_block(int64_t first, int64_t count) {
    if constexpr (V == 1) {
      if (count == 1 && serves_joints()) return refine_joints<M>(first);
    }
    Block<V> block = load_block<V>(first, count);
    for (int64_t stage = 0; stage < call_.stages; ++stage) {
      if (call_.root_mode == RootMode::solve_each_stage ||
          (call_.root_mode == RootMode::solve && stage == 0)) {
        solve_roots<M, V>(block);
      }
      compute_features<M, V>(block);
      regress<V>(stage, block, count);
      if (call_.every_stage || stage + 1 == call_.stages) store_pose<V>(stage, block, first, count);
    }
  }

 private:
  using S = typename Regressor::Scalar;
  using T = Simd<S>;
  using Geometry = Slots<T, kMaxVectors>;

  template <int V>
  struct Block {
    T* slots[kSlots];
    MaskOf<T> active[V];  // lanes with a root: the others keep their pose

    // The pitch is the same for every V, so that the geometry below is compiled once: two
    // compilations might fuse other multiply-adds and round a sample differently.
    Geometry vector(int v) const {
      Geometry view;
      for (int slot = 0; slot < kSlots; ++slot) view.data[slot] = slots[slot] + v;
      return view;
    }
  };

  template <int V>
  Block<V> load_block(int64_t first, int64_t count) {
    Block<V> block;
    const Rows* rows[kSlots] = {&call_.keypoints,  &call_.pose, &call_.root,      &call_.intrinsics,
                                &call_.distortion, nullptr,     &call_.confidence};
    T* next = samples_;
    constexpr int64_t lanes = V * kLanes<S>;
    constexpr int64_t pitch = kMaxVectors * kLanes<S>;
    for (int slot = 0; slot < kSlots; ++slot) {
      block.slots[slot] = next;
      if (rows[slot] == nullptr) continue;
      const int64_t width = slot_width(slot, call_.joints);
      next += width * kMaxVectors;
      S* target = reinterpret_cast<S*>(block.slots[slot]);
      if (rows[slot]->data != nullptr) {
        load_lanes(*rows[slot], first, count, lanes, width, pitch, target);
      } else {
        fill_lanes(S(1), lanes, width, pitch,
                   target);  // no confidence means 1; the rest is not read
      }
    }
    const T zero = constant<T>(0);
    for (int v = 0; v < V; ++v) {
      block.active[v] = zero <= zero;
    }
    return block;
  }

  template <CameraModel M, int V>
  void solve_roots(Block<V>& block) {
    for (int v = 0; v < V; ++v) block.active[v] = solve_vector<M>(block.vector(v));
  }

  template <CameraModel M>
  ERD_COMPILED_ONCE MaskOf<T> solve_vector(const Geometry& view) const {
    const auto solution = SolveRootFunction<M>::solve(call_.joints, view).solution;
    view.set_triple(kSlotRoot, 0, solution.root);
    return solution.in_front;
  }

  template <CameraModel M, int V>
  void compute_features(const Block<V>& block) {
    for (int v = 0; v < V; ++v) vector_features<M>(block.vector(v), call_.joints, features_ + v, V);
  }

  template <CameraModel M>
  ERD_COMPILED_ONCE void vector_features(const Geometry& in, int64_t joints, T* features,
                                         int64_t pitch) const {
    if (call_.features == Features::residual_pose) {
      T* pose = features + 2 * joints * pitch;
      for (int64_t e = 0; e < 3 * joints; ++e) pose[e * pitch] = in.at(kSlotPose, e);
    }
    for (int64_t j = 0; j < joints; ++j) {
      switch (call_.features) {
        case Features::residual:
        case Features::residual_pose:
          put(features, j, pitch,
              residual_feature<M>(
                  in.keypoint(j), in.confidence(j), in.pose(j), in.root(), in.intrinsics(),
                  in.distortion(),
                  NumberTraits<T>::broadcast(static_cast<S>(call_.residual_limit))));
          break;
        case Features::init2d:
          put(features, j, pitch, measured(in, j));
          break;
        case Features::proj2d:
          put(features, j, pitch, projected<M>(in, j));
          break;
        case Features::concat:
          put(features, j, pitch, measured(in, j));
          put(features, joints + j, pitch, projected<M>(in, j));
          break;
      }
    }
  }

  static ERD_HD void put(T* features, int64_t j, int64_t pitch, Vec2<T> value) {
    features[(2 * j) * pitch] = value.x;
    features[(2 * j + 1) * pitch] = value.y;
  }

  ERD_HD Vec2<T> mean2d(int64_t j) const {
    const S* mean = static_cast<const S*>(call_.mean2d) + 2 * j;
    return {NumberTraits<T>::broadcast(mean[0]), NumberTraits<T>::broadcast(mean[1])};
  }

  ERD_HD Vec2<T> measured(const Geometry& in, int64_t j) const {
    return measured_feature(in.keypoint(j), in.confidence(j), mean2d(j));
  }

  template <CameraModel M>
  ERD_HD Vec2<T> projected(const Geometry& in, int64_t j) const {
    return projected_feature<M>(in.pose(j), in.root(), in.intrinsics(), in.distortion(), mean2d(j));
  }

  // Roots are solved for in lanes of poses, and the other features need numbers of their own for
  // each joint.
  bool serves_joints() const {
    return regressor_.serves_few() && call_.root_mode == RootMode::given &&
           (call_.features == Features::residual || call_.features == Features::residual_pose);
  }

  // The descent of a single pose. The pose and the features are rows of numbers but where a joint
  // is a lane.
  template <CameraModel M>
  void refine_joints(int64_t sample) {
    const int64_t inputs = feature_count(call_);
    const int64_t width = 3 * call_.joints;
    S* const pose = row_ + features_size(call_);
    JointLanes<S> joints(call_, sample, samples_, pose, row_);
    for (int64_t e = inputs; e < padded(inputs); ++e) row_[e] = 0;
    for (int64_t stage = 0; stage < call_.stages; ++stage) {
      joint_features<M>(joints);
      if (inputs > 2 * call_.joints) std::memcpy(row_ + 2 * call_.joints, pose, width * sizeof(S));
      regressor_.apply_one(stage, row_, [=](int64_t output, T sum) {
        store_unaligned(load_unaligned(pose + output) + sum.v, pose + output);
      });
      joints.set_pose(pose);
      if (call_.every_stage || stage + 1 == call_.stages) {
        S* const output = static_cast<S*>(call_.output);
        const int64_t slice = call_.every_stage ? stage * call_.count : 0;
        std::memcpy(output + (slice + sample) * width, pose, width * sizeof(S));
      }
    }
  }

  // The residuals of all joints, in the order of features; poses among the features are copied
  // from their row instead.
  template <CameraModel M>
  void joint_features(const JointLanes<S>& joints) {
    for (int64_t v = 0, joint = 0; joint < call_.joints; ++v, joint += kLanes<S>) {
      vector_features<M>(joints.vector(v), 1, features_, 1);
      constexpr auto kAll = std::make_integer_sequence<int, kLanes<S>>();
      const NativeOf<S> x = features_[0].v, y = features_[1].v;
      store_unaligned(interleave<0, S>(x, y, kAll), row_ + 2 * joint);
      store_unaligned(interleave<1, S>(x, y, kAll), row_ + 2 * joint + kLanes<S>);
    }
  }

  // Of features and of the pose, each with room for whole vectors.
  static int64_t features_size(const RefineCall& call) {
    const int64_t residual = JointLanes<S>::row_size(call.joints, 2);
    const int64_t inputs = padded(feature_count(call));
    return residual > inputs ? residual : inputs;
  }
  static int64_t row_size(const RefineCall& call) {
    return features_size(call) + JointLanes<S>::row_size(call.joints, 3);
  }
  static int64_t padded(int64_t size) { return (size + kLanes<S> - 1) / kLanes<S> * kLanes<S>; }

  // pose += R_stage(features), for the active lanes.
  template <int V>
  void regress(int64_t stage, const Block<V>& block, int64_t count) {
    if constexpr (V == 1) {
      if (regressor_.serves_few() && count <= kFewPoses) return regress_few(stage, block, count);
    }
    T* pose = block.slots[kSlotPose];
    regressor_.template apply<V>(stage, features_, [=](int64_t output, int v, T sum) {
      T& y = pose[output * kMaxVectors + v];
      y = select(block.active[v], y + sum, y);
    });
  }

  // The same for the first `count` poses of a block of one vector.
  void regress_few(int64_t stage, const Block<1>& block, int64_t count) {
    static_assert(kFewPoses == 6, "one case for each number of poses");
    switch (count) {
      case 1:
        return regress_one(stage, block);
      case 2:
        return regress_few_poses<2>(stage, block);
      case 3:
        return regress_few_poses<3>(stage, block);
      case 4:
        return regress_few_poses<4>(stage, block);
      case 5:
        return regress_few_poses<5>(stage, block);
      default:
        return regress_few_poses<6>(stage, block);
    }
  }

  void regress_one(int64_t stage, const Block<1>& block) {
    const S* features = reinterpret_cast<const S*>(features_);
    const int64_t inputs = feature_count(call_);
    for (int64_t e = 0; e < padded(inputs); ++e) {
      row_[e] = e < inputs ? features[e * kLanes<S>] : S(0);
    }
    S* pose = reinterpret_cast<S*>(block.slots[kSlotPose]);
    regressor_.apply_one(stage, row_,
                         [&](int64_t output, T sum) { add_lanes(block, 0, output, sum, pose); });
  }

  template <int P>
  __attribute__((noinline)) void regress_few_poses(int64_t stage, const Block<1>& block) {
    S* pose = reinterpret_cast<S*>(block.slots[kSlotPose]);
    regressor_.template apply_few<P>(stage, features_, [&](int p, int64_t output, T sum) {
      add_lanes(block, p, output, sum, pose);
    });
  }

  // Adds outputs in lanes to the pose in lane p.
  ERD_HD void add_lanes(const Block<1>& block, int p, int64_t output, T sum, S* pose) const {
    if (!block.active[0].v[p]) return;
    for (int l = 0; l < kLanes<S> && output + l < 3 * call_.joints; ++l) {
      pose[(output + l) * kMaxVectors * kLanes<S> + p] += sum.v[l];
    }
  }

  template <int V>
  void store_pose(int64_t stage, const Block<V>& block, int64_t first, int64_t count) {
    const int64_t width = 3 * call_.joints;
    const int64_t slice = call_.every_stage ? stage * call_.count * width : 0;
    store_lanes(reinterpret_cast<const S*>(block.slots[kSlotPose]), first, count, width,
                kMaxVectors * kLanes<S>, static_cast<S*>(call_.output) + slice);
  }

  const RefineCall& call_;
  T *const samples_, *const features_;
  S* const row_;  // for a single pose
  Regressor regressor_;
};

// The rows of the samples [first, end) of a call.
template <class S>
void prefetch_samples(const RefineCall& call, int64_t first, int64_t end) {
  prefetch_rows<S>(call.keypoints, first, end, 2 * call.joints);
  prefetch_rows<S>(call.pose, first, end, 3 * call.joints);
  prefetch_rows<S>(call.root, first, end, 3);
  prefetch_rows<S>(call.intrinsics, first, end, kIntrinsics);
  prefetch_rows<S>(call.distortion, first, end, kDistortion);
  prefetch_rows<S>(call.confidence, first, end, call.joints);
}

template <class Regressor, CameraModel M>
void refine_range(const RefineCall& call, int64_t first_vector, int64_t end_vector) {
  using S = typename Regressor::Scalar;
  const int64_t vectors = end_vector - first_vector;
  Scratch scratch;
  RefineThread<Regressor> thread(call, vectors < kMaxVectors ? vectors : kMaxVectors, scratch);
  const int64_t blocks = (vectors + kMaxVectors - 1) / kMaxVectors;
  // Blocks of nearly equal size: the narrowest ones would leave most of the processor idle.
  const auto begin_of = [=](int64_t block) {
    const int64_t begin = (first_vector + vectors * block / blocks) * kLanes<S>;
    return begin < call.count ? begin : call.count;
  };
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = begin_of(b);
    const int64_t end = begin_of(b + 1);
    if (b + 1 < blocks) prefetch_samples<S>(call, end, begin_of(b + 2));
    const int64_t count = end - first;
    if (count <= kLanes<S>) {
      thread.template refine_block<M, 1>(first, count);
    } else if (count <= 2 * kLanes<S>) {
      thread.template refine_block<M, 2>(first, count);
    } else {
      thread.template refine_block<M, kMaxVectors>(first, count);
    }
  }
}

using RangeKernel = void (*)(const RefineCall&, int64_t, int64_t);

template <class Regressor>
RangeKernel select_model(const RefineCall& call) {
  switch (static_cast<CameraModel>(call.camera_model)) {
    case CameraModel::opencv:
      return refine_range<Regressor, CameraModel::opencv>;
    case CameraModel::h36m:
      return refine_range<Regressor, CameraModel::h36m>;
    default:
      return refine_range<Regressor, CameraModel::pinhole>;
  }
}

// All samples of a call, by as many threads as there are.
template <class Regressor>
void refine_with(const RefineCall& call, ParallelFor parallel_for) {
  struct Context {
    const RefineCall& call;
    RangeKernel kernel;
  };
  Context context{call, select_model<Regressor>(call)};
  constexpr int64_t lanes = kLanes<typename Regressor::Scalar>;
  parallel_for.run((call.count + lanes - 1) / lanes, 1,
                   [](void* c, int64_t begin, int64_t end) {
                     const Context& context = *static_cast<Context*>(c);
                     context.kernel(context.call, begin, end);
                   },
                   &context);
}

ERD_NAMESPACE_END
