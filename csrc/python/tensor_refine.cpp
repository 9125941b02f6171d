// One call for few poses: torch's dispatcher, with its boxed arguments and handles, and its
// allocator take longer than refining a pose. DLPack's exchange table reads torch's tensors from C
// without torch's headers, and hands memory of ours to torch as a tensor.
//
// Three functions, for erd_cuda/ops/direct.py and erd_cuda/modules/packed.py alone:
//
//   use_tensors(type, table)           the class of tensors, and its capsule with the table
//   tensor_plan(address, tensors, kept)
//                                      a RefineCall without samples, see refine_ops.cpp, that
//                                      points into these tensors and into what is kept with it
//   refine_tensors(plan, ...)          the refined pose, or None: then another way must be found
//
// None stands for everything that this way does not serve, wrong arguments included: larger
// batches, other dtypes and shapes, gradients, weights that have changed since.
#include "python/tensor_refine.h"

#include <pybind11/stl.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "core/feature_count.h"
#include "cpu/kernels.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace erd::python {
namespace {

// More than this, some 20 us, is worth waking other threads for and letting go of Python's lock.
constexpr int64_t kMostMultiplyAdds = 2'000'000;
constexpr int64_t kMostPoses = 8;

int64_t multiply_adds(const RefineCall& call) {
  const int64_t hidden_layers = call.block == RegressorBlock::relu ? 2 : 0;
  const int64_t weights = feature_count(call) + hidden_layers * call.width + 3 * call.joints;
  return call.count * call.stages * call.width * weights;
}

constexpr const char* kPlanName = "erd_cuda.tensor_plan";

// The class whose own instances, no subclass's, are read, and how. Set once, on import.
PyTypeObject* tensor_type = nullptr;
const dlpack::ExchangeTable* exchange = nullptr;

struct Names {
  PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject* version = PyUnicode_InternFromString("_version");
  PyObject* is_negated = PyUnicode_InternFromString("is_neg");
};
const Names* names = nullptr;

// What a Python call that failed is worth: nothing, and no exception.
PyObject* none_instead() {
  PyErr_Clear();
  return Py_NewRef(Py_None);
}

// Whether an attribute, or a method without arguments, is True.
bool is_true(PyObject* result) {
  if (result == nullptr) PyErr_Clear();
  const bool answer = result == Py_True;
  Py_XDECREF(result);
  return answer;
}

// The number of times that a tensor has been changed in place; -1 where nothing counts.
int64_t version_of(PyObject* tensor) {
  PyObject* const number = PyObject_GetAttr(tensor, names->version);
  const int64_t version = number == nullptr ? -1 : PyLong_AsLongLong(number);
  if (PyErr_Occurred() != nullptr) PyErr_Clear();
  Py_XDECREF(number);
  return version;
}

const void* data_of(const dlpack::Tensor& view) {
  return static_cast<const char*>(view.data) + view.byte_offset;
}

bool view_of(PyObject* object, dlpack::Tensor* view) {
  if (Py_TYPE(object) != tensor_type) return false;
  if (exchange->view(object, view) == 0) return true;
  PyErr_Clear();
  return false;
}

// A tensor of the weights as it was when the plan was made.
struct Watched {
  py::object tensor;
  const void* data;
  int64_t version;

  bool has_changed() const {
    dlpack::Tensor view;
    return !view_of(tensor.ptr(), &view) || data_of(view) != data ||
           (version >= 0 && version_of(tensor.ptr()) != version);
  }
};

struct TensorPlan {
  RefineCall call;
  std::vector<Watched> weights;
  py::object kept;

