// project, residual, solve_root and solve_residual on a GPU: forward, backward and second order.
//
// A block takes tiles of up to 64 samples. All its threads bring the tile's rows into shared memory
// (coalesced, asynchronously), then each thread runs the sample function of core/sample_functions.h
// on one sample, then all threads write the results back. Most rows lie in
// shared memory as they do in global memory. The threads of a warp read the same element of 32
// rows: a width that is a multiple of 4 gets a gap, lest they meet in few banks. Gradients take the
// place of the inputs they belong to: a sample function reads a joint before it writes the joint's
// gradient. Several blocks share a multiprocessor, so that some load while others compute.
#pragma once

#include "core/dual.h"
#include "core/sample_functions.h"
#include "cuda/geometry_plan.h"
#include "cuda/vectors.h"

ERD_NAMESPACE_BEGIN

// The number type of a kernel: second order runs first order on dual numbers (core/dual.h).
template <DerivativeOrder Order, class S>
using NumberOf = std::conditional_t<Order == DerivativeOrder::double_backward, Dual<S>, S>;

ERD_DEVICE int64_t global_element(const Transfer& t, int64_t row, uint32_t column) {
  if (t.channels == 1) return row * t.stride + column * t.joint_stride;
  const uint32_t channels = static_cast<uint32_t>(t.channels);
  return row * t.stride + (column / channels) * t.joint_stride +
         (column % channels) * t.channel_stride;
}

// Calls visit(element, row, column) for this thread's share of a (samples, width) matrix.
template <class Visit>
ERD_DEVICE void for_elements(const Transfer& t, int32_t samples, uint32_t begin,
                             const Visit& visit) {
  const uint32_t width = static_cast<uint32_t>(t.width);
  const uint32_t elements = static_cast<uint32_t>(samples) * width;
  for (uint32_t e = begin + threadIdx.x; e < elements; e += kGeometryThreads) {
    const uint32_t row = static_cast<uint32_t>((uint64_t{e} * t.width_inverse) >> 31);
    visit(e, row, e - row * width);
  }
}

template <class T, class S = ScalarOf<T>>
ERD_DEVICE void load_tile(const Transfer& t, int64_t first, int32_t samples, T* shared) {
  constexpr int kParts = sizeof(T) / sizeof(S);
  S* const target = reinterpret_cast<S*>(shared + t.offset) + t.part;
  const auto place = [&](uint32_t row, uint32_t column) {
    return target + (row * static_cast<uint32_t>(t.pitch) + column) * kParts;
  };
  if (t.data == nullptr) {
    for_elements(t, samples, 0, [&](uint32_t, uint32_t row, uint32_t column) {
      *place(row, column) = static_cast<S>(t.fill);
    });
    return;
  }
  const S* const source = static_cast<const S*>(t.data);
  if (!t.dense) {
    for_elements(t, samples, 0, [&](uint32_t, uint32_t row, uint32_t column) {
      copy_async<sizeof(S)>(place(row, column), source + global_element(t, first + row, column));
    });
    return;
  }
  const S* const rows = source + first * t.width;
  uint32_t done = 0;
  if (t.vectors) {
    constexpr uint32_t kElements = sizeof(Four<uint32_t>) / sizeof(S);
    const uint32_t elements = static_cast<uint32_t>(samples) * static_cast<uint32_t>(t.width);
    done = elements / kElements * kElements;
    for (uint32_t e = threadIdx.x * kElements; e < done; e += kGeometryThreads * kElements) {
      copy_async<16>(target + e, rows + e);
    }
  }
  for_elements(t, samples, done, [&](uint32_t e, uint32_t row, uint32_t column) {
    copy_async<sizeof(S)>(place(row, column), rows + e);
  });
}

template <class T, class S = ScalarOf<T>>
ERD_DEVICE void store_tile(const Transfer& t, int64_t first, int32_t samples, const T* shared) {
  constexpr int kParts = sizeof(T) / sizeof(S);
  const S* const source = reinterpret_cast<const S*>(shared + t.offset) + t.part;
  S* const rows = static_cast<S*>(t.data) + first * t.width;
  uint32_t done = 0;
  if (t.vectors) {
    constexpr uint32_t kElements = sizeof(Four<uint32_t>) / sizeof(S);
    const uint32_t elements = static_cast<uint32_t>(samples) * static_cast<uint32_t>(t.width);
    done = elements / kElements * kElements;
    for (uint32_t e = threadIdx.x * kElements; e < done; e += kGeometryThreads * kElements) {
      *reinterpret_cast<Four<uint32_t>*>(rows + e) =
          *reinterpret_cast<const Four<uint32_t>*>(source + e);
    }
  }
  for_elements(t, samples, done, [&](uint32_t e, uint32_t row, uint32_t column) {
    rows[e] = source[(row * static_cast<uint32_t>(t.pitch) + column) * kParts];
  });
}

// Root and camera of one sample in registers: every joint needs them.
template <class T>
struct SampleCamera {
  T root[3];
  T intrinsics[kIntrinsics];
  T distortion[kDistortion];

  // `rows` with these in place of its own.
  ERD_DEVICE Slots<T> slots(Slots<T> rows) {
    rows.data[kSlotRoot] = root;
    rows.data[kSlotIntrinsics] = intrinsics;
    rows.data[kSlotDistortion] = distortion;
    return rows;
  }
};

