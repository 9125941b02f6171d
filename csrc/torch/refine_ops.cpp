// The fused refiner as an op: all stages of a trained model in one call.
//
// Rows as in geometry_ops.cpp: keypoints [N, 2J], pose [N, 3J], root [N, 3], intrinsics [N, 4],
// distortion [N, 5], confidence [N, J]. Weights: w_in [K, H, F], w_hidden [K, 2, H, H] (relu
// block), w_out [K, 3J, H]; fragments are the same for tensor cores, together with fragment_biases,
// or for the CPU's kernel for few poses.
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

// Returns the last pose, in the shape of pose, or every stage's, with one more dimension in front.
Tensor refine(Tensor keypoints, Tensor pose, MaybeTensor root, Tensor intrinsics,
              MaybeTensor distortion, MaybeTensor confidence, Tensor w_in, Tensor b_in,
              MaybeTensor w_hidden, MaybeTensor b_hidden, Tensor w_out, Tensor b_out, Tensor mean2d,
              MaybeTensor fragments, MaybeTensor fragment_biases, int64_t model, int64_t features,
              int64_t root_mode, bool every_stage, double feature_scale, int64_t precision,
              int64_t variant, double residual_limit) {
  const int64_t n = pose.size(0);
  const int64_t j = joint_count(pose);
  STD_TORCH_CHECK(w_in.dim() == 3, "erd_cuda: w_in must be a (K, H, F) tensor");
  STD_TORCH_CHECK(model >= 0 && model <= 2, "erd_cuda: unknown camera model ", model);
  STD_TORCH_CHECK(features >= 0 && features <= 4, "erd_cuda: unknown features ", features);
  STD_TORCH_CHECK(root_mode >= 0 && root_mode <= 2, "erd_cuda: unknown root mode ", root_mode);
  STD_TORCH_CHECK(root.has_value() == (root_mode == 0),
                  "erd_cuda: a root is needed exactly when it is not solved for");
  STD_TORCH_CHECK(precision >= 0 && precision <= 3, "erd_cuda: unknown precision ", precision);
  STD_TORCH_CHECK(variant >= 0 && variant <= 4, "erd_cuda: unknown variant ", variant);
  STD_TORCH_CHECK(residual_limit > 0, "erd_cuda: residual_limit must be positive");
  STD_TORCH_CHECK(model == 0 || distortion.has_value(),
                  "erd_cuda: this camera model needs distortion coefficients");

  RowReader reader(pose);
  RefineCall call;
  call.scalar = scalar_type(pose);
  call.camera_model = static_cast<int32_t>(model);
  call.block = w_hidden.has_value() ? RegressorBlock::relu : RegressorBlock::linear;
  call.features = static_cast<Features>(features);
  call.root_mode = static_cast<RootMode>(root_mode);
  call.count = n;
  call.joints = j;
  const int64_t k = call.stages = w_in.size(0);
  const int64_t h = call.width = w_in.size(1);
  STD_TORCH_CHECK(k >= 1 && h >= 1, "erd_cuda: w_in must hold at least one stage and one unit");
  const int64_t f = feature_count(call);

  call.keypoints = reader.rows(keypoints, "keypoints", n, 2 * j, j);
  call.pose = reader.rows(pose, "pose", n, 3 * j, j);
  call.root = reader.rows(root, "root", n, 3, j);
  call.intrinsics = reader.rows(intrinsics, "intrinsics", n, 4, j);
  call.distortion = reader.rows(distortion, "distortion", n, 5, j);
  call.confidence = reader.rows(confidence, "confidence", n, j, j);
  call.w_in = reader.parameter(w_in, "w_in", k * h * f);
  call.b_in = reader.parameter(b_in, "b_in", k * h);
  call.w_hidden = nullptr;
  call.b_hidden = nullptr;
  if (call.block == RegressorBlock::relu) {
    STD_TORCH_CHECK(b_hidden.has_value(), "erd_cuda: w_hidden comes with b_hidden");
    call.w_hidden = reader.parameter(*w_hidden, "w_hidden", k * 2 * h * h);
    call.b_hidden = reader.parameter(*b_hidden, "b_hidden", k * 2 * h);
  }
  call.w_out = reader.parameter(w_out, "w_out", k * 3 * j * h);
  call.b_out = reader.parameter(b_out, "b_out", k * 3 * j);
  call.mean2d = reader.parameter(mean2d, "mean2d", 2 * j);

  call.precision = static_cast<Precision>(precision);
  call.variant = static_cast<RefineVariant>(variant);
  call.feature_scale = static_cast<float>(feature_scale);
  call.residual_limit = residual_limit;
  if (fragments.has_value() && pose.is_cpu() && call.precision == Precision::native) {
    call.fragments = reader.parameter(*fragments, "fragments", k * WeightColumns(call).stage_size);
  } else if (fragments.has_value()) {
    STD_TORCH_CHECK(fragment_biases.has_value(), "erd_cuda: fragments come with fragment_biases");
    call.fragments = reader.bits(*fragments, "fragments");
    call.fragment_biases = static_cast<const float*>(
        reader.parameter(*fragment_biases, "fragment_biases", fragment_biases->numel()));
    reader.check_alignment(call.fragment_biases, "fragment_biases");
    check_fragments(call, *fragments, *fragment_biases);
  }

  call.every_stage = every_stage;
  std::vector<int64_t> shape(pose.sizes().begin(), pose.sizes().end());
  if (every_stage) shape.insert(shape.begin(), k);
  Tensor output = torch::stable::new_empty(pose, shape);
  call.output = output.mutable_data_ptr();
  run_on_device_of(pose, call, cpu_kernels().refine, {ERD_CUDA_KERNELS(run_refine_cuda)});
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
}

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CPU, m) { m.impl("refine", TORCH_BOX(&refine)); }
#if defined(ERD_HAVE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CUDA, m) { m.impl("refine", TORCH_BOX(&refine)); }
#endif

}  // namespace erd::ops
