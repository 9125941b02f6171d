// From torch tensors to the kernels' raw rows, and from a call to the kernels of the tensors'
// device.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "torch/cuda_stream.h"

namespace erd::ops {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline ScalarType scalar_type(const Tensor& t) {
  const auto dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == torch::headeronly::ScalarType::Float ||
                      dtype == torch::headeronly::ScalarType::Double,
                  "erd_cuda: expected a float32 or float64 tensor");
  return dtype == torch::headeronly::ScalarType::Float ? ScalarType::float32 : ScalarType::float64;
}

// Most joints of a pose: what the GPU kernels have shared memory for.
constexpr int64_t kMaxJoints = 128;

// J of a pose [N, 3J] or [N, J, 3].
inline int64_t joint_count(const Tensor& pose) {
  const bool are_points = pose.dim() == 3 && pose.size(2) == 3;
  STD_TORCH_CHECK(are_points || (pose.dim() == 2 && pose.size(1) % 3 == 0),
                  "erd_cuda: pose must be an (N, 3J) or (N, J, 3) tensor");
  const int64_t joints = are_points ? pose.size(1) : pose.size(1) / 3;
  STD_TORCH_CHECK(joints >= 1 && joints <= kMaxJoints, "erd_cuda: pose must have 1 to ", kMaxJoints,
                  " joints, it has ", joints);
  return joints;
}

// Turns tensors into raw rows; keeps the copies of badly strided parameters alive.
class RowReader {
 public:
  // `like` is any input of the call: all must share its dtype and device.
  explicit RowReader(const Tensor& like) : like_(like), device_index_(like.get_device_index()) {}

  // t [count, width] or, if it holds points, [count, joints, channels] with joints * channels =
  // width; without the first dimension it is one row that all samples share. In any strides:
  // nothing is copied.
  Rows rows(const Tensor& t, const char* name, int64_t count, int64_t width, int64_t joints = 0) {
    check(t, name);
    const int64_t dim = t.dim();
    const bool is_row = dim == 1 && t.size(0) == width;
    const bool is_rows = dim == 2 && t.size(0) == count && t.size(1) == width;
    const bool are_points =
        dim >= 2 && t.size(dim - 2) == joints && joints * t.size(dim - 1) == width;
    const bool fits = is_row || is_rows || (are_points && (dim == 2 || t.size(0) == count));
    STD_TORCH_CHECK(fits && dim <= 3, "erd_cuda: ", name, " must be a (", count, ", ", width,
                    ") tensor");
    // An empty tensor may have no address, but it was given.
    static const double nothing = 0;
    const void* data = t.const_data_ptr();
    STD_TORCH_CHECK(data != nullptr || t.numel() == 0, "erd_cuda: ", name, " has no memory");
    if (data == nullptr) data = &nothing;
    if (is_row) return {data, 0, 1, t.stride(0), 0};
    if (is_rows) return {data, t.stride(0), 1, t.stride(1), 0};
    const int64_t stride = dim == 2 ? 0 : t.stride(0);
    return {data, stride, t.size(dim - 1), t.stride(dim - 2), t.stride(dim - 1)};
  }
  Rows rows(const MaybeTensor& t, const char* name, int64_t count, int64_t width,
            int64_t joints = 0) {
    return t.has_value() ? rows(*t, name, count, width, joints) : Rows{};
  }

  static void check_alignment(const void* data, const char* name) {
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % 16 == 0, "erd_cuda: ", name,
                    " must begin at a multiple of 16 bytes");
  }

  // A dense parameter with `size` elements.
  const void* parameter(const Tensor& t, const char* name, int64_t size) {
    check(t, name);
    STD_TORCH_CHECK(t.numel() == size, "erd_cuda: ", name, " must have ", size,
                    " elements, it has ", t.numel());
    held_.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    return held_.back().const_data_ptr();
  }

  void check_device(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.is_cpu() == like_.is_cpu() && t.get_device_index() == device_index_,
                    "erd_cuda: ", name, " is on another device than the other inputs");
  }

  // 16-bit numbers of a kernel's own arrangement: dense, as their bits, read 16 bytes at a time.
  const void* bits(const Tensor& t, const char* name) {
    check_device(t, name);
    STD_TORCH_CHECK(t.scalar_type() == torch::headeronly::ScalarType::Short && t.is_contiguous(),
                    "erd_cuda: ", name, " must be a contiguous int16 tensor");
    check_alignment(t.const_data_ptr(), name);
    return t.const_data_ptr();
  }

  // The CPU's arrangement of `size` 32-bit elements, as their bits.
  const void* pairs(const Tensor& t, const char* name, int64_t size) const {
    check_device(t, name);
    STD_TORCH_CHECK(t.scalar_type() == torch::headeronly::ScalarType::Int && t.is_contiguous() &&
                        t.numel() == size,
                    "erd_cuda: ", name, " must be a contiguous int32 tensor with ", size,
                    " elements, for bf16 on a CPU");
    return t.const_data_ptr();
  }

 private:
  void check(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.scalar_type() == like_.scalar_type(), "erd_cuda: ", name,
                    " has another dtype than the other inputs");
    check_device(t, name);
  }

  const Tensor& like_;
  int32_t device_index_;
  std::vector<Tensor> held_;
};

inline ParallelFor torch_parallel_for() {
  return {[](int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
    if (count == 0) return;
    torch::stable::parallel_for(0, count, grain,
                                [&](int64_t begin, int64_t end) { body(context, begin, end); });
  }};
}

// A run_*_cuda function as the argument of run_on_device_of; a build without CUDA does not have it.
#if defined(ERD_HAVE_CUDA)
constexpr bool kHaveCuda = true;
#define ERD_CUDA_KERNELS(function) function
#else
constexpr bool kHaveCuda = false;
#define ERD_CUDA_KERNELS(function) nullptr
#endif

template <class Call>
struct CudaKernels {
  void (*run)(const Call& call, const CudaDevice& device);
};

// Runs a call where its tensors are: on the CPU, or on the current stream of their GPU.
template <class Call>
void run_on_device_of(const Tensor& tensor, const Call& call,
                      void (*cpu_kernels)(const Call&, ParallelFor),
                      CudaKernels<Call> cuda_kernels) {
  if constexpr (kHaveCuda) {
    if (tensor.is_cuda()) {
      return cuda_kernels.run(call, current_cuda_device(tensor.get_device_index()));
    }
  }
  cpu_kernels(call, torch_parallel_for());
}

}  // namespace erd::ops
