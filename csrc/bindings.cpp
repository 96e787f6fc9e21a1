// The module spectral_kernels._C. Addresses and sizes come as plain integers, so that no header of
// PyTorch is needed and one binary serves every release of it; spectral_kernels/_C.pyi describes
// the jobs. The checks of shapes and types are made in Python before a pointer is taken.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cpu/common/instruction_sets.h"
#include "cpu/operations.h"
#include "cpu/program/moves.h"

namespace py = pybind11;
using namespace spectral;

namespace {

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
  DType dtype() {
    const int64_t code = integer();
    if (code < 0 || code > 3)
      throw py::value_error("dtype code must be 0 to 3, got " + std::to_string(code));
    return static_cast<DType>(code);
  }
  DType result_dtype() {
    const DType found = dtype();
    if (found != DType::kFloat32 && found != DType::kFloat64)
      throw py::value_error("dtype code of results must be 2 or 3, got " +
                            std::to_string(static_cast<int>(found)));
    return found;
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

void require_supported(bool supported, const char* what, const MatrixView& a) {
  if (!supported)
    throw py::value_error(std::string(what) + " does not take " + std::to_string(a.m) + " x " +
                          std::to_string(a.n) + " of this dtype; ask " + what + "_supported first");
}

Call svdvals(const py::list& list) {
  return parsed<ValuesJob>(
      list, 9,
      [](Fields& f) {
        ValuesJob job;
        job.a = f.matrix();
        job.s = f.pointer();
        require_supported(values_supported(job.a.dtype, job.a.m, job.a.n), "svdvals", job.a);
        return job;
      },
      run_values);
}

Call svd(const py::list& list) {
  return parsed<SvdJob>(
      list, 11,
      [](Fields& f) {
        SvdJob job;
        job.a = f.matrix();
        job.out = f.svd_output();
        require_supported(vectors_supported(job.a.dtype, job.a.m, job.a.n), "svd", job.a);
        return job;
      },
      run_svd);
}

Call rsvd(const py::list& list) {
  return parsed<RsvdJob>(
      list, 18,
      [](Fields& f) {
        RsvdJob job;
        job.a = f.matrix();
        job.start = f.pointer<const void>();
        job.given = f.integer();
        job.random = {static_cast<uint64_t>(f.integer()), 0, static_cast<uint32_t>(f.integer())};
        job.rank = f.integer();
        job.width = f.integer();
        job.power_iters = f.integer();
        job.out = f.svd_output();
        return job;
      },
      run_rsvd);
}

void normals(int64_t seed, uint32_t matrix, uint32_t entry, int64_t n, int64_t columns,
             intptr_t out) {
  kernels<VectorsKernels>().normals({static_cast<uint64_t>(seed), entry, matrix}, n, 0, columns,
                                    reinterpret_cast<float*>(out), n);
}

Call track(const py::list& list) {
  return parsed<TrackJob>(
      list, 20,
      [](Fields& f) {
        TrackJob job;
        job.a = f.matrix();
        job.v = f.pointer<void>();
        job.single = f.integer() != 0;
        job.warm = f.integer() != 0;
        job.tolerance = f.real();
        job.drift = f.pointer<double>();
        job.names = f.pointer<int64_t>();
        job.out = f.svd_output();
        job.bounds = f.pointer<double>();
        job.identities = f.pointer<int64_t>();
        job.report = f.pointer<double>();
        require_supported(job.a.batch == 1 && track_supported(job.a.dtype, job.a.m, job.a.n),
                          "track", job.a);
        return job;
      },
      run_track);
}

SummaryJob summary_job(Fields& f) {
  SummaryJob job;
  job.s = f.pointer<const void>();
  job.dtype = f.dtype();
  job.batch = f.integer();
  job.r = f.integer();
  job.m = f.integer();
  job.n = f.integer();
  job.rtol = f.real();
  job.out = f.pointer<double>();
  return job;
}

Call leading(const py::list& list) {
  return parsed<LeadingJob>(
      list, 23,
      [](Fields& f) {
        LeadingJob job;
        job.a = f.matrix();
        job.k = f.integer();
        job.l = f.integer();
        job.warm = f.integer() != 0;
        job.tolerance = f.real();
        job.block = f.pointer();
        job.start = f.pointer<const void>();
        job.fresh = f.pointer<const void>();
        job.fresh_columns = f.integer();
        job.identities = f.pointer<int64_t>();
        job.out = f.svd_output();
        job.bounds = f.pointer<double>();
        job.residuals = f.pointer<double>();
        job.report = f.pointer<double>();
        if (job.a.batch != 1 || job.k < 1 || job.k > job.l || job.l > job.a.short_side() ||
            job.fresh_columns < 0 || job.fresh_columns > job.l)
          throw py::value_error(
              "leading takes one m x n matrix and 1 <= k <= l <= min(m, n), 0 <= "
              "fresh columns <= l");
        return job;
      },
      run_leading);
}

Call cores(const py::list& list) {
  return parsed<CoreJob>(
      list, 28,
      [](Fields& f) {
        CoreJob job;
        job.u = f.matrix();
        job.sigma = f.matrix();
        job.vh = f.matrix();
        job.matrix = f.pointer<float>();
        job.error = f.pointer<double>();
        job.left = f.pointer<float>();
        job.right = f.pointer<float>();
        const int64_t k = job.sigma.m;
        if (k < 1 || job.u.m < 1 || job.vh.n < 1 || job.sigma.n != k || job.u.n != k ||
            job.vh.m != k || job.u.is_double() || job.vh.is_double())
          throw py::value_error(
              "cores takes m x k, k x k and k x n that are not empty, of which "
              "the first and the last are not float64");
        return job;
      },
      run_cores);
}

Call summarize(const py::list& list) {
  return parsed<SummaryJob>(list, 8, summary_job, run_summaries);
}

Call summarize_with_bounds(const py::list& list) {
  return parsed<BoundedSummaryJob>(
      list, 11,
      [](Fields& f) {
        BoundedSummaryJob job;
        job.summary = summary_job(f);
        job.b = f.pointer<const double>();
        job.beta = f.pointer<const double>();
        job.out = f.pointer<double>();
        return job;
      },
      run_bounded_summaries);
}

Call clusters(const py::list& list) {
  return parsed<ClusterJob>(
      list, 10,
      [](Fields& f) {
        ClusterJob job;
        job.s = f.pointer<const void>();
        job.dtype = f.dtype();
        job.b = f.pointer<const double>();
        job.other.s = f.pointer<double>();
        job.other.b = f.pointer<double>();
        job.r = f.integer();
        job.unseen = f.integer();
        job.other.follow = f.integer() != 0;
        job.first = f.pointer<int64_t>();
        job.alone = f.pointer<uint8_t>();
        return job;
      },
      [](const std::vector<ClusterJob>& jobs, int) { run_clusters(jobs); });
}

Call alignment_diagonals(const py::list& list) {
  return parsed<AlignmentJob>(
      list, 12,
      [](Fields& f) {
        AlignmentJob p;
        p.u = f.pointer<const void>();
        p.dtype = f.dtype();
        p.u_stride_row = f.integer();
        p.u_stride_col = f.integer();
        p.v = f.pointer<const void>();
        p.v_stride_row = f.integer();
        p.v_stride_col = f.integer();
        p.length = f.integer();
        p.count = f.integer();
        p.out = f.pointer();
        p.first = f.pointer<const int64_t>();
        p.cosine = f.pointer();
        return p;
      },
      run_alignments);
}

Call snapshot(const py::list& list) {
  return parsed<SnapshotJob>(
      list, 10,
      [](Fields& f) {
        SnapshotJob job;
        job.a = f.matrix();
        job.packed = f.pointer();
        job.stats = f.pointer<double>();
        return job;
      },
      run_snapshots);
}

template <class Pointer>
Numbers<Pointer> numbers(Fields& f, int64_t last_type) {
  Numbers<Pointer> x;
  x.data = f.pointer<std::remove_pointer_t<Pointer>>();
  const int64_t type = f.integer();
  if (type < 2 || type > last_type)
    throw py::value_error("type of numbers must be 2 to " + std::to_string(last_type) + ", got " +
                          std::to_string(type));
  x.type = static_cast<NumberType>(type);
  x.stride_row = f.integer();
  x.stride_column = f.integer();
  return x;
}

Call copy(const py::list& list) {
  return parsed<CopyJob>(
      list, 11,
      [](Fields& f) {
        CopyJob job;
        job.src = numbers<const void*>(f, 5);
        job.dst = numbers<void*>(f, 3);
        job.rows = f.integer();
        job.columns = f.integer();
        job.unless_negative = f.pointer<const double>();
        return job;
      },
      each(run_copy));
}

Call mean(const py::list& list) {
  return parsed<MeanJob>(
      list, 6,
      [](Fields& f) {
        MeanJob job;
        job.src = f.pointer<const void>();
        job.dtype = f.result_dtype();
        job.starts = f.pointer<const int64_t>();
        job.parts = f.integer();
        job.count = f.integer();
        job.out = f.pointer();
        return job;
      },
      each(run_mean));
}

Call product(const py::list& list) {
  return parsed<ProductJob>(
      list, 5,
      [](Fields& f) {
        ProductJob job;
        job.a = f.pointer<const void>();
        job.b = f.pointer<const void>();
        job.dtype = f.result_dtype();
        job.count = f.integer();
        job.out = f.pointer();
        return job;
      },
      each(run_product));
}

// What a list of jobs of each name is read by.
const std::map<std::string, Call (*)(const py::list&)>& operations() {
  static const std::map<std::string, Call (*)(const py::list&)> table = {
      {"svdvals", svdvals},     {"svd", svd},
      {"rsvd", rsvd},           {"track", track},
      {"leading", leading},     {"cores", cores},
      {"summarize", summarize}, {"summarize_with_bounds", summarize_with_bounds},
      {"clusters", clusters},   {"alignment_diagonals", alignment_diagonals},
      {"snapshot", snapshot},   {"copy", copy},
      {"mean", mean},           {"product", product},
  };
  return table;
}

// Calls that were read once, run one after the other without a word to the interpreter.
class Program {
 public:
  void add(const std::string& name, const py::list& jobs) {
    const auto found = operations().find(name);
    if (found == operations().end()) throw py::value_error("no operation is called '" + name + "'");
    calls_.push_back(found->second(jobs));
  }
  void run(int threads) const {
    py::gil_scoped_release release;
    for (const Call& call : calls_)
      call(threads);
  }

 private:
  std::vector<Call> calls_;
};

DType checked(int code) {
  if (code < 0 || code > 3)
    throw py::value_error("dtype code must be 0 to 3, got " + std::to_string(code));
  return static_cast<DType>(code);
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
  py::class_<Program>(module, "Program")
      .def(py::init<>())
      .def("add", &Program::add, py::arg("operation"), py::arg("jobs"))
      .def("run", &Program::run, py::arg("threads"));
  module.def("normals", &normals, py::arg("seed"), py::arg("matrix"), py::arg("entry"),
             py::arg("n"), py::arg("columns"), py::arg("out"));
  module.def(
      "svdvals_supported",
      [](int d, int64_t m, int64_t n) { return values_supported(checked(d), m, n); },
      py::arg("dtype"), py::arg("m"), py::arg("n"));
  module.def(
      "svd_supported",
      [](int d, int64_t m, int64_t n) { return vectors_supported(checked(d), m, n); },
      py::arg("dtype"), py::arg("m"), py::arg("n"));
  module.def(
      "track_supported",
      [](int d, int64_t m, int64_t n) { return track_supported(checked(d), m, n); },
      py::arg("dtype"), py::arg("m"), py::arg("n"));
  module.def("isa", [] { return name_of(instruction_set()); });
  module.def("isas", &usable_instruction_sets);
  module.def("set_isa", &use_instruction_set, py::arg("name"));
}
