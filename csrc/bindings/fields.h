// Jobs as they come from Python, lists of tuples of numbers, and the calls that they make.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/common/matrix_view.h"

namespace spectral {

namespace py = pybind11;

inline DType dtype_of(int64_t code) {
  if (code < 0 || code > 3)
    throw py::value_error("dtype code must be 0 to 3, got " + std::to_string(code));
  return static_cast<DType>(code);
}

// Reads one job, a tuple of integers (and at most one float), in order.
class Fields {
 public:
  explicit Fields(PyObject* job, Py_ssize_t expected) : job_(job) {
    if (!PyTuple_Check(job) || PyTuple_GET_SIZE(job) != expected)
      throw py::value_error("each job must be a tuple of " + std::to_string(expected) +
                            " numbers, got " + std::string(py::str(py::handle(job))));
  }
  int64_t integer() {
    const long long value = PyLong_AsLongLong(PyTuple_GET_ITEM(job_, at_++));
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }
  double real() {
    const double value = PyFloat_AsDouble(PyTuple_GET_ITEM(job_, at_++));
    if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }
  template <class T = void>
  T* pointer() {
    return reinterpret_cast<T*>(static_cast<intptr_t>(integer()));
  }
  DType dtype() { return dtype_of(integer()); }
  DType result_dtype() {
    const DType type = dtype();
    if (type != DType::kFloat32 && type != DType::kFloat64)
      throw py::value_error("dtype code of results must be 2 or 3, got " +
                            std::to_string(static_cast<int>(type)));
    return type;
  }
  MatrixView matrix() {
    MatrixView a;
    a.data = pointer<const void>();
    a.dtype = dtype();
    a.batch = integer();
    a.m = integer();
    a.n = integer();
    a.stride_b = integer();
    a.stride_m = integer();
    a.stride_n = integer();
    return a;
  }
  SvdOutput svd_output() {
    SvdOutput out;
    out.ut = pointer();
    out.s = pointer();
    out.vh = pointer();
    return out;
  }

 private:
  PyObject* job_;
  Py_ssize_t at_ = 0;
};

// Jobs of one kernel that were read, to be run on so many threads.
using Call = std::function<void(int)>;

template <class Job, class Parse, class Run>
Call parsed(const py::list& list, Py_ssize_t fields, Parse parse, Run run) {
  std::vector<Job> jobs;
  jobs.reserve(list.size());
  for (const py::handle& item : list) {
    Fields f(item.ptr(), fields);
    jobs.push_back(parse(f));
  }
  return [jobs = std::move(jobs), run](int threads) { run(jobs, threads); };
}

// A run of jobs one after the other, which are too small to be shared out.
template <class Job>
auto each(void (*run)(const Job&)) {
  return [run](const std::vector<Job>& jobs, int) {
    for (const Job& job : jobs)
      run(job);
  };
}

inline void require_supported(bool supported, const char* what, const MatrixView& a) {
  if (!supported)
    throw py::value_error(std::string(what) + " does not take " + std::to_string(a.m) + " x " +
                          std::to_string(a.n) + " of this dtype; ask " + what + "_supported first");
}

}  // namespace spectral