template <int Width, class T>
ERD_DEVICE void read_row(T (&numbers)[Width], const Place& place, int32_t sample, const T* shared) {
#pragma unroll
  for (int i = 0; i < Width; ++i) numbers[i] = shared[place.offset + sample * place.pitch + i];
}

template <int Width, class T>
ERD_DEVICE void write_row(const T (&numbers)[Width], const Place& place, int32_t sample,
                          T* shared) {
  if (place.offset < 0) return;
#pragma unroll
  for (int i = 0; i < Width; ++i) shared[place.offset + sample * place.pitch + i] = numbers[i];
}

template <class Function, class T>
ERD_DEVICE Slots<T> sample_rows(const Place (&places)[kSlots], int32_t sample, T* shared) {
  Slots<T> slots;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    slots.data[slot] =
        Function::uses(slot) ? shared + places[slot].offset + sample * places[slot].pitch : nullptr;
  }
  return slots;
}

template <class Function, DerivativeOrder Order, class S>
ERD_DEVICE void run_sample(const GeometryParameters& p, int64_t first, int32_t sample,
                           NumberOf<Order, S>* shared) {
  using T = NumberOf<Order, S>;
  // Second order has no registers to spare.
  constexpr bool kCameraInRegisters = Order != DerivativeOrder::double_backward;
  SampleCamera<T> camera;
  Slots<T> in = sample_rows<Function>(p.input, sample, shared);
  if constexpr (kCameraInRegisters) {
    if constexpr (Function::uses(kSlotRoot)) {
      read_row(camera.root, p.input[kSlotRoot], sample, shared);
    }
    read_row(camera.intrinsics, p.input[kSlotIntrinsics], sample, shared);
    read_row(camera.distortion, p.input[kSlotDistortion], sample, shared);
    in = camera.slots(in);
  }

  if constexpr (Order != DerivativeOrder::backward) {
    T* const output = shared + p.output.offset + sample * p.output.pitch;
    if constexpr (Function::has_status && Order == DerivativeOrder::forward) {
      p.status[first + sample] =
          static_cast<int32_t>(Function::forward_with_status(p.joints, in, output));
    } else {
      Function::forward(p.joints, in, output);
    }
  }
  if constexpr (Order != DerivativeOrder::forward) {
    const T* const upstream = shared + p.upstream.offset + sample * p.upstream.pitch;
    const Slots<T> g = sample_rows<Function>(p.gradient, sample, shared);
    if constexpr (kCameraInRegisters) {
      SampleCamera<T> gradient;
      Function::vjp(p.joints, in, upstream, gradient.slots(g));
      if constexpr (Function::uses(kSlotRoot)) {
        write_row(gradient.root, p.gradient[kSlotRoot], sample, shared);
      }
      write_row(gradient.intrinsics, p.gradient[kSlotIntrinsics], sample, shared);
      write_row(gradient.distortion, p.gradient[kSlotDistortion], sample, shared);
    } else {
      Function::vjp(p.joints, in, upstream, g);
    }
  }
}

template <class Function, DerivativeOrder Order, class S>
ERD_KERNEL(kGeometryThreads, 4)
geometry_kernel(GeometryParameters p) {
  using T = NumberOf<Order, S>;
  SharedMemory memory;
  T* const shared = memory.take<T>(p.numbers);
  for (int i = 0; i < p.shared_loads; ++i) load_tile<T>(p.load[i], 0, 1, shared);

  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const int64_t first = tile * p.tile;
    const int64_t left = p.count - first;
    const int32_t samples = left < p.tile ? static_cast<int32_t>(left) : p.tile;
    for (int i = p.shared_loads; i < p.loads; ++i) load_tile<T>(p.load[i], first, samples, shared);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();

    const int32_t sample = static_cast<int32_t>(threadIdx.x);
    if (sample < samples) run_sample<Function, Order, S>(p, first, sample, shared);
    __syncthreads();

    for (int i = 0; i < p.stores; ++i) store_tile<T>(p.store[i], first, samples, shared);
    __syncthreads();
  }
}

using GeometryKernel = void (*)(GeometryParameters);

template <class Function, class S>
GeometryKernel select_geometry_order(DerivativeOrder order) {
  switch (order) {
    case DerivativeOrder::backward:
      return geometry_kernel<Function, DerivativeOrder::backward, S>;
    case DerivativeOrder::double_backward:
      return geometry_kernel<Function, DerivativeOrder::double_backward, S>;
    default:
      return geometry_kernel<Function, DerivativeOrder::forward, S>;
  }
}

template <CameraModel M, class S>
GeometryKernel select_geometry_function(const GeometryCall& call) {
  switch (call.function) {
    case GeometryFunction::project:
      return select_geometry_order<ProjectFunction<M>, S>(call.order);
    case GeometryFunction::residual:
      return select_geometry_order<ResidualFunction<M>, S>(call.order);
    case GeometryFunction::solve_root:
      return select_geometry_order<SolveRootFunction<M>, S>(call.order);
    default:
      return select_geometry_order<SolveResidualFunction<M>, S>(call.order);
  }
}

template <class S>
GeometryKernel select_geometry_kernel(const GeometryCall& call) {
  switch (static_cast<CameraModel>(call.camera_model)) {
    case CameraModel::opencv:
      return select_geometry_function<CameraModel::opencv, S>(call);
    case CameraModel::h36m:
      return select_geometry_function<CameraModel::h36m, S>(call);
    default:
      return select_geometry_function<CameraModel::pinhole, S>(call);
  }
}

ERD_NAMESPACE_END
