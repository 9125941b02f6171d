// CPU kernels of project, residual, solve_root and solve_residual: forward, backward and double
// backward.
//
// A thread takes a range of sample groups. A group is as many samples as a SIMD register has lanes:
// it is transposed into lanes, the sample function runs once for all of them, the results are
// transposed back.
#include "core/sample_functions.h"
#include "cpu/lanes.h"

ERD_NAMESPACE_BEGIN

namespace {

// How many scalars one T spans, and where its derivative sits.
template <class T>
struct LaneLayout;

template <class S>
struct LaneLayout<Simd<S>> {
  static constexpr int64_t lanes = kLanes<S>, pitch = kLanes<S>, derivative = 0;
};

template <class S>
struct LaneLayout<Dual<Simd<S>>> {
  static constexpr int64_t lanes = kLanes<S>, pitch = 2 * kLanes<S>, derivative = kLanes<S>;
};

// Rows to a group's dual numbers and back, from or to where the values or the derivatives begin.
// Second order has the largest kernels and is used the least: they call one copy of the transposes,
// which spares a quarter of this file's compile time. The others hold their own.
template <class T, class S = ScalarOf<T>>
ERD_COMPILED_ONCE void load_dual(const Rows& rows, int64_t first, int64_t count, int64_t width,
                                 S* target) {
  load_lanes(rows, first, count, LaneLayout<T>::lanes, width, LaneLayout<T>::pitch, target);
}

template <class T, class S = ScalarOf<T>>
ERD_COMPILED_ONCE void store_dual(const S* source, int64_t first, int64_t count, int64_t width,
                                  void* target) {
  store_lanes(source, first, count, width, LaneLayout<T>::pitch, target);
}

template <class Function>
int64_t total_width(int64_t joints) {
  int64_t sum = 0;
  for (int slot = 0; slot < kSlots; ++slot) {
    if (Function::uses(slot)) sum += slot_width(slot, joints);
  }
  return sum;
}

// One group's inputs in lanes. Inputs shared by all samples, and those that are absent, are set up
// once.
template <class Function, class T>
class GroupInputs {
 public:
  using S = ScalarOf<T>;
  using Layout = LaneLayout<T>;

  explicit GroupInputs(const GeometryCall& call)
      : call_(call), buffer_(total_width<Function>(call.joints)) {
    T* next = buffer_.data();
    for (int slot = 0; slot < kSlots; ++slot) {
      slots_.data[slot] = nullptr;
      if (!Function::uses(slot)) continue;
      slots_.data[slot] = next;
      next += slot_width(slot, call.joints);
      const Rows& rows = call.inputs[slot];
      if (rows.data == nullptr) {
        // No std and no confidence mean 1; the pinhole camera never reads its distortion.
        fill(slot, S(1), 0);
      } else if (rows.stride == 0) {
        load(slot, rows, 0, 1, 0);
      }
      if (Layout::derivative == 0) continue;
      const Rows& tangent = call.tangents[slot];
      if (tangent.data == nullptr) {
        fill(slot, S(0), Layout::derivative);
      } else if (tangent.stride == 0) {
        load(slot, tangent, 0, 1, Layout::derivative);
      }
    }
  }

  const Slots<T>& load_group(int64_t first, int64_t count) {
    for (int slot = 0; slot < kSlots; ++slot) {
      if (!Function::uses(slot)) continue;
      if (varies(call_.inputs[slot])) load(slot, call_.inputs[slot], first, count, 0);
      if (Layout::derivative != 0 && varies(call_.tangents[slot])) {
        load(slot, call_.tangents[slot], first, count, Layout::derivative);
      }
    }
    return slots_;
  }

 private:
  static bool varies(const Rows& rows) { return rows.data != nullptr && rows.stride != 0; }

  S* scalars(int slot) { return reinterpret_cast<S*>(slots_.data[slot]); }

  void load(int slot, const Rows& rows, int64_t first, int64_t count, int64_t offset) {
    const int64_t width = slot_width(slot, call_.joints);
    if constexpr (Layout::derivative == 0) {
      load_lanes(rows, first, count, Layout::lanes, width, Layout::pitch, scalars(slot) + offset);
    } else {
      load_dual<T>(rows, first, count, width, scalars(slot) + offset);
    }
  }
  void fill(int slot, S value, int64_t offset) {
    fill_lanes(value, Layout::lanes, slot_width(slot, call_.joints), Layout::pitch,
               scalars(slot) + offset);
  }

  const GeometryCall& call_;
  AlignedBuffer<T> buffer_;
  Slots<T> slots_;
};

// Gradients of one group, for every used slot; those that are wanted are written out.
template <class Function, class T>
class GroupGradients {
 public:
  using S = ScalarOf<T>;
  using Layout = LaneLayout<T>;

  explicit GroupGradients(const GeometryCall& call)
      : call_(call), buffer_(total_width<Function>(call.joints)) {
    T* next = buffer_.data();
    for (int slot = 0; slot < kSlots; ++slot) {
      slots.data[slot] = next;
      if (Function::uses(slot)) next += slot_width(slot, call.joints);
    }
  }

  void store_group(int64_t first, int64_t count) {
    for (int slot = 0; slot < kSlots; ++slot) {
      if (!Function::uses(slot) || call_.gradients[slot] == nullptr) continue;
      const S* const source = reinterpret_cast<const S*>(slots.data[slot]) + Layout::derivative;
      const int64_t width = slot_width(slot, call_.joints);
      if constexpr (Layout::derivative == 0) {
        store_lanes(source, first, count, width, Layout::pitch, call_.gradients[slot]);
      } else {
        store_dual<T>(source, first, count, width, call_.gradients[slot]);
      }
    }
  }

