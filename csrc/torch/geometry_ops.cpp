// The ops behind project, residual, solve_root and solve_residual: forward, backward and double
// backward of each.
//
// Every tensor is a batch of rows, [N, width]: keypoints and std [N, 2J], pose [N, 3J], root [N,
// 3], intrinsics [N, 4], distortion [N, 5], confidence [N, J]. The Python layer (erd_cuda/ops)
// broadcasts and flattens; a row stride of 0, or a single row [width], shares one camera among all
// samples without a copy. Points may keep their last two dimensions; with a pose [N, J, 3] the
// forward ops return points [N, J, 2].
#include <tuple>

#include "core/geometry_shape.h"
#include "torch/tensors.h"

namespace erd::ops {
namespace {

constexpr const char* kSlotNames[kSlots] = {"keypoints",  "pose", "root",      "intrinsics",
                                            "distortion", "std",  "confidence"};

constexpr bool holds_points(int slot) {
  return slot == kSlotKeypoints || slot == kSlotPose || slot == kSlotStd;
}

constexpr bool is_optional(int slot) {
  return slot == kSlotDistortion || slot == kSlotStd || slot == kSlotConfidence;
}

// One geometry function with the slots it uses, in the order of its schema. The pose slot is always
// there and gives the sizes.
template <GeometryFunction F, int... Slots>
struct GeometryOp {
  template <int Slot>
  using Input = std::conditional_t<is_optional(Slot), MaybeTensor, Tensor>;
  template <int>
  using Maybe = MaybeTensor;
  template <int>
  using Output = Tensor;

  static const Tensor& pose_of(const Input<Slots>&... inputs) {
    const Tensor* pose = nullptr;
    ((pose = Slots == kSlotPose ? address(inputs) : pose), ...);
    return *pose;
  }
  static const Tensor* address(const Tensor& t) { return &t; }
  static const Tensor* address(const MaybeTensor&) { return nullptr; }

  static GeometryCall describe(DerivativeOrder order, RowReader& reader, int64_t model,
                               const Input<Slots>&... inputs) {
    const Tensor& pose = pose_of(inputs...);
    STD_TORCH_CHECK(model >= 0 && model <= 2, "erd_cuda: unknown camera model ", model);
    GeometryCall call;
    call.function = F;
    call.order = order;
    call.scalar = scalar_type(pose);
    call.camera_model = static_cast<int32_t>(model);
    call.count = pose.size(0);
    call.joints = joint_count(pose);
    ((call.inputs[Slots] =
          reader.rows(inputs, kSlotNames[Slots], call.count, slot_width(Slots, call.joints),
                      holds_points(Slots) ? call.joints : 0)),
     ...);
    STD_TORCH_CHECK(model == 0 || call.inputs[kSlotDistortion].data != nullptr,
                    "erd_cuda: this camera model needs distortion coefficients");
    return call;
  }

  static int64_t output_width(int64_t joints) { return geometry_output_width(F, joints); }

  static void run(const Tensor& pose, const GeometryCall& call) {
    run_on_device_of(pose, call, cpu_kernels().geometry, {ERD_CUDA_KERNELS(run_geometry_cuda)});
  }

  static Tensor forward(Input<Slots>... inputs, int64_t model) {
    const Tensor& pose = pose_of(inputs...);
    RowReader reader(pose);
    GeometryCall call = describe(DerivativeOrder::forward, reader, model, inputs...);
    Tensor output = pose.dim() == 3
                        ? torch::stable::new_empty(pose, {call.count, call.joints, 2})
                        : torch::stable::new_empty(pose, {call.count, output_width(call.joints)});
    call.output = output.mutable_data_ptr();
    run(pose, call);
    return output;
  }

