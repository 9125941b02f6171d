// A whole step of training as one op: what Python would do in a dozen calls, and torch on a GPU in
// some fifty launches. core/training_call.h has the equations, training_ops.cpp the same step by
// step.
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

int64_t workspace_size_of(const RegressorShape& shape, bool on_gpu) {
#if defined(ERD_HAVE_CUDA)
  if (on_gpu) return regressor_step_workspace_cuda(shape);
#endif
  STD_TORCH_CHECK(!on_gpu, "erd_cuda: this build has no CUDA kernels");
  return cpu_kernels().regressor_step_workspace(shape);
}

// Bytes of the workspace for batches of up to `rows` samples.
int64_t workspace_size(int64_t rows, int64_t features, int64_t width, int64_t outputs,
                       bool is_double, bool on_gpu) {
  const ScalarType scalar = is_double ? ScalarType::float64 : ScalarType::float32;
  return workspace_size_of(step_shape(scalar, rows, features, width, outputs, 0.0), on_gpu);
}

// A contiguous tensor of a fixed kind and size on the reader's device.
template <class T>
T* fixed(const RowReader& reader, const Tensor& t, const char* name,
         torch::headeronly::ScalarType type, int64_t size, const char* what) {
  reader.check_device(t, name);
  STD_TORCH_CHECK(t.scalar_type() == type && t.numel() == size && t.is_contiguous(),
                  "erd_cuda: ", name, " must be ", what);
  return static_cast<T*>(const_cast<void*>(t.const_data_ptr()));
}

// The next `rows` samples of the order, where memory can be read to see that they exist. What a GPU
// is about to do is not known here: who replays a graph keeps count.
void check_batch(const RegressorStepCall& call, int64_t ordered, int64_t seeds, int64_t samples) {
  STD_TORCH_CHECK(call.progress[0] >= 0 && call.progress[0] + call.shape.rows <= ordered,
                  "erd_cuda: order has ", ordered, " samples, and after ", call.progress[0],
                  " there are no ", call.shape.rows, " more");
  for (int64_t i = call.progress[0]; i < call.progress[0] + call.shape.rows; ++i) {
    STD_TORCH_CHECK(call.order[i] >= 0 && call.order[i] < samples, "erd_cuda: order names sample ",
                    call.order[i], ", there are ", samples);
  }
  STD_TORCH_CHECK(call.seeds == nullptr || (call.progress[1] >= 0 && call.progress[1] < seeds),
                  "erd_cuda: there are ", seeds, " seeds, and batch ", call.progress[1],
                  " has none");
}

