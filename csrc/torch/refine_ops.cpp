// The fused refiner as an op: all stages of a trained model in one call.
//
// Rows as in geometry_ops.cpp: keypoints [N, 2J], pose [N, 3J], root [N, 3], intrinsics [N, 4],
// distortion [N, 5], confidence [N, J]. Weights: w_in [K, H, F], w_hidden [K, 2, H, H] (relu
// block), w_out [K, 3J, H]; fragments are the same for tensor cores, together with fragment_biases,
// or alone for the CPU's kernels for few poses and for bf16.
#include <cstring>

#include "core/feature_count.h"
#include "core/weight_columns.h"
#include "cuda/fragments.h"
#include "cuda/fragments_relu.h"
#include "cuda/fragments_wgmma.h"
#include "torch/tensors.h"

namespace erd::ops {
namespace {

// Kernels copy the fragments as they are, so their number has to be right.
void check_fragments(const RefineCall& call, const Tensor& fragments, const Tensor& biases) {
  const bool split = call.precision == Precision::split;
  if (relu_fragments_exist(call)) {
    const ReluSizes sizes = relu_sizes(call);
    STD_TORCH_CHECK(
        fragments.numel() == call.stages * sizes.stage_weights(split) &&
            biases.numel() == call.stages * sizes.stage_biases(),
        "erd_cuda: fragments or fragment_biases are not of these weights and this precision");
  }
  if (call.variant == RefineVariant::wgmma) {
    if (!wgmma_fragments_exist(call)) return;
    with_wgmma_layout(call.joints, [&](auto layout) {
      STD_TORCH_CHECK(
          fragments.numel() == call.stages * layout.stage_bytes(call.width) / 2 &&
              biases.numel() == call.stages * layout.stage_biases,
          "erd_cuda: fragments or fragment_biases are not of these weights and this precision");
    });
    return;
  }
  if (!fragments_exist(call)) return;
  with_fragment_layout(call.joints, [&](auto layout) {
    STD_TORCH_CHECK(
        fragments.numel() == call.stages * layout.stage_bytes(call.width, split) / 2 &&
            biases.numel() == call.stages * layout.stage_biases(call.width),
        "erd_cuda: fragments or fragment_biases are not of these weights and this precision");
  });
}

// The weights column by column.
const void* columns(const RefineCall& call, RowReader& reader, const Tensor& fragments) {
  const int64_t size = call.stages * WeightColumns(call).stage_size;
  if (call.precision == Precision::native) return reader.parameter(fragments, "fragments", size);
  STD_TORCH_CHECK(call.precision == Precision::bf16 && call.scalar == ScalarType::float32,
                  "erd_cuda: the CPU multiplies float32 numbers in float32 or bf16");
  return reader.pairs(fragments, "fragments", size);
}

// The weights of a call.
struct StageTensors {
  Tensor w_in, b_in;
  MaybeTensor w_hidden, b_hidden;
  Tensor w_out, b_out, mean2d;
};

void describe_weights(RefineCall& call, RowReader& reader, const StageTensors& w, int64_t joints,
                      int64_t features, double residual_limit) {
  STD_TORCH_CHECK(w.w_in.dim() == 3, "erd_cuda: w_in must be a (K, H, F) tensor");
  STD_TORCH_CHECK(features >= 0 && features <= 4, "erd_cuda: unknown features ", features);
  STD_TORCH_CHECK(residual_limit > 0, "erd_cuda: residual_limit must be positive");
  call.scalar = scalar_type(w.w_in);
  call.block = w.w_hidden.has_value() ? RegressorBlock::relu : RegressorBlock::linear;
  call.features = static_cast<Features>(features);
  call.residual_limit = residual_limit;
  const int64_t j = call.joints = joints;
  const int64_t k = call.stages = w.w_in.size(0);
  const int64_t h = call.width = w.w_in.size(1);
  STD_TORCH_CHECK(k >= 1 && h >= 1, "erd_cuda: w_in must hold at least one stage and one unit");
  call.w_in = reader.parameter(w.w_in, "w_in", k * h * feature_count(call));
  call.b_in = reader.parameter(w.b_in, "b_in", k * h);
  call.w_hidden = nullptr;
  call.b_hidden = nullptr;
  if (call.block == RegressorBlock::relu) {
    STD_TORCH_CHECK(w.b_hidden.has_value(), "erd_cuda: w_hidden comes with b_hidden");
    call.w_hidden = reader.parameter(*w.w_hidden, "w_hidden", k * 2 * h * h);
    call.b_hidden = reader.parameter(*w.b_hidden, "b_hidden", k * 2 * h);
  }
  call.w_out = reader.parameter(w.w_out, "w_out", k * 3 * j * h);
  call.b_out = reader.parameter(w.b_out, "b_out", k * 3 * j);
  call.mean2d = reader.parameter(w.mean2d, "mean2d", 2 * j);
}

// The samples of a call: keypoints, pose and so on.
struct SampleTensors {
  const Tensor &keypoints, &pose;
  const MaybeTensor& root;
  const Tensor& intrinsics;
  const MaybeTensor &distortion, &confidence;
};

void describe_samples(RefineCall& call, RowReader& reader, const SampleTensors& s, int64_t model,
                      int64_t root_mode) {
  STD_TORCH_CHECK(model >= 0 && model <= 2, "erd_cuda: unknown camera model ", model);
  STD_TORCH_CHECK(root_mode >= 0 && root_mode <= 2, "erd_cuda: unknown root mode ", root_mode);
  STD_TORCH_CHECK(s.root.has_value() == (root_mode == 0),
                  "erd_cuda: a root is needed exactly when it is not solved for");
  STD_TORCH_CHECK(model == 0 || s.distortion.has_value(),
                  "erd_cuda: this camera model needs distortion coefficients");
  call.camera_model = static_cast<int32_t>(model);
  call.root_mode = static_cast<RootMode>(root_mode);
  const int64_t n = call.count = s.pose.size(0);
  const int64_t j = call.joints;
  call.keypoints = reader.rows(s.keypoints, "keypoints", n, 2 * j, j);
  call.pose = reader.rows(s.pose, "pose", n, 3 * j, j);
  call.root = reader.rows(s.root, "root", n, 3);
  call.intrinsics = reader.rows(s.intrinsics, "intrinsics", n, 4);
  call.distortion = reader.rows(s.distortion, "distortion", n, 5);
  call.confidence = reader.rows(s.confidence, "confidence", n, j);
}

// Where a call's results go: the last pose, in the shape of pose, or every stage's, with one more
// dimension in front.
Tensor new_output(RefineCall& call, const Tensor& pose, bool every_stage) {
  call.every_stage = every_stage;
  std::vector<int64_t> shape(pose.sizes().begin(), pose.sizes().end());
  if (every_stage) shape.insert(shape.begin(), call.stages);
  Tensor output = torch::stable::new_empty(pose, shape);
  call.output = output.mutable_data_ptr();
  return output;
}

Tensor refine(Tensor keypoints, Tensor pose, MaybeTensor root, Tensor intrinsics,
              MaybeTensor distortion, MaybeTensor confidence, Tensor w_in, Tensor b_in,
              MaybeTensor w_hidden, MaybeTensor b_hidden, Tensor w_out, Tensor b_out, Tensor mean2d,
              MaybeTensor fragments, MaybeTensor fragment_biases, int64_t model, int64_t features,
              int64_t root_mode, bool every_stage, double feature_scale, int64_t precision,
              int64_t variant, double residual_limit) {
  STD_TORCH_CHECK(precision >= 0 && precision <= 3, "erd_cuda: unknown precision ", precision);
  STD_TORCH_CHECK(variant >= 0 && variant <= 4, "erd_cuda: unknown variant ", variant);
  RowReader reader(pose);
  RefineCall call;
  describe_weights(call, reader, {w_in, b_in, w_hidden, b_hidden, w_out, b_out, mean2d},
                   joint_count(pose), features, residual_limit);
  describe_samples(call, reader, {keypoints, pose, root, intrinsics, distortion, confidence}, model,
                   root_mode);
  call.precision = static_cast<Precision>(precision);
  call.variant = static_cast<RefineVariant>(variant);
  call.feature_scale = static_cast<float>(feature_scale);
  if (fragments.has_value() && pose.is_cpu() && !fragment_biases.has_value()) {
    call.fragments = columns(call, reader, *fragments);
  } else if (fragments.has_value()) {
    STD_TORCH_CHECK(fragment_biases.has_value(), "erd_cuda: fragments come with fragment_biases");
    call.fragments = reader.bits(*fragments, "fragments");
    call.fragment_biases = static_cast<const float*>(
        reader.parameter(*fragment_biases, "fragment_biases", fragment_biases->numel()));
    reader.check_alignment(call.fragment_biases, "fragment_biases");
    check_fragments(call, *fragments, *fragment_biases);
  }
  Tensor output = new_output(call, pose, every_stage);
  run_on_device_of(pose, call, cpu_kernels().refine, {ERD_CUDA_KERNELS(run_refine_cuda)});
  return output;
}

// The weights of a model on the CPU, checked and described once: for one pose, taking two dozen
// arguments apart takes longer than refining. What comes back is the RefineCall without its
// samples, as bytes; it points into the tensors, which whoever keeps it must keep too.
Tensor plan_refine(Tensor w_in, Tensor b_in, MaybeTensor w_hidden, MaybeTensor b_hidden,
                   Tensor w_out, Tensor b_out, Tensor mean2d, Tensor fragments, int64_t features,
                   int64_t precision, double residual_limit) {
  for (const Tensor* t : {&w_in, &b_in, &w_out, &b_out, &mean2d, &fragments}) {
    STD_TORCH_CHECK(t->is_contiguous(), "erd_cuda: planned weights must be contiguous");
  }
  for (const MaybeTensor* t : {&w_hidden, &b_hidden}) {
    STD_TORCH_CHECK(!t->has_value() || (*t)->is_contiguous(),
                    "erd_cuda: planned weights must be contiguous");
  }
  RowReader reader(w_in);
  RefineCall call;
  describe_weights(call, reader, {w_in, b_in, w_hidden, b_hidden, w_out, b_out, mean2d},
                   mean2d.numel() / 2, features, residual_limit);
  call.precision = static_cast<Precision>(precision);
  call.fragments = columns(call, reader, fragments);
  Tensor plan = torch::stable::new_empty(w_in, {static_cast<int64_t>(sizeof(RefineCall))},
                                         torch::headeronly::ScalarType::Byte);
  std::memcpy(plan.mutable_data_ptr(), &call, sizeof(call));
  return plan;
}

Tensor refine_planned(Tensor keypoints, Tensor pose, MaybeTensor root, Tensor intrinsics,
                      MaybeTensor distortion, MaybeTensor confidence, Tensor plan, int64_t model,
                      int64_t root_mode, bool every_stage) {
  STD_TORCH_CHECK(plan.is_cpu() && plan.numel() == sizeof(RefineCall),
                  "erd_cuda: plan must come from plan_refine");
  RefineCall call;
  std::memcpy(&call, plan.const_data_ptr(), sizeof(call));
  STD_TORCH_CHECK(scalar_type(pose) == call.scalar && joint_count(pose) == call.joints,
                  "erd_cuda: pose has another dtype or another number of joints than the weights");
  RowReader reader(pose);
  describe_samples(call, reader, {keypoints, pose, root, intrinsics, distortion, confidence}, model,
                   root_mode);
  Tensor output = new_output(call, pose, every_stage);
  cpu_kernels().refine(call, torch_parallel_for());
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(erd_cuda, m) {
  m.def(
      "refine(Tensor keypoints, Tensor pose, Tensor? root, Tensor intrinsics, Tensor? distortion, "
      "Tensor? confidence, Tensor w_in, Tensor b_in, Tensor? w_hidden, Tensor? b_hidden, Tensor "
      "w_out, "
      "Tensor b_out, Tensor mean2d, Tensor? fragments, Tensor? fragment_biases, int model, "
      "int features, int root_mode, bool every_stage, float feature_scale, int precision, "
      "int variant, float residual_limit) -> Tensor");
  m.def(
      "plan_refine(Tensor w_in, Tensor b_in, Tensor? w_hidden, Tensor? b_hidden, Tensor w_out, "
      "Tensor b_out, Tensor mean2d, Tensor fragments, int features, int precision, "
      "float residual_limit) -> Tensor");
  m.def(
      "refine_planned(Tensor keypoints, Tensor pose, Tensor? root, Tensor intrinsics, Tensor? "
      "distortion, Tensor? confidence, Tensor plan, int model, int root_mode, bool every_stage) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CPU, m) {
  m.impl("refine", TORCH_BOX(&refine));
  m.impl("plan_refine", TORCH_BOX(&plan_refine));
  m.impl("refine_planned", TORCH_BOX(&refine_planned));
}
#if defined(ERD_HAVE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CUDA, m) { m.impl("refine", TORCH_BOX(&refine)); }
#endif

}  // namespace erd::ops
