// The module spectral_kernels._C. Addresses and sizes come as plain integers, so that no header of
// PyTorch is needed and one binary serves every release of it; spectral_kernels/_C.pyi describes
// the jobs. The checks of shapes and types are made in Python before a pointer is taken.
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "bindings/operations.h"
#include "cpu/common/instruction_sets.h"
#include "cpu/common/tasks.h"
#include "cpu/operations.h"
#include "include/summary_bounds.h"

using namespace spectral;

namespace {

// Calls that were read once, run one after the other without a word to the interpreter.
class Program {
 public:
  void add(const std::string& name, const py::list& jobs) {
    const auto operation = operations().find(name);
    if (operation == operations().end())
      throw py::value_error("no operation is called '" + name + "'");
    calls_.push_back(operation->second(jobs));
  }
  void run(int threads) const {
    py::gil_scoped_release release;
    for (const Call& call : calls_)
      call(threads);
  }

 private:
  std::vector<Call> calls_;
};

void normals(int64_t seed, uint32_t matrix, uint32_t entry, int64_t n, int64_t columns,
             intptr_t out) {
  kernels<VectorsKernels>().normals({static_cast<uint64_t>(seed), entry, matrix}, n, 0, columns,
                                    reinterpret_cast<float*>(out), n);
}

// Numbers that Python has as well; tests/runtime/test_shared_numbers.py compares them.
std::map<std::string, double> numbers() {
  return {{"direct_side", kMaxDirectSide},
          {"summary_fields", kSummaryFields},
          {"snapshot_fields", kSnapshotFields},
          {"rotations", kRotations},
          {"solved", kSolvedCode},
          {"not_finite", kNotFiniteCode},
          {"warm_iterations", kWarmIterations},
          {"cold_iterations", kColdIterations},
          {"settled", kSettled},
          {"unsettled", kUnsettled},
          {"progress", kProgress}};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled CPU kernels of spectral_kernels; see _C.pyi.";
  for (const auto& [name, read] : operations())
    module.def(
        name.c_str(),
        [read = read](const py::list& jobs, int threads) {
          const Call call = read(jobs);
          py::gil_scoped_release release;
          call(threads);
        },
        py::arg("jobs"), py::arg("threads") = 1);
  module.attr("NUMBERS") = numbers();
  py::class_<Program>(module, "Program")
      .def(py::init<>())
      .def("add", &Program::add, py::arg("operation"), py::arg("jobs"))
      .def("run", &Program::run, py::arg("threads"));
  module.def("normals", &normals, py::arg("seed"), py::arg("matrix"), py::arg("entry"),
             py::arg("n"), py::arg("columns"), py::arg("out"));
  module.def(
      "svdvals_supported",
      [](int d, int64_t m, int64_t n) { return values_supported(dtype_of(d), m, n); },
      py::arg("dtype"), py::arg("m"), py::arg("n"));
  module.def(
      "svd_supported",
      [](int d, int64_t m, int64_t n) { return vectors_supported(dtype_of(d), m, n); },
      py::arg("dtype"), py::arg("m"), py::arg("n"));
  module.def(
      "track_supported",
      [](int d, int64_t m, int64_t n) { return track_supported(dtype_of(d), m, n); },
      py::arg("dtype"), py::arg("m"), py::arg("n"));
  module.def("isa", [] { return name_of(instruction_set()); });
  module.def("isas", &usable_instruction_sets);
  module.def("set_isa", &use_instruction_set, py::arg("name"));
}
