// What is asked of torch in Python, from C, and quickly.
//
// TorchWatch: whether torch would miss a call that it does not see: it may be recording a graph,
// transforming a function, showing every operator to a mode, or writing down what runs.
// erd_cuda/_tensor_plan.py knows whom to ask. The answers are looked at by address: they are
// Python's own single objects (None, False, small integers), and any other object means no.
#pragma once

#include <pybind11/pybind11.h>

#include <tuple>
#include <utility>
#include <vector>

namespace erd::python {

class TorchWatch {
 public:
  // Functions without arguments, each with its answer where nothing watches.
  using Questions = std::vector<std::pair<pybind11::object, pybind11::object>>;
  // Entries of dictionaries, by name, each with its value where nothing watches.
  using Flags = std::vector<std::tuple<pybind11::dict, pybind11::str, pybind11::object>>;

  TorchWatch(Questions questions, Flags flags)
      : questions_(std::move(questions)), flags_(std::move(flags)) {}

  bool is_idle() const {
    for (const auto& [question, idle] : questions_) {
      if (!answers(question.ptr(), idle.ptr())) return false;
    }
    for (const auto& [names, name, idle] : flags_) {
      if (PyDict_GetItemWithError(names.ptr(), name.ptr()) != idle.ptr()) return false;
    }
    return true;
  }

  static bool answers(PyObject* question, PyObject* expected) {
    PyObject* const answer = PyObject_CallNoArgs(question);
    const bool is_expected = answer == expected;
    if (answer == nullptr) PyErr_Clear();
    Py_XDECREF(answer);
    return is_expected;
  }

 private:
  Questions questions_;
  Flags flags_;
};

// The function behind an attribute of a class: asking it spares looking for it in every call.
class Attribute {
 public:
  // Throws pybind11::error_already_set or TypeError where there is none.
  Attribute(const pybind11::object& type, const char* name) {
    PyObject* const descriptor = pybind11::object(type.attr(name)).release().ptr();  // never let go
    if (Py_TYPE(descriptor) != &PyGetSetDescr_Type) throw pybind11::type_error(name);
    definition_ = reinterpret_cast<PyGetSetDescrObject*>(descriptor)->d_getset;
  }
  PyObject* of(PyObject* object) const { return definition_->get(object, definition_->closure); }

 private:
  const PyGetSetDef* definition_;
};

}  // namespace erd::python
