// A whole step of training as one op, on the CPU: what Python would do in a dozen calls.
// core/training_call.h has the equations, training_ops.cpp the same step by step.
#include "torch/tensors.h"

namespace erd::ops {
namespace {

constexpr const char* kParameterNames[kRegressorParameters] = {
    "w_in",      "b_in",      "gamma",     "beta",  "w_hidden0",
    "b_hidden0", "w_hidden1", "b_hidden1", "w_out", "b_out"};

// Something that the op changes where it lies.
void* in_place(RowReader& reader, const Tensor& t, const std::string& name, int64_t size) {
  STD_TORCH_CHECK(t.is_contiguous(), "erd_cuda: ", name.c_str(), " must be contiguous");
  return const_cast<void*>(reader.parameter(t, name.c_str(), size));
}

RegressorShape step_shape(ScalarType scalar, int64_t rows, int64_t features, int64_t width,
                          int64_t outputs, double dropout) {
  STD_TORCH_CHECK(rows >= 2, "erd_cuda: batch statistics need at least two samples in a batch");
  STD_TORCH_CHECK(outputs % 3 == 0, "erd_cuda: targets must have three columns a joint");
  STD_TORCH_CHECK(dropout >= 0 && dropout < 1, "erd_cuda: dropout must be in [0, 1)");
  return {scalar, rows, features, width, outputs, dropout};
}

// Bytes of the workspace for batches of up to `rows` samples.
int64_t workspace_size(int64_t rows, int64_t features, int64_t width, int64_t outputs,
                       bool is_double) {
  const ScalarType scalar = is_double ? ScalarType::float64 : ScalarType::float32;
  return cpu_kernels().regressor_step_workspace(
      step_shape(scalar, rows, features, width, outputs, 0.0));
}

// Trains on samples batch [N] of features [M, F] and targets [M, 3J]. Parameters in
// RegressorParameter's order, with Adam's state for each; `steps` are float32 scalars, one more
// afterwards, as is `batches`. The loss and the MPJPE, in the targets' units, are added to sums
// [2].
void step(Tensor features, Tensor targets, Tensor batch, std::vector<Tensor> parameters,
          std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps,
          Tensor running_mean, Tensor running_variance, Tensor batches, Tensor sums,
          Tensor workspace, MaybeTensor seed, double dropout, double norm_eps, double momentum,
          bool relu_block, double lr, double beta1, double beta2, double adam_eps,
          int64_t root_joint) {
  using torch::headeronly::ScalarType;
  const size_t count = kRegressorParameters;
  STD_TORCH_CHECK(parameters.size() == count && exp_avgs.size() == count &&
                      exp_avg_sqs.size() == count && steps.size() == count,
                  "erd_cuda: a regressor has ", count, " parameters, each with its state");
  STD_TORCH_CHECK(features.dim() == 2 && targets.dim() == 2 && parameters[kWIn].dim() == 2,
                  "erd_cuda: features, targets and w_in must be matrices");
  RegressorStepCall call;
  call.shape = step_shape(scalar_type(features), batch.numel(), features.size(1),
                          parameters[kWIn].size(0), targets.size(1), dropout);
  const int64_t f = call.shape.features, h = call.shape.width, o = call.shape.outputs,
                samples = features.size(0);
  const int64_t sizes[kRegressorParameters] = {h * f, h, h, h, h * h, h, h * h, h, o * h, o};
  RowReader reader(features);
  call.block = relu_block ? RegressorBlock::relu : RegressorBlock::linear;
  call.eps = norm_eps;
  call.momentum = momentum;
  call.features = in_place(reader, features, "features", samples * f);
  call.targets = in_place(reader, targets, "targets", samples * o);
  STD_TORCH_CHECK(batch.scalar_type() == ScalarType::Long && batch.is_contiguous(),
                  "erd_cuda: batch must be contiguous int64");
  call.batch = static_cast<const int64_t*>(batch.const_data_ptr());
  for (int64_t i = 0; i < call.shape.rows; ++i) {
    STD_TORCH_CHECK(call.batch[i] >= 0 && call.batch[i] < samples, "erd_cuda: batch names sample ",
                    call.batch[i], ", there are ", samples);
  }
  STD_TORCH_CHECK(seed.has_value() == (dropout > 0),
                  "erd_cuda: a seed is needed exactly when there is dropout");
  STD_TORCH_CHECK(
      !seed.has_value() || (seed->numel() == 1 && seed->scalar_type() == ScalarType::Long),
      "erd_cuda: seed must be one int64");
  call.seed = seed.has_value() ? static_cast<const int64_t*>(seed->const_data_ptr()) : nullptr;
  STD_TORCH_CHECK(root_joint >= -1 && root_joint < o / 3, "erd_cuda: root_joint is ", root_joint,
                  ", there are ", o / 3, " joints");
  call.root_joint = root_joint;
  call.adam = {lr, beta1, beta2, adam_eps};
  for (size_t i = 0; i < count; ++i) {
    const std::string name = kParameterNames[i];
    STD_TORCH_CHECK(steps[i].scalar_type() == ScalarType::Float && steps[i].numel() == 1,
                    "erd_cuda: steps must be float32 scalars");
    float* taken = static_cast<float*>(steps[i].mutable_data_ptr());
    call.parameters[i] = {in_place(reader, parameters[i], name, sizes[i]),
                          in_place(reader, exp_avgs[i], name + "'s exp_avg", sizes[i]),
                          in_place(reader, exp_avg_sqs[i], name + "'s exp_avg_sq", sizes[i]),
                          static_cast<double>(*taken) + 1};
  }
  call.running_mean = in_place(reader, running_mean, "running_mean", h);
  call.running_variance = in_place(reader, running_variance, "running_variance", h);
  STD_TORCH_CHECK(batches.scalar_type() == ScalarType::Long && batches.numel() == 1,
                  "erd_cuda: batches must be one int64");
  STD_TORCH_CHECK(
      sums.scalar_type() == ScalarType::Double && sums.numel() == 2 && sums.is_contiguous(),
      "erd_cuda: sums must be two contiguous float64 numbers");
  call.sums = static_cast<double*>(sums.mutable_data_ptr());
  const int64_t needed = cpu_kernels().regressor_step_workspace(call.shape);
  STD_TORCH_CHECK(workspace.scalar_type() == ScalarType::Byte && workspace.is_contiguous() &&
                      workspace.numel() >= needed,
                  "erd_cuda: workspace must have ", needed, " bytes, it has ", workspace.numel());
  call.workspace = workspace.mutable_data_ptr();

  cpu_kernels().regressor_step(call, torch_parallel_for());
  for (const Tensor& taken : steps) *static_cast<float*>(taken.mutable_data_ptr()) += 1;
  *static_cast<int64_t*>(batches.mutable_data_ptr()) += 1;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(erd_cuda, m) {
  m.def(
      "regressor_step_workspace(int rows, int features, int width, int outputs, bool is_double) "
      "-> int");
  m.def(
      "regressor_step_(Tensor features, Tensor targets, Tensor batch, Tensor(a!)[] parameters, "
      "Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, Tensor(e!) "
      "running_mean, Tensor(f!) running_variance, Tensor(g!) batches, Tensor(h!) sums, Tensor(i!) "
      "workspace, Tensor? seed, float dropout, float norm_eps, float momentum, bool relu_block, "
      "float lr, float beta1, float beta2, float adam_eps, int root_joint) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CompositeExplicitAutograd, m) {
  m.impl("regressor_step_workspace", TORCH_BOX(&workspace_size));
}
STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CPU, m) { m.impl("regressor_step_", TORCH_BOX(&step)); }

}  // namespace erd::ops