  static std::tuple<Tensor, Tensor> forward_with_status(Input<Slots>... inputs, int64_t model) {
    const Tensor& pose = pose_of(inputs...);
    RowReader reader(pose);
    GeometryCall call = describe(DerivativeOrder::forward, reader, model, inputs...);
    Tensor output = torch::stable::new_empty(pose, {call.count, output_width(call.joints)});
    Tensor status =
        torch::stable::new_empty(pose, {call.count}, torch::headeronly::ScalarType::Int);
    call.output = output.mutable_data_ptr();
    call.status = static_cast<int32_t*>(status.mutable_data_ptr());
    run(pose, call);
    return {output, status};
  }

  // `wanted` has bit s set when the gradient for slot s is needed; the others come back empty.
  template <int Slot>
  static Tensor gradient(GeometryCall& call, const Tensor& like, int64_t wanted) {
    const bool is_wanted = (wanted >> Slot) & 1 && call.inputs[Slot].data != nullptr;
    if (!is_wanted) return torch::stable::new_empty(like, {0});
    Tensor gradient = torch::stable::new_empty(like, {call.count, slot_width(Slot, call.joints)});
    call.gradients[Slot] = gradient.mutable_data_ptr();
    return gradient;
  }

  static std::tuple<Output<Slots>...> backward(Tensor grad, Input<Slots>... inputs, int64_t model,
                                               int64_t wanted) {
    const Tensor& pose = pose_of(inputs...);
    RowReader reader(pose);
    GeometryCall call = describe(DerivativeOrder::backward, reader, model, inputs...);
    call.grad_output = reader.rows(grad, "grad", call.count, output_width(call.joints));
    std::tuple<Output<Slots>...> gradients{gradient<Slots>(call, pose, wanted)...};
    run(pose, call);
    return gradients;
  }

