// One call for few poses: torch's dispatcher, with its boxed arguments and handles, and its
// allocator take longer than refining a pose. DLPack's exchange table reads torch's tensors from C
// without torch's headers, and hands memory of ours to torch as a tensor.
//
// Three functions, for erd_cuda/_tensor_plan.py alone:
//
//   use_torch(...)                     torch's and our own classes, and how they are read
//   tensor_plan(address, tensors, kept, confidence_weights)
//                                      a RefineCall without samples, see refine_ops.cpp, that
//                                      points into these tensors and into what is kept with it
//   refine_tensors(keypoints, pose, root, camera, weights, confidence, return_stages, precision)
//                                      erd_cuda.refine's result, or None: then another way must be
//                                      found
//
// None stands for everything that this way does not serve, wrong arguments included: larger
// batches, other dtypes and shapes, gradients, weights that have changed since, and moments when
// something watches what torch does.
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
#include "python/torch_questions.h"

namespace py = pybind11;

namespace erd::python {
namespace {

// Python's lock is kept. More than this, three poses by a relu block of the paper's size, would let
// other threads of Python wait too long.
constexpr int64_t kMostMultiplyAdds = 2'000'000;
constexpr int64_t kMostPoses = 8;

int64_t multiply_adds(const RefineCall& call) {
  const int64_t hidden_layers = call.block == RegressorBlock::relu ? 2 : 0;
  const int64_t weights = feature_count(call) + hidden_layers * call.width + 3 * call.joints;
  return call.count * call.stages * call.width * weights;
}

constexpr const char* kPlanName = "erd_cuda.tensor_plan";

// What is known of torch and of the package. Set once, on import, and never let go.
struct Known {
  PyTypeObject* tensor;  // the class whose own instances, no subclass's, are read
  const dlpack::ExchangeTable* exchange;
  PyTypeObject* camera;
  PyObject* camera_models;    // numbers by name
  PyObject* is_grad_enabled;  // whether tensors that require a gradient want one
  TorchWatch watch;
  Attribute requires_grad, version;

  PyObject* is_negated = PyUnicode_InternFromString("is_neg");
  PyObject* intrinsics = PyUnicode_InternFromString("intrinsics");
  PyObject* distortion = PyUnicode_InternFromString("distortion");
  PyObject* model = PyUnicode_InternFromString("model");
  PyObject* plans = PyUnicode_InternFromString("tensor_plans");
};
const Known* known = nullptr;

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
  PyObject* const number = known->version.of(tensor);
  const int64_t version = number == nullptr ? -1 : PyLong_AsLongLong(number);
  if (PyErr_Occurred() != nullptr) PyErr_Clear();
  Py_XDECREF(number);
  return version;
}

const void* data_of(const dlpack::Tensor& view) {
  return static_cast<const char*>(view.data) + view.byte_offset;
}

bool view_of(PyObject* object, dlpack::Tensor* view) {
  if (Py_TYPE(object) != known->tensor) return false;
  if (known->exchange->view(object, view) == 0) return true;
  PyErr_Clear();
  return false;
}

// Whether the numbers are those in memory with the other sign. torch puts that off only for the
// imaginary parts of complex numbers, which lie between the real ones: no step in memory is odd,
// unless as_strided made it so, mixing both parts. Asking torch would take as long as all else
// here.
bool is_negated(PyObject* object, const dlpack::Tensor& view) {
  for (int d = 0; d < view.dimensions; ++d) {
    if (view.shape[d] > 1 && view.strides[d] % 2 != 0) return false;
  }
  return is_true(PyObject_CallMethodNoArgs(object, known->is_negated));
}

// A tensor of the weights as it was when the plan was made.
struct Watched {
  py::object tensor;
  const void* data;
  int64_t version;  // -1: nothing counts

  bool has_changed() const { return version >= 0 && version_of(tensor.ptr()) != version; }
  bool has_moved() const {
    dlpack::Tensor view;
    return !view_of(tensor.ptr(), &view) || data_of(view) != data;
  }
};

// Whether the kernels read these tensors' own memory: residuals of a single pose take all their
// numbers from the copy that the plan keeps (core/weight_columns.h).
bool reads_own_memory(const RefineCall& call) {
  const bool reads_mean2d =
      call.features != Features::residual && call.features != Features::residual_pose;
  return call.count > 1 || reads_mean2d;
}

struct TensorPlan {
  RefineCall call;
  std::vector<Watched> weights;
  py::object kept;
  bool confidence_weights;

