// The fused refiner as an op: all stages of a trained model in one call.
//
// Rows as in geometry_ops.cpp: keypoints [N, 2J], pose [N, 3J], root [N, 3], intrinsics [N, 4],
// distortion [N, 5], confidence [N, J]. Weights: w_in [K, H, F], w_hidden [K, 2, H, H] (relu
// block), w_out [K, 3J, H].
#include "torch/tensors.h"

namespace erd::ops {
namespace {

// Returns the last pose [N, 3J] or every stage's [K, N, 3J].
Tensor refine(Tensor keypoints, Tensor pose, MaybeTensor root, Tensor intrinsics,
              MaybeTensor distortion, MaybeTensor confidence, Tensor w_in, Tensor b_in,
              MaybeTensor w_hidden, MaybeTensor b_hidden, Tensor w_out, Tensor b_out, Tensor mean2d,
              int64_t model, int64_t features, int64_t root_mode, bool every_stage) {
  const int64_t n = pose.size(0);
  const int64_t j = pose.dim() == 3 ? pose.size(1) : pose.size(1) / 3;
  STD_TORCH_CHECK(w_in.dim() == 3, "erd_cuda: w_in must be a (K, H, F) tensor");
  STD_TORCH_CHECK(model >= 0 && model <= 2, "erd_cuda: unknown camera model ", model);
  STD_TORCH_CHECK(features >= 0 && features <= 3, "erd_cuda: unknown features ", features);
  STD_TORCH_CHECK(root_mode >= 0 && root_mode <= 2, "erd_cuda: unknown root mode ", root_mode);
  STD_TORCH_CHECK(root.has_value() == (root_mode == 0),
                  "erd_cuda: a root is needed exactly when it is not solved for");
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
  const int64_t f = (call.features == Features::concat ? 4 : 2) * j;

  call.keypoints = reader.rows(keypoints, "keypoints", n, 2 * j);
  call.pose = reader.rows(pose, "pose", n, 3 * j);
  call.root = reader.rows(root, "root", n, 3);
  call.intrinsics = reader.rows(intrinsics, "intrinsics", n, 4);
  call.distortion = reader.rows(distortion, "distortion", n, 5);
  call.confidence = reader.rows(confidence, "confidence", n, j);
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

  call.every_stage = every_stage;
  Tensor output = every_stage ? torch::stable::new_empty(pose, {k, n, 3 * j})
                              : torch::stable::new_empty(pose, {n, 3 * j});
  call.output = output.mutable_data_ptr();
  cpu_kernels().refine(call, torch_parallel_for());
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(erd_cuda, m) {
  m.def(
      "refine(Tensor keypoints, Tensor pose, Tensor? root, Tensor intrinsics, Tensor? distortion, "
      "Tensor? confidence, Tensor w_in, Tensor b_in, Tensor? w_hidden, Tensor? b_hidden, Tensor "
      "w_out, "
      "Tensor b_out, Tensor mean2d, int model, int features, int root_mode, bool every_stage) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CPU, m) { m.impl("refine", TORCH_BOX(&refine)); }

}  // namespace erd::ops
