// erd_cuda._array: the kernels for Python without torch, and a short way to them from torch's
// tensors (tensor_refine.h).
//
// It takes addresses, strides and sizes. erd_cuda/array checks NumPy's and CuPy's arrays, turns
// them into these numbers and keeps the arrays alive; nothing here can tell a wrong address. Row
// inputs are as in csrc/torch/geometry_ops.cpp, but with any strides.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "cpu/kernels.h"
#include "python/tensor_refine.h"
#include "threads/thread_pool.h"
#if defined(ERD_HAVE_CUDA)
#include "cuda/kernels.h"
#endif

namespace py = pybind11;

namespace erd::python {
namespace {

// An address as Python keeps it; 0 for what is absent.
using Address = uintptr_t;

// One row input: address, then the strides of Rows. None if it is absent.
using RowsArgument = std::optional<std::tuple<Address, int64_t, int64_t, int64_t, int64_t>>;

// The GPU and the stream to work on; None for the CPU.
using DeviceArgument = std::optional<std::tuple<int32_t, Address>>;

// K, H, and the addresses of w_in, b_in, w_hidden, b_hidden, w_out, b_out, mean2d.
using WeightsArgument = std::tuple<int64_t, int64_t, std::array<Address, 7>>;

// The weights as tensor cores take them: their address, that of their biases, the features' scale.
using FragmentsArgument = std::optional<std::tuple<Address, Address, float>>;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Rows rows(const RowsArgument& argument) {
  if (!argument.has_value()) return {};
  const auto& [address, stride, channels, joint_stride, channel_stride] = *argument;
  return {pointer(address), stride, channels, joint_stride, channel_stride};
}

#if defined(ERD_HAVE_CUDA)
constexpr bool kHasCuda = true;
void run_cuda(const GeometryCall& call, const CudaDevice& device) {
  run_geometry_cuda(call, device);
}
void run_cuda(const RefineCall& call, const CudaDevice& device) { run_refine_cuda(call, device); }
#else
constexpr bool kHasCuda = false;
#endif

template <class Call>
void run(const Call& call, const DeviceArgument& device, void (*on_cpu)(const Call&, ParallelFor)) {
  if (!device.has_value()) return on_cpu(call, pool_parallel_for());
#if defined(ERD_HAVE_CUDA)
  run_cuda(call, cuda_device(std::get<0>(*device), pointer(std::get<1>(*device))));
#else
  throw std::runtime_error("erd_cuda was built without CUDA kernels, expected arrays on the CPU");
#endif
}

void geometry(int32_t function, int32_t scalar, int32_t model, int64_t count, int64_t joints,
              const std::array<RowsArgument, kSlots>& inputs, Address output, Address status,
              const DeviceArgument& device) {
  GeometryCall call;
  call.function = static_cast<GeometryFunction>(function);
  call.order = DerivativeOrder::forward;
  call.scalar = static_cast<ScalarType>(scalar);
  call.camera_model = model;
  call.count = count;
  call.joints = joints;
  for (size_t slot = 0; slot < inputs.size(); ++slot) call.inputs[slot] = rows(inputs[slot]);
  call.output = pointer(output);
  call.status = pointer<int32_t>(status);
  run(call, device, cpu_kernels().geometry);
}

void refine(int32_t scalar, int32_t model, int32_t block, int32_t features, int32_t root_mode,
            int32_t precision, bool every_stage, int64_t count, int64_t joints,
            const std::array<RowsArgument, 6>& inputs, const WeightsArgument& weights,
            const FragmentsArgument& fragments, double residual_limit, Address output,
            const DeviceArgument& device) {
  RefineCall call;
  call.scalar = static_cast<ScalarType>(scalar);
  call.camera_model = model;
  call.block = static_cast<RegressorBlock>(block);
  call.features = static_cast<Features>(features);
  call.root_mode = static_cast<RootMode>(root_mode);
  call.precision = static_cast<Precision>(precision);
  call.every_stage = every_stage;
  call.count = count;
  call.joints = joints;
  Rows* const targets[] = {&call.keypoints,  &call.pose,       &call.root,
                           &call.intrinsics, &call.distortion, &call.confidence};
  for (size_t i = 0; i < inputs.size(); ++i) *targets[i] = rows(inputs[i]);
  const auto& [stages, width, matrices] = weights;
  call.stages = stages;
  call.width = width;
  call.w_in = pointer(matrices[0]);
  call.b_in = pointer(matrices[1]);
  call.w_hidden = pointer(matrices[2]);
  call.b_hidden = pointer(matrices[3]);
  call.w_out = pointer(matrices[4]);
  call.b_out = pointer(matrices[5]);
  call.mean2d = pointer(matrices[6]);
  if (fragments.has_value()) {
    call.fragments = pointer(std::get<0>(*fragments));
    call.fragment_biases = pointer<const float>(std::get<1>(*fragments));
    call.feature_scale = std::get<2>(*fragments);
  }
  call.residual_limit = residual_limit;
  call.output = pointer(output);
  run(call, device, cpu_kernels().refine);
}

}  // namespace
}  // namespace erd::python

PYBIND11_MODULE(_array, m, py::mod_gil_not_used()) {
  m.attr("has_cuda") = erd::python::kHasCuda;
  m.def("set_num_threads", &erd::set_num_threads);
  m.def("num_threads", &erd::num_threads);
  using WithoutGil = py::call_guard<py::gil_scoped_release>;
  m.def("geometry", &erd::python::geometry, WithoutGil());
  m.def("refine", &erd::python::refine, WithoutGil());
  erd::python::add_tensor_refine(m);
}