// Trains on the next `rows` samples of an order of those in features [M, F] and targets [M, 3J].
// Parameters in RegressorParameter's order, with Adam's state for each; `steps` are float32
// scalars, one more afterwards, as is `batches`. progress [2] counts the samples and batches of the
// order that are done, these included. The loss and the MPJPE, in the targets' units, are added to
// sums [2].
void step(Tensor features, Tensor targets, Tensor order, Tensor progress,
          std::vector<Tensor> parameters, std::vector<Tensor> exp_avgs,
          std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps, Tensor running_mean,
          Tensor running_variance, Tensor batches, Tensor sums, Tensor workspace, MaybeTensor seeds,
          Tensor lr, int64_t rows, double dropout, double norm_eps, double momentum,
          bool relu_block, double beta1, double beta2, double adam_eps, int64_t root_joint) {
  using torch::headeronly::ScalarType;
  const size_t count = kRegressorParameters;
  STD_TORCH_CHECK(parameters.size() == count && exp_avgs.size() == count &&
                      exp_avg_sqs.size() == count && steps.size() == count,
                  "erd_cuda: a regressor has ", count, " parameters, each with its state");
  STD_TORCH_CHECK(features.dim() == 2 && targets.dim() == 2 && parameters[kWIn].dim() == 2,
                  "erd_cuda: features, targets and w_in must be matrices");
  RegressorStepCall call;
  call.shape = step_shape(scalar_type(features), rows, features.size(1), parameters[kWIn].size(0),
                          targets.size(1), dropout);
  const int64_t f = call.shape.features, h = call.shape.width, o = call.shape.outputs,
                samples = features.size(0);
  const int64_t sizes[kRegressorParameters] = {h * f, h, h, h, h * h, h, h * h, h, o * h, o};
  RowReader reader(features);
  call.block = relu_block ? RegressorBlock::relu : RegressorBlock::linear;
  call.eps = norm_eps;
  call.momentum = momentum;
  call.features = in_place(reader, features, "features", samples * f);
  call.targets = in_place(reader, targets, "targets", samples * o);
  STD_TORCH_CHECK(order.scalar_type() == ScalarType::Long && order.is_contiguous(),
                  "erd_cuda: order must be contiguous int64");
  reader.check_device(order, "order");
  call.order = static_cast<const int64_t*>(order.const_data_ptr());
  call.progress = fixed<int64_t>(reader, progress, "progress", ScalarType::Long, 2,
                                 "two contiguous int64 numbers");
  STD_TORCH_CHECK(seeds.has_value() == (dropout > 0),
                  "erd_cuda: seeds are needed exactly when there is dropout");
  call.seeds = seeds.has_value() ? fixed<int64_t>(reader, *seeds, "seeds", ScalarType::Long,
                                                  seeds->numel(), "contiguous int64")
                                 : nullptr;
  if (features.is_cpu()) {
    check_batch(call, order.numel(), seeds.has_value() ? seeds->numel() : 0, samples);
  }
  call.lr = fixed<double>(reader, lr, "lr", ScalarType::Double, 1, "one float64");
  STD_TORCH_CHECK(root_joint >= -1 && root_joint < o / 3, "erd_cuda: root_joint is ", root_joint,
                  ", there are ", o / 3, " joints");
  call.root_joint = root_joint;
  call.adam = {beta1, beta2, adam_eps};
  for (size_t i = 0; i < count; ++i) {
    const std::string name = kParameterNames[i];
    call.parameters[i] = {
        in_place(reader, parameters[i], name, sizes[i]),
        in_place(reader, exp_avgs[i], name + "'s exp_avg", sizes[i]),
        in_place(reader, exp_avg_sqs[i], name + "'s exp_avg_sq", sizes[i]),
        fixed<float>(reader, steps[i], "steps", ScalarType::Float, 1, "float32 scalars")};
  }
  call.running_mean = in_place(reader, running_mean, "running_mean", h);
  call.running_variance = in_place(reader, running_variance, "running_variance", h);
  call.batches = fixed<int64_t>(reader, batches, "batches", ScalarType::Long, 1, "one int64");
  call.sums =
      fixed<double>(reader, sums, "sums", ScalarType::Double, 2, "two contiguous float64 numbers");
  const int64_t needed = workspace_size_of(call.shape, features.is_cuda());
  reader.check_device(workspace, "workspace");
  STD_TORCH_CHECK(workspace.scalar_type() == ScalarType::Byte && workspace.is_contiguous() &&
                      workspace.numel() >= needed,
                  "erd_cuda: workspace must have ", needed, " bytes, it has ", workspace.numel());
  call.workspace = workspace.mutable_data_ptr();
  run_on_device_of(features, call, cpu_kernels().regressor_step,
                   {ERD_CUDA_KERNELS(run_regressor_step_cuda)});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(erd_cuda, m) {
  m.def(
      "regressor_step_workspace(int rows, int features, int width, int outputs, bool is_double, "
      "bool on_gpu) -> int");
  m.def(
      "regressor_step_(Tensor features, Tensor targets, Tensor order, Tensor(a!) progress, "
      "Tensor(b!)[] parameters, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] "
      "steps, Tensor(f!) running_mean, Tensor(g!) running_variance, Tensor(h!) batches, Tensor(i!) "
      "sums, Tensor(j!) workspace, Tensor? seeds, Tensor lr, int rows, float dropout, float "
      "norm_eps, float momentum, bool relu_block, float beta1, float beta2, float adam_eps, int "
      "root_joint) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CompositeExplicitAutograd, m) {
  m.impl("regressor_step_workspace", TORCH_BOX(&workspace_size));
}
STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CPU, m) { m.impl("regressor_step_", TORCH_BOX(&step)); }
#if defined(ERD_HAVE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CUDA, m) { m.impl("regressor_step_", TORCH_BOX(&step)); }
#endif

}  // namespace erd::ops
