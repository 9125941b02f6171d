// One residual regressor in train mode as two ops: forward, which also returns what backward needs,
// and backward. core/training_call.h has the equations.
//
// features [N, F], w_in [H, F], w_hidden [H, H], w_out [O, H]; biases, gamma and beta are vectors.
#include "torch/tensors.h"

namespace erd::ops {
namespace {

RegressorShape shape_of(const Tensor& features, const Tensor& w_in, const Tensor& w_out,
                        double dropout) {
  STD_TORCH_CHECK(features.dim() == 2 && w_in.dim() == 2 && w_out.dim() == 2,
                  "erd_cuda: features, w_in and w_out must be matrices");
  STD_TORCH_CHECK(features.size(0) >= 2,
                  "erd_cuda: batch statistics need at least two rows of features");
  STD_TORCH_CHECK(dropout >= 0 && dropout < 1, "erd_cuda: dropout must be in [0, 1)");
  RegressorShape shape;
  shape.scalar = scalar_type(features);
  shape.rows = features.size(0);
  shape.features = features.size(1);
  shape.width = w_in.size(0);
  shape.outputs = w_out.size(0);
  shape.dropout = dropout;
  return shape;
}

// Returns increment [N, O], and of the first layer's results mean [H], unbiased variance [H] and
// 1 / std [H] over the batch; then for the backward pass the activations [4, N, padded H] and which
// units passed their layers [N, H].
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    Tensor features, Tensor w_in, Tensor b_in, Tensor gamma, Tensor beta, Tensor w_hidden0,
    Tensor b_hidden0, Tensor w_hidden1, Tensor b_hidden1, Tensor w_out, Tensor b_out,
    MaybeTensor seed, double dropout, double eps, bool relu_block) {
  RegressorForwardCall call;
  call.shape = shape_of(features, w_in, w_out, dropout);
  call.block = relu_block ? RegressorBlock::relu : RegressorBlock::linear;
  call.eps = eps;
  const int64_t n = call.shape.rows, f = call.shape.features, h = call.shape.width,
                o = call.shape.outputs;
  RowReader reader(features);
  call.features = reader.parameter(features, "features", n * f);
  call.w_in = reader.parameter(w_in, "w_in", h * f);
  call.b_in = reader.parameter(b_in, "b_in", h);
  call.gamma = reader.parameter(gamma, "gamma", h);
  call.beta = reader.parameter(beta, "beta", h);
  call.w_hidden[0] = reader.parameter(w_hidden0, "w_hidden0", h * h);
  call.b_hidden[0] = reader.parameter(b_hidden0, "b_hidden0", h);
  call.w_hidden[1] = reader.parameter(w_hidden1, "w_hidden1", h * h);
  call.b_hidden[1] = reader.parameter(b_hidden1, "b_hidden1", h);
  call.w_out = reader.parameter(w_out, "w_out", o * h);
  call.b_out = reader.parameter(b_out, "b_out", o);
  STD_TORCH_CHECK(seed.has_value() == (dropout > 0),
                  "erd_cuda: a seed is needed exactly when there is dropout");
  call.seed = nullptr;
  if (seed.has_value()) {
    STD_TORCH_CHECK(
        seed->numel() == 1 && seed->scalar_type() == torch::headeronly::ScalarType::Long,
        "erd_cuda: seed must be one int64");
    reader.check_device(*seed, "seed");
    call.seed = static_cast<const int64_t*>(seed->const_data_ptr());
  }

  Tensor increment = torch::stable::new_empty(features, {n, o});
  Tensor mean = torch::stable::new_empty(features, {h});
  Tensor variance = torch::stable::new_empty(features, {h});
  Tensor inverse_std = torch::stable::new_empty(features, {h});
  Tensor activations = torch::stable::new_empty(features, {kActivations, n, padded_width(h)});
  // Nothing of what is returned may be undefined.
  if (padded_width(h) != h) torch::stable::zero_(activations);
  Tensor passes = torch::stable::new_empty(features, {n, h}, torch::headeronly::ScalarType::Byte);
  call.increment = increment.mutable_data_ptr();
  call.mean = mean.mutable_data_ptr();
  call.variance = variance.mutable_data_ptr();
  call.inverse_std = inverse_std.mutable_data_ptr();
  call.activations = activations.mutable_data_ptr();
  call.passes = static_cast<uint8_t*>(passes.mutable_data_ptr());
  run_on_device_of(features, call, cpu_kernels().regressor_forward,
                   {ERD_CUDA_KERNELS(run_regressor_forward_cuda)});
  return {increment, mean, variance, inverse_std, activations, passes};
}

// `wanted` has bit g set when gradient g of RegressorGradient is needed; the others come back
// empty, but for gamma's and beta's.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad, Tensor features, Tensor w_in, Tensor gamma, Tensor w_hidden0, Tensor w_hidden1,
    Tensor w_out, Tensor inverse_std, Tensor activations, Tensor passes, double dropout,
    int64_t wanted) {
  RegressorBackwardCall call;
  call.shape = shape_of(features, w_in, w_out, dropout);
  const int64_t n = call.shape.rows, f = call.shape.features, h = call.shape.width,
                o = call.shape.outputs;
  RowReader reader(features);
  call.grad = reader.parameter(grad, "grad", n * o);
  call.features = reader.parameter(features, "features", n * f);
  call.w_in = reader.parameter(w_in, "w_in", h * f);
  call.gamma = reader.parameter(gamma, "gamma", h);
  call.w_hidden[0] = reader.parameter(w_hidden0, "w_hidden0", h * h);
  call.w_hidden[1] = reader.parameter(w_hidden1, "w_hidden1", h * h);
  call.w_out = reader.parameter(w_out, "w_out", o * h);
  call.inverse_std = reader.parameter(inverse_std, "inverse_std", h);
  call.activations =
      reader.parameter(activations, "activations", kActivations * n * padded_width(h));
  STD_TORCH_CHECK(passes.numel() == n * h && passes.is_contiguous() &&
                      passes.scalar_type() == torch::headeronly::ScalarType::Byte,
                  "erd_cuda: passes must be the forward op's");
  reader.check_device(passes, "passes");
  call.passes = static_cast<const uint8_t*>(passes.const_data_ptr());
  Tensor workspace = torch::stable::new_empty(features, {3, n, padded_width(h)});
  call.workspace = workspace.mutable_data_ptr();

  const auto gradient = [&](int index, std::vector<int64_t> shape) {
    const bool needed = (wanted >> index) & 1 || index == kGradGamma || index == kGradBeta;
    Tensor result = torch::stable::new_empty(features, needed ? shape : std::vector<int64_t>{0});
    call.gradients[index] = needed ? result.mutable_data_ptr() : nullptr;
    return result;
  };
  Tensor d_features = gradient(kGradFeatures, {n, f});
  Tensor d_w_in = gradient(kGradWIn, {h, f});
  Tensor d_gamma = gradient(kGradGamma, {h});
  Tensor d_beta = gradient(kGradBeta, {h});
  Tensor d_w_hidden0 = gradient(kGradWHidden, {h, h});
  Tensor d_w_hidden1 = gradient(kGradWHidden + 1, {h, h});
  Tensor d_b_hidden0 = gradient(kGradBHidden, {h});
  Tensor d_b_hidden1 = gradient(kGradBHidden + 1, {h});
  Tensor d_w_out = gradient(kGradWOut, {o, h});
  Tensor d_b_out = gradient(kGradBOut, {o});
  run_on_device_of(features, call, cpu_kernels().regressor_backward,
                   {ERD_CUDA_KERNELS(run_regressor_backward_cuda)});
  return {d_features,  d_w_in,      d_gamma,     d_beta,  d_w_hidden0,
          d_w_hidden1, d_b_hidden0, d_b_hidden1, d_w_out, d_b_out};
}

void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("regressor_forward", TORCH_BOX(&forward));
  m.impl("regressor_backward", TORCH_BOX(&backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(erd_cuda, m) {
  m.def(
      "regressor_forward(Tensor features, Tensor w_in, Tensor b_in, Tensor gamma, Tensor beta, "
      "Tensor w_hidden0, Tensor b_hidden0, Tensor w_hidden1, Tensor b_hidden1, Tensor w_out, "
      "Tensor b_out, Tensor? seed, float dropout, float eps, bool relu_block) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "regressor_backward(Tensor grad, Tensor features, Tensor w_in, Tensor gamma, Tensor "
      "w_hidden0, Tensor w_hidden1, Tensor w_out, Tensor inverse_std, Tensor activations, Tensor "
      "passes, float dropout, int wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CPU, m) { register_kernels(m); }
#if defined(ERD_HAVE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CUDA, m) { register_kernels(m); }
#endif

}  // namespace erd::ops