  bool is_current() const {
    for (const Watched& w : weights) {
      if (w.has_changed()) return false;
    }
    return true;
  }
};

bool use_tensors(py::type type, py::capsule table) {
  // Others may put a table of their own in this place.
  if (!PyCapsule_IsValid(table.ptr(), dlpack::kExchangeName)) return false;
  const auto* found = static_cast<const dlpack::ExchangeTable*>(
      PyCapsule_GetPointer(table.ptr(), dlpack::kExchangeName));
  if (found->version.major != dlpack::kMajorVersion || found->to_python == nullptr ||
      found->view == nullptr) {
    return false;
  }
  names = new Names;
  exchange = found;
  tensor_type = reinterpret_cast<PyTypeObject*>(type.release().ptr());
  return true;
}

py::object tensor_plan(uintptr_t address, const std::vector<py::object>& tensors, py::object kept) {
  auto plan = std::make_unique<TensorPlan>();
  plan->kept = std::move(kept);
  std::memcpy(&plan->call, reinterpret_cast<const void*>(address), sizeof(RefineCall));
  for (const py::object& tensor : tensors) {
    dlpack::Tensor view;
    if (exchange == nullptr || !view_of(tensor.ptr(), &view)) return py::none();
    if (is_true(PyObject_CallMethodNoArgs(tensor.ptr(), names->is_negated))) return py::none();
    plan->weights.push_back({tensor, data_of(view), version_of(tensor.ptr())});
  }
  return py::capsule(plan.release(), kPlanName, [](PyObject* capsule) {
    delete static_cast<TensorPlan*>(PyCapsule_GetPointer(capsule, kPlanName));
  });
}

// Reads the samples' tensors into a call, whose scalar type and joints are known.
class SampleReader {
 public:
  SampleReader(RefineCall& call, bool recording) : call_(call), recording_(recording) {}

  // (N, J, 3) gives the number of poses.
  bool pose(PyObject* object) {
    dlpack::Tensor t;
    if (!read(object, &t) || t.dimensions != 3) return false;
    call_.count = t.shape[0];
    return call_.count >= 1 && call_.count <= kMostPoses &&
           multiply_adds(call_) <= kMostMultiplyAdds && points(t, 3, &call_.pose);
  }
  bool keypoints(PyObject* object) {
    dlpack::Tensor t;
    return read(object, &t) && points(t, 2, &call_.keypoints);
  }
  // (N, width), or (width) for all poses.
  bool row(PyObject* object, int64_t width, Rows* rows) {
    dlpack::Tensor t;
    if (!read(object, &t) || t.dimensions < 1 || t.dimensions > 2) return false;
    const int last = t.dimensions - 1;
    if (t.shape[last] != width || (last == 1 && t.shape[0] != call_.count)) return false;
    *rows = {data_of(t), last == 1 ? t.strides[0] : 0, 1, t.strides[last], 0};
    return true;
  }
  bool row_or_none(PyObject* object, int64_t width, Rows* rows) {
    return object == Py_None || row(object, width, rows);
  }

 private:
  bool read(PyObject* object, dlpack::Tensor* t) const {
    if (!view_of(object, t) || t->device.kind != dlpack::kOnCpu || t->strides == nullptr) {
      return false;
    }
    // Storage that was freed, and zeros that are not kept.
    if (t->data == nullptr) return false;
    const int bits = call_.scalar == ScalarType::float32 ? 32 : 64;
    if (t->type.code != dlpack::kFloat || t->type.bits != bits || t->type.lanes != 1) return false;
    // The numbers of a negated view are not those in memory.
    return !(recording_ && is_true(PyObject_GetAttr(object, names->requires_grad))) &&
           !is_true(PyObject_CallMethodNoArgs(object, names->is_negated));
  }
  bool points(const dlpack::Tensor& t, int64_t channels, Rows* rows) const {
    if (t.dimensions != 3 || t.shape[0] != call_.count || t.shape[1] != call_.joints ||
        t.shape[2] != channels) {
      return false;
    }
    *rows = {data_of(t), t.strides[0], channels, t.strides[1], t.strides[2]};
    return true;
  }

  RefineCall& call_;
  const bool recording_;
};

// A tensor [K, N, J, 3] or [N, J, 3] with its memory, 64 bytes of which begin a cache line.
struct alignas(64) Output {
  dlpack::OwnedTensor owned;
  int64_t shape[4], strides[4];

