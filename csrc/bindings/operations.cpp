// How the jobs of each operation are read.
#include "bindings/operations.h"

#include "cpu/operations.h"

namespace spectral {
namespace {

Call svdvals(const py::list& list) {
  return parsed<ValuesJob>(
      list,
      [](Fields f, ValuesJob& job) {
        f.read(job.a, job.s);
        require_supported(values_supported(job.a.dtype, job.a.m, job.a.n), "svdvals", job.a);
      },
      run_values);
}

Call svd(const py::list& list) {
  return parsed<SvdJob>(
      list,
      [](Fields f, SvdJob& job) {
        f.read(job.a, job.out);
        require_supported(vectors_supported(job.a.dtype, job.a.m, job.a.n), "svd", job.a);
      },
      run_svd);
}

Call rsvd(const py::list& list) {
  return parsed<RsvdJob>(
      list,
      [](Fields f, RsvdJob& job) {
        f.read(job.a, job.start, job.given, job.random.seed, job.random.matrix, job.rank, job.width,
               job.power_iters, job.out);
      },
      run_rsvd);
}

Call track(const py::list& list) {
  return parsed<TrackJob>(
      list,
      [](Fields f, TrackJob& job) {
        f.read(job.a, job.v, job.single, job.warm, job.tolerance, job.drift, job.names, job.out,
               job.bounds, job.identities, job.report);
        require_supported(job.a.batch == 1 && track_supported(job.a.dtype, job.a.m, job.a.n),
                          "track", job.a);
      },
      run_track);
}

Call leading(const py::list& list) {
  return parsed<LeadingJob>(
      list,
      [](Fields f, LeadingJob& job) {
        f.read(job.a, job.k, job.l, job.warm, job.tolerance, job.block, job.start, job.fresh,
               job.fresh_columns, job.identities, job.out, job.bounds, job.residuals, job.report);
        require(
            job.a.batch == 1 && 1 <= job.k && job.k <= job.l && job.l <= job.a.short_side() &&
                0 <= job.fresh_columns && job.fresh_columns <= job.l,
            "leading takes one m x n matrix and 1 <= k <= l <= min(m, n), 0 <= fresh columns <= l");
      },
      run_leading);
}

Call cores(const py::list& list) {
  return parsed<CoreJob>(
      list,
      [](Fields f, CoreJob& job) {
        f.read(job.u, job.sigma, job.vh, job.matrix, job.error, job.left, job.right);
        const int64_t k = job.sigma.m;
        require(k >= 1 && job.u.m >= 1 && job.vh.n >= 1 && job.sigma.n == k && job.u.n == k &&
                    job.vh.m == k && !job.u.is_double() && !job.vh.is_double(),
                "cores takes m x k, k x k and k x n that are not empty, of which the first and the "
                "last are not float64");
      },
      run_cores);
}

Call summarize(const py::list& list) {
  return parsed<SummaryJob>(
      list,
      [](Fields f, SummaryJob& job) {
        f.read(job.s, job.dtype, job.batch, job.r, job.m, job.n, job.rtol, job.out);
      },
      run_summaries);
}

Call summarize_with_bounds(const py::list& list) {
  return parsed<SummaryJob>(
      list,
      [](Fields f, SummaryJob& job) {
        f.read(job.s, job.dtype, job.batch, job.r, job.m, job.n, job.rtol, job.out, job.b, job.beta,
               job.bounds);
      },
      run_summaries);
}

Call clusters(const py::list& list) {
  return parsed<ClusterJob>(
      list,
      [](Fields f, ClusterJob& job) {
        f.read(job.s, job.dtype, job.b, job.other.s, job.other.b, job.r, job.unseen,
               job.other.follow, job.first, job.alone);
      },
      [](const std::vector<ClusterJob>& jobs, int) { run_clusters(jobs); });
}

Call alignment_diagonals(const py::list& list) {
  return parsed<AlignmentJob>(
      list,
      [](Fields f, AlignmentJob& job) {
        f.read(job.u, job.dtype, job.u_stride_row, job.u_stride_col, job.v, job.v_stride_row,
               job.v_stride_col, job.length, job.count, job.out, job.first, job.cosine);
      },
      run_alignments);
}

Call snapshot(const py::list& list) {
  return parsed<SnapshotJob>(
      list, [](Fields f, SnapshotJob& job) { f.read(job.a, job.packed, job.stats); },
      run_snapshots);
}

Call copy(const py::list& list) {
  return parsed<CopyJob>(
      list,
      [](Fields f, CopyJob& job) {
        f.read(job.src, job.dst, job.rows, job.columns, job.unless_negative);
      },
      each(run_copy));
}

void require_result(DType dtype) {
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
    throw py::value_error("dtype code of results must be 2 or 3, got " +
                          std::to_string(static_cast<int>(dtype)));
}

Call mean(const py::list& list) {
  return parsed<MeanJob>(
      list,
      [](Fields f, MeanJob& job) {
        f.read(job.src, job.dtype, job.starts, job.parts, job.count, job.out);
        require_result(job.dtype);
      },
      each(run_mean));
}

Call product(const py::list& list) {
  return parsed<ProductJob>(
      list,
      [](Fields f, ProductJob& job) {
        f.read(job.a, job.b, job.dtype, job.count, job.out);
        require_result(job.dtype);
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