  static std::tuple<Tensor, Output<Slots>...> double_backward(Maybe<Slots>... tangents, Tensor grad,
                                                              Input<Slots>... inputs, int64_t model,
                                                              int64_t wanted) {
    const Tensor& pose = pose_of(inputs...);
    RowReader reader(pose);
    GeometryCall call = describe(DerivativeOrder::double_backward, reader, model, inputs...);
    call.grad_output = reader.rows(grad, "grad", call.count, output_width(call.joints));
    ((call.tangents[Slots] =
          reader.rows(tangents, "tangent", call.count, slot_width(Slots, call.joints))),
     ...);
    Tensor grad_grad = torch::stable::new_empty(pose, {call.count, output_width(call.joints)});
    call.output = grad_grad.mutable_data_ptr();
    std::tuple<Tensor, Output<Slots>...> gradients{grad_grad,
                                                   gradient<Slots>(call, pose, wanted)...};
    run(pose, call);
    return gradients;
  }
};

using Project =
    GeometryOp<GeometryFunction::project, kSlotPose, kSlotRoot, kSlotIntrinsics, kSlotDistortion>;
using Residual = GeometryOp<GeometryFunction::residual, kSlotKeypoints, kSlotPose, kSlotRoot,
                            kSlotIntrinsics, kSlotDistortion, kSlotStd, kSlotConfidence>;
using SolveRoot = GeometryOp<GeometryFunction::solve_root, kSlotKeypoints, kSlotPose,
                             kSlotIntrinsics, kSlotDistortion, kSlotConfidence>;
using SolveResidual = GeometryOp<GeometryFunction::solve_residual, kSlotKeypoints, kSlotPose,
                                 kSlotIntrinsics, kSlotDistortion, kSlotStd, kSlotConfidence>;

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(erd_cuda, m) {
  m.def(
      "project(Tensor pose, Tensor root, Tensor intrinsics, Tensor? distortion, int model) -> "
      "Tensor");
  m.def(
      "project_backward(Tensor grad, Tensor pose, Tensor root, Tensor intrinsics, Tensor? "
      "distortion, int model, "
      "int wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "project_double_backward(Tensor? t_pose, Tensor? t_root, Tensor? t_intrinsics, Tensor? "
      "t_distortion, "
      "Tensor grad, Tensor pose, Tensor root, Tensor intrinsics, Tensor? distortion, int model, "
      "int wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "residual(Tensor keypoints, Tensor pose, Tensor root, Tensor intrinsics, Tensor? distortion, "
      "Tensor? std, "
      "Tensor? confidence, int model) -> Tensor");
  m.def(
      "residual_backward(Tensor grad, Tensor keypoints, Tensor pose, Tensor root, Tensor "
      "intrinsics, "
      "Tensor? distortion, Tensor? std, Tensor? confidence, int model, int wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "residual_double_backward(Tensor? t_keypoints, Tensor? t_pose, Tensor? t_root, Tensor? "
      "t_intrinsics, "
      "Tensor? t_distortion, Tensor? t_std, Tensor? t_confidence, Tensor grad, Tensor keypoints, "
      "Tensor pose, "
      "Tensor root, Tensor intrinsics, Tensor? distortion, Tensor? std, Tensor? confidence, int "
      "model, int wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "solve_root(Tensor keypoints, Tensor pose, Tensor intrinsics, Tensor? distortion, Tensor? "
      "confidence, "
      "int model) -> (Tensor, Tensor)");
  m.def(
      "solve_root_backward(Tensor grad, Tensor keypoints, Tensor pose, Tensor intrinsics, Tensor? "
      "distortion, "
      "Tensor? confidence, int model, int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "solve_root_double_backward(Tensor? t_keypoints, Tensor? t_pose, Tensor? t_intrinsics, "
      "Tensor? t_distortion, Tensor? t_confidence, Tensor grad, Tensor keypoints, Tensor pose, "
      "Tensor intrinsics, "
      "Tensor? distortion, Tensor? confidence, int model, int wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The first result holds the residual [2J] and the root [3] of each sample, the second its
  // status.
  m.def(
      "solve_residual(Tensor keypoints, Tensor pose, Tensor intrinsics, Tensor? distortion, "
      "Tensor? std, Tensor? confidence, int model) -> (Tensor, Tensor)");
  m.def(
      "solve_residual_backward(Tensor grad, Tensor keypoints, Tensor pose, Tensor intrinsics, "
      "Tensor? distortion, Tensor? std, Tensor? confidence, int model, int wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "solve_residual_double_backward(Tensor? t_keypoints, Tensor? t_pose, Tensor? t_intrinsics, "
      "Tensor? t_distortion, Tensor? t_std, Tensor? t_confidence, Tensor grad, Tensor keypoints, "
      "Tensor pose, Tensor intrinsics, Tensor? distortion, Tensor? std, Tensor? confidence, "
      "int model, int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

// The same functions serve CPU and GPU: each asks its tensors where they are.
namespace {

void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("project", TORCH_BOX(&Project::forward));
  m.impl("project_backward", TORCH_BOX(&Project::backward));
  m.impl("project_double_backward", TORCH_BOX(&Project::double_backward));
  m.impl("residual", TORCH_BOX(&Residual::forward));
  m.impl("residual_backward", TORCH_BOX(&Residual::backward));
  m.impl("residual_double_backward", TORCH_BOX(&Residual::double_backward));
  m.impl("solve_root", TORCH_BOX(&SolveRoot::forward_with_status));
  m.impl("solve_root_backward", TORCH_BOX(&SolveRoot::backward));
  m.impl("solve_root_double_backward", TORCH_BOX(&SolveRoot::double_backward));
  m.impl("solve_residual", TORCH_BOX(&SolveResidual::forward_with_status));
  m.impl("solve_residual_backward", TORCH_BOX(&SolveResidual::backward));
  m.impl("solve_residual_double_backward", TORCH_BOX(&SolveResidual::double_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CPU, m) { register_kernels(m); }
#if defined(ERD_HAVE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(erd_cuda, CUDA, m) { register_kernels(m); }
#endif

}  // namespace erd::ops
