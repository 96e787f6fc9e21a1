// How the jobs of each operation are read.
#include "bindings/operations.h"

#include "cpu/operations.h"
#include "cpu/program/moves.h"

namespace spectral {
namespace {

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
  SummaryJob job = {};
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
  return parsed<SummaryJob>(
      list, 11,
      [](Fields& f) {
        SummaryJob job = summary_job(f);
        job.b = f.pointer<const double>();
        job.beta = f.pointer<const double>();
        job.bounds = f.pointer<double>();
        return job;
      },
      run_summaries);
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

}  // namespace

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

}  // namespace spectral