  Slots<T> slots;

 private:
  const GeometryCall& call_;
  AlignedBuffer<T> buffer_;
};

template <class S>
void store_status(const Simd<S>& status, int64_t first, int64_t count, int32_t* target) {
  for (int64_t l = 0; l < count; ++l) target[first + l] = static_cast<int32_t>(status.v[l]);
}

template <class Function, class S>
void forward(const GeometryCall& call, int64_t first_group, int64_t end_group) {
  using T = Simd<S>;
  GroupInputs<Function, T> inputs(call);
  const int64_t width = Function::output_width(call.joints);
  AlignedBuffer<T> output(width);
  for (int64_t group = first_group; group < end_group; ++group) {
    const int64_t first = group * kLanes<S>;
    const int64_t count = call.count - first < kLanes<S> ? call.count - first : kLanes<S>;
    const Slots<T>& in = inputs.load_group(first, count);
    if constexpr (Function::has_status) {
      store_status(Function::forward_with_status(call.joints, in, output.data()), first, count,
                   call.status);
    } else {
      Function::forward(call.joints, in, output.data());
    }
    store_lanes(reinterpret_cast<const S*>(output.data()), first, count, width, kLanes<S>,
                call.output);
  }
}

template <class Function, class S>
void backward(const GeometryCall& call, int64_t first_group, int64_t end_group) {
  using T = Simd<S>;
  GroupInputs<Function, T> inputs(call);
  GroupGradients<Function, T> gradients(call);
  const int64_t width = Function::output_width(call.joints);
  AlignedBuffer<T> grad(width);
  for (int64_t group = first_group; group < end_group; ++group) {
    const int64_t first = group * kLanes<S>;
    const int64_t count = call.count - first < kLanes<S> ? call.count - first : kLanes<S>;
    const Slots<T>& in = inputs.load_group(first, count);
    load_lanes(call.grad_output, first, count, kLanes<S>, width, kLanes<S>,
               reinterpret_cast<S*>(grad.data()));
    Function::vjp(call.joints, in, grad.data(), gradients.slots);
    gradients.store_group(first, count);
  }
}

// See core/dual.h: forward and vjp on inputs that carry the incoming gradients as tangents.
template <class Function, class S>
void double_backward(const GeometryCall& call, int64_t first_group, int64_t end_group) {
  using T = Dual<Simd<S>>;
  using Layout = LaneLayout<T>;
  GroupInputs<Function, T> inputs(call);
  GroupGradients<Function, T> gradients(call);
  const int64_t width = Function::output_width(call.joints);
  AlignedBuffer<T> grad(width);
  AlignedBuffer<T> output(width);
  fill_lanes(S(0), Layout::lanes, width, Layout::pitch,
             reinterpret_cast<S*>(grad.data()) + Layout::derivative);
  for (int64_t group = first_group; group < end_group; ++group) {
    const int64_t first = group * kLanes<S>;
    const int64_t count = call.count - first < kLanes<S> ? call.count - first : kLanes<S>;
    const Slots<T>& in = inputs.load_group(first, count);
    load_dual<T>(call.grad_output, first, count, width, reinterpret_cast<S*>(grad.data()));
    Function::forward(call.joints, in, output.data());
    store_dual<T>(reinterpret_cast<const S*>(output.data()) + Layout::derivative, first, count,
                  width, call.output);
    Function::vjp(call.joints, in, grad.data(), gradients.slots);
    gradients.store_group(first, count);
  }
}

using RangeKernel = void (*)(const GeometryCall&, int64_t, int64_t);

template <class Function, class S>
RangeKernel select_order(const GeometryCall& call) {
  switch (call.order) {
    case DerivativeOrder::backward:
      return backward<Function, S>;
    case DerivativeOrder::double_backward:
      return double_backward<Function, S>;
    default:
      return forward<Function, S>;
  }
}

template <CameraModel M, class S>
RangeKernel select_function(const GeometryCall& call) {
  switch (call.function) {
    case GeometryFunction::project:
      return select_order<ProjectFunction<M>, S>(call);
    case GeometryFunction::residual:
      return select_order<ResidualFunction<M>, S>(call);
    case GeometryFunction::solve_root:
      return select_order<SolveRootFunction<M>, S>(call);
    default:
      return select_order<SolveResidualFunction<M>, S>(call);
  }
}

template <class S>
RangeKernel select_model(const GeometryCall& call) {
  switch (static_cast<CameraModel>(call.camera_model)) {
    case CameraModel::opencv:
      return select_function<CameraModel::opencv, S>(call);
    case CameraModel::h36m:
      return select_function<CameraModel::h36m, S>(call);
    default:
      return select_function<CameraModel::pinhole, S>(call);
  }
}

struct Context {
  const GeometryCall& call;
  RangeKernel kernel;
};

}  // namespace

void run_geometry(const GeometryCall& call, ParallelFor parallel_for) {
  const bool is_float = call.scalar == ScalarType::float32;
  Context context{call, is_float ? select_model<float>(call) : select_model<double>(call)};
  const int64_t lanes = is_float ? kLanes<float> : kLanes<double>;
  // A group costs about a microsecond; a thread is worth waking for some dozens of them.
  constexpr int64_t kGroupsPerTask = 32;
  parallel_for.run((call.count + lanes - 1) / lanes, kGroupsPerTask,
                   [](void* c, int64_t begin, int64_t end) {
                     const Context& context = *static_cast<Context*>(c);
                     context.kernel(context.call, begin, end);
                   },
                   &context);
}

ERD_NAMESPACE_END
