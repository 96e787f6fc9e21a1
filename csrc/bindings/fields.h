// Jobs as they come from Python, lists of tuples of numbers, and the calls that they make.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/common/matrix_view.h"
#include "cpu/program/moves.h"

namespace spectral {

namespace py = pybind11;

inline DType dtype_of(int64_t code) {
  if (code < 0 || code > 3)
    throw py::value_error("dtype code must be 0 to 3, got " + std::to_string(code));
  return static_cast<DType>(code);
}

// How many numbers a member of a job is made from.
template <class Member>
constexpr Py_ssize_t kNumbersOf = 1;
template <>
constexpr Py_ssize_t kNumbersOf<MatrixView> = 8;
template <>
constexpr Py_ssize_t kNumbersOf<SvdOutput> = 3;
template <class Pointer>
constexpr Py_ssize_t kNumbersOf<Numbers<Pointer>> = 4;

// One job, a tuple of integers (and at most one float).
class Fields {
 public:
  explicit Fields(PyObject* job) : job_(job) {}

  // Reads the whole tuple into these members, in order.
  template <class... Members>
  void read(Members&... members) {
    constexpr Py_ssize_t expected = (kNumbersOf<Members> + ...);
    if (!PyTuple_Check(job_) || PyTuple_GET_SIZE(job_) != expected)
      throw py::value_error("each job must be a tuple of " + std::to_string(expected) +
                            " numbers, got " + std::string(py::str(py::handle(job_))));
    (take(members), ...);
  }

 private:
  int64_t integer() {
    const long long value = PyLong_AsLongLong(PyTuple_GET_ITEM(job_, at_++));
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }
  void take(int64_t& x) { x = integer(); }
  void take(uint64_t& x) { x = static_cast<uint64_t>(integer()); }
  void take(uint32_t& x) { x = static_cast<uint32_t>(integer()); }
  void take(bool& x) { x = integer() != 0; }
  void take(DType& x) { x = dtype_of(integer()); }
  void take(double& x) {
    x = PyFloat_AsDouble(PyTuple_GET_ITEM(job_, at_++));
    if (x == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  }
  template <class T>
  void take(T*& x) {
    x = reinterpret_cast<T*>(static_cast<intptr_t>(integer()));
  }
  void take(MatrixView& a) {
    take(a.data), take(a.dtype), take(a.batch), take(a.m), take(a.n);
    take(a.stride_b), take(a.stride_m), take(a.stride_n);
  }
  void take(SvdOutput& out) { take(out.ut), take(out.s), take(out.vh); }
  // Where numbers are written, they are of a matrix.
  template <class Pointer>
  void take(Numbers<Pointer>& x) {
    constexpr int64_t last = std::is_same_v<Pointer, void*> ? 3 : 5;
    take(x.data);
    const int64_t type = integer();
    if (type < 2 || type > last)
      throw py::value_error("type of numbers must be 2 to " + std::to_string(last) + ", got " +
                            std::to_string(type));
    x.type = static_cast<NumberType>(type);
    take(x.stride_row), take(x.stride_column);
  }

  PyObject* job_;
  Py_ssize_t at_ = 0;
};

// Jobs of one kernel that were read, to be run on so many threads.
using Call = std::function<void(int)>;

template <class Job, class Parse, class Run>
Call parsed(const py::list& list, Parse parse, Run run) {
  std::vector<Job> jobs(list.size());
  size_t next = 0;
  for (const py::handle& item : list)
    parse(Fields(item.ptr()), jobs[next++]);
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

inline void require(bool holds, const char* message) {
  if (!holds) throw py::value_error(message);
}

inline void require_supported(bool supported, const char* what, const MatrixView& a) {
  if (!supported)
    throw py::value_error(std::string(what) + " does not take " + std::to_string(a.m) + " x " +
                          std::to_string(a.n) + " of this dtype; ask " + what + "_supported first");
}

}  // namespace spectral