  static Output* make(const RefineCall& call) {
    const int64_t sizes[] = {call.stages, call.count, call.joints, 3};
    const int first = call.every_stage ? 0 : 1;
    int64_t size = 1;
    for (int d = first; d < 4; ++d) size *= sizes[d];
    const bool is_float = call.scalar == ScalarType::float32;
    const size_t bytes = static_cast<size_t>(size) * (is_float ? 4 : 8);
    const size_t whole_lines = (sizeof(Output) + bytes + 63) / 64 * 64;
    void* const memory = std::aligned_alloc(64, whole_lines);
    if (memory == nullptr) throw std::bad_alloc();
    Output* const output = new (memory) Output;
    for (int d = 3; d >= first; --d) {
      output->shape[d - first] = sizes[d];
      output->strides[d - first] = d == 3 ? 1 : output->strides[d - first + 1] * sizes[d + 1];
    }
    const dlpack::DataType type{dlpack::kFloat, static_cast<uint8_t>(is_float ? 32 : 64), 1};
    output->owned = {
        {dlpack::kMajorVersion, 0},
        nullptr,
        remove,
        0,
        {output + 1, {dlpack::kOnCpu, 0}, 4 - first, type, output->shape, output->strides, 0}};
    return output;
  }
  static void remove(dlpack::OwnedTensor* owned) { std::free(owned); }
};
static_assert(offsetof(Output, owned) == 0, "remove() frees the whole");

void on_this_thread(int64_t count, int64_t, void (*body)(void*, int64_t, int64_t), void* context) {
  body(context, 0, count);
}

// refine_tensors(plan, recording, model, root_mode, every_stage, keypoints, pose, root, intrinsics,
// distortion, confidence); `recording`: whether tensors that require a gradient want one.
PyObject* refine_tensors(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 11) {
    PyErr_SetString(PyExc_TypeError, "refine_tensors takes 11 arguments");
    return nullptr;
  }
  const auto* plan = static_cast<const TensorPlan*>(PyCapsule_GetPointer(arguments[0], kPlanName));
  if (plan == nullptr) return nullptr;
  const long model = PyLong_AsLong(arguments[2]);
  const long root_mode = PyLong_AsLong(arguments[3]);
  PyObject* const root = arguments[7];
  PyObject* const distortion = arguments[9];
  const bool makes_sense = model >= 0 && model <= 2 && root_mode >= 0 && root_mode <= 2 &&
                           (root == Py_None) == (root_mode != 0) &&
                           (distortion != Py_None || model == 0);
  RefineCall call = plan->call;
  SampleReader reader(call, arguments[1] == Py_True);
  if (!makes_sense || !reader.pose(arguments[6]) || !reader.keypoints(arguments[5]) ||
      !reader.row_or_none(root, 3, &call.root) || !reader.row(arguments[8], 4, &call.intrinsics) ||
      !reader.row_or_none(distortion, 5, &call.distortion) ||
      !reader.row_or_none(arguments[10], call.joints, &call.confidence) || !plan->is_current()) {
    return none_instead();
  }
  call.camera_model = static_cast<int32_t>(model);
  call.root_mode = static_cast<RootMode>(root_mode);
  call.every_stage = arguments[4] == Py_True;
  Output* output = nullptr;
  try {
    output = Output::make(call);
    call.output = output->owned.tensor.data;
    cpu_kernels().refine(call, {on_this_thread});
  } catch (const std::bad_alloc&) {
    std::free(output);
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    std::free(output);
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  void* tensor = nullptr;
  if (exchange->to_python(&output->owned, &tensor) != 0) return nullptr;
  return static_cast<PyObject*>(tensor);
}

// Called as it is: pybind11's own way of calling takes as long as reading three tensors.
PyMethodDef methods[] = {
    {"refine_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(refine_tensors)),
     METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void add_tensor_refine(py::module_& m) {
  m.def("use_tensors", &use_tensors);
  m.def("tensor_plan", &tensor_plan);
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace erd::python