  // Memory that is not read is not asked after, unless nothing else tells changes: addresses would
  // cost a single pose 4 %.
  bool is_current(bool reads_own_memory) const {
    for (const Watched& w : weights) {
      if (w.has_changed()) return false;
      if ((reads_own_memory || w.version < 0) && w.has_moved()) return false;
    }
    return true;
  }
};

bool use_torch(py::type tensor, py::capsule table, py::type camera, py::dict camera_models,
               py::object is_grad_enabled, TorchWatch::Questions questions,
               TorchWatch::Flags flags) {
  // Others may put a table of their own in this place.
  if (!PyCapsule_IsValid(table.ptr(), dlpack::kExchangeName)) return false;
  const auto* exchange = static_cast<const dlpack::ExchangeTable*>(
      PyCapsule_GetPointer(table.ptr(), dlpack::kExchangeName));
  if (exchange->version.major != dlpack::kMajorVersion || exchange->to_python == nullptr ||
      exchange->view == nullptr) {
    return false;
  }
  const Attribute requires_grad(tensor, "requires_grad"), version(tensor, "_version");
  known = new Known{reinterpret_cast<PyTypeObject*>(tensor.release().ptr()),
                    exchange,
                    reinterpret_cast<PyTypeObject*>(camera.release().ptr()),
                    camera_models.release().ptr(),
                    is_grad_enabled.release().ptr(),
                    {std::move(questions), std::move(flags)},
                    requires_grad,
                    version};
  return true;
}

py::object tensor_plan(uintptr_t address, const std::vector<py::object>& tensors, py::object kept,
                       bool confidence_weights) {
  auto plan = std::make_unique<TensorPlan>();
  plan->kept = std::move(kept);
  plan->confidence_weights = confidence_weights;
  std::memcpy(&plan->call, reinterpret_cast<const void*>(address), sizeof(RefineCall));
  for (const py::object& tensor : tensors) {
    dlpack::Tensor view;
    if (known == nullptr || !view_of(tensor.ptr(), &view)) return py::none();
    if (is_negated(tensor.ptr(), view)) return py::none();
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
    return !(recording_ && is_true(known->requires_grad.of(object))) && !is_negated(object, *t);
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

// A tensor [K, N, J, 3] or [N, J, 3], followed by its memory, which begins a cache line.
struct Output {
  dlpack::OwnedTensor owned;
  int64_t shape[4], strides[4];

  static Output* make(const RefineCall& call) {
    const int64_t sizes[] = {call.stages, call.count, call.joints, 3};
    const int first = call.every_stage ? 0 : 1;
    int64_t size = 1;
    for (int d = first; d < 4; ++d) size *= sizes[d];
    const bool is_float = call.scalar == ScalarType::float32;
    const size_t bytes = static_cast<size_t>(size) * (is_float ? 4 : 8);
    // Not aligned_alloc: glibc has its quickest way for malloc alone.
    void* const memory = std::malloc(sizeof(Output) + bytes + kLine);
    if (memory == nullptr) throw std::bad_alloc();
    Output* const output = new (memory) Output;
    for (int d = 3; d >= first; --d) {
      output->shape[d - first] = sizes[d];
      output->strides[d - first] = d == 3 ? 1 : output->strides[d - first + 1] * sizes[d + 1];
    }
    const uintptr_t end = reinterpret_cast<uintptr_t>(output + 1);
    void* const data = reinterpret_cast<void*>((end + kLine - 1) / kLine * kLine);
    const dlpack::DataType type{dlpack::kFloat, static_cast<uint8_t>(is_float ? 32 : 64), 1};
    output->owned = {
        {dlpack::kMajorVersion, 0},
        nullptr,
        remove,
        0,
        {data, {dlpack::kOnCpu, 0}, 4 - first, type, output->shape, output->strides, 0}};
    return output;
  }
  static void remove(dlpack::OwnedTensor* owned) { std::free(owned); }

 private:
  static constexpr size_t kLine = 64;
};
static_assert(offsetof(Output, owned) == 0, "remove() frees the whole");

void on_this_thread(int64_t count, int64_t, void (*body)(void*, int64_t, int64_t), void* context) {
  body(context, 0, count);
}

// A camera's tensors and the number of its model; -1 for what is no camera that makes sense.
struct Lens {
  py::object intrinsics, distortion = py::none();
  long model = -1;

  explicit Lens(PyObject* camera) {
    if (Py_TYPE(camera) != known->camera) {
      intrinsics = py::reinterpret_borrow<py::object>(camera);
      model = 0;
      return;
    }
    intrinsics = part(camera, known->intrinsics);
    if (intrinsics) distortion = part(camera, known->distortion);
    const py::object name = distortion ? part(camera, known->model) : py::object();
    PyObject* const number =
        name ? PyDict_GetItemWithError(known->camera_models, name.ptr()) : nullptr;
    if (number == nullptr) return;
    model = PyLong_AsLong(number);
    if (distortion.is_none() != (model == 0)) model = -1;
  }

 private:
  static py::object part(PyObject* camera, PyObject* name) {
    return py::reinterpret_steal<py::object>(PyObject_GetAttr(camera, name));
  }
};

// A tensor gives the root; a word says when to solve it.
bool read_root_mode(PyObject* root, RootMode* mode) {
  *mode = RootMode::given;
  if (!PyUnicode_Check(root)) return true;
  if (PyUnicode_CompareWithASCIIString(root, "solve") == 0) {
    *mode = RootMode::solve;
  } else if (PyUnicode_CompareWithASCIIString(root, "solve_each_stage") == 0) {
    *mode = RootMode::solve_each_stage;
  }
  return *mode != RootMode::given;
}

// What the weights keep for calls of this precision, if anything. They may let go of it while it
// is used.
py::object find_plan(PyObject* weights, PyObject* precision) {
  const auto plans = py::reinterpret_steal<py::object>(PyObject_GetAttr(weights, known->plans));
  if (!plans || !PyDict_Check(plans.ptr())) return {};
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* plan = nullptr;
  PyDict_GetItemRef(plans.ptr(), precision, &plan);
#else
  PyObject* const plan = Py_XNewRef(PyDict_GetItemWithError(plans.ptr(), precision));
#endif
  auto found = py::reinterpret_steal<py::object>(plan);
  return found && PyCapsule_IsValid(plan, kPlanName) ? found : py::object();
}

// The arguments are those of erd_cuda.refine.
PyObject* refine_tensors(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 8) {
    PyErr_SetString(PyExc_TypeError, "refine_tensors takes 8 arguments");
    return nullptr;
  }
  PyObject* const root = arguments[2];
  PyObject* const confidence = arguments[5];
  const int every_stage = PyObject_IsTrue(arguments[6]);
  if (every_stage < 0) return nullptr;
  const py::object kept = known == nullptr ? py::object() : find_plan(arguments[4], arguments[7]);
  // First of all: a mode would see the questions to tensors.
  if (!kept || !known->watch.is_idle()) return none_instead();
  const auto* plan = static_cast<const TensorPlan*>(PyCapsule_GetPointer(kept.ptr(), kPlanName));
  if (confidence != Py_None && !plan->confidence_weights) return none_instead();
  RefineCall call = plan->call;
  SampleReader reader(call, !TorchWatch::answers(known->is_grad_enabled, Py_False));
  if (!reader.pose(arguments[1]) || !reader.keypoints(arguments[0]) ||
      !read_root_mode(root, &call.root_mode) ||
      (call.root_mode == RootMode::given && !reader.row(root, 3, &call.root))) {
    return none_instead();
  }
  const Lens lens(arguments[3]);
  if (lens.model < 0 || !reader.row(lens.intrinsics.ptr(), 4, &call.intrinsics) ||
      !reader.row_or_none(lens.distortion.ptr(), 5, &call.distortion) ||
      !reader.row_or_none(confidence, call.joints, &call.confidence) ||
      !plan->is_current(reads_own_memory(call))) {
    return none_instead();
  }
  call.camera_model = static_cast<int32_t>(lens.model);
  call.every_stage = every_stage == 1;
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
  if (known->exchange->to_python(&output->owned, &tensor) != 0) return nullptr;
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
  m.def("use_torch", &use_torch);
  m.def("tensor_plan", &tensor_plan);
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace erd::python
