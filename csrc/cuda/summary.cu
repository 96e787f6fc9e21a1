// Ranks and norms of spectra that are there already, with their bounds where errors are given: one
// launch for up to 40 batches, a warp for each spectrum. About r values are read twice from L1;
// what it costs is the launch.
//
// The batches lie in the parameters themselves, so nothing has to be copied to the device first
// and a captured graph keeps them.
#include "cuda/summary_bounds.cuh"

namespace spectral {

constexpr int kMostSummaryJobs = 40;

// values (count, r) -> table (count, 7). With bounds (count, r) and norms (count), not null, also
// errors (count, 7); those three are float64.
struct SummaryJob {
  const void* values;
  double* table;
  const double* bounds;
  const double* norms;
  double* errors;
  int64_t code, count, r;
  double rtol;
};

struct SummarizeParams {
  int64_t jobs;
  SummaryJob job[kMostSummaryJobs];
};

SK_KERNEL(summarize, SummarizeParams, 128) {
  int64_t which = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  int j = 0;
  while (j < p.jobs && which >= p.job[j].count)
    which -= p.job[j++].count;
  // The whole warp leaves together.
  if (j == p.jobs) return;
  const SummaryJob& job = p.job[j];
  const int64_t first = which * job.r;
  const auto value = [&](int64_t i) { return load_as<double>(job.values, job.code, first + i); };
  const Summary summary = summarize_spectrum(job.r, job.rtol, value);
  store_summary(summary, job.table + which * kSummaryFields);
  if (job.bounds == nullptr) return;
  const bool wide = job.code == kFloat64;
  const double eps = wide ? 0x1p-52 : 0x1p-23, tiny = wide ? 0x1p-1074 : 0x1p-149;
  const auto bound = [&](int64_t i) { return job.bounds[first + i]; };
  const Summary errors =
      bound_summary(summary, job.r, job.norms[which], job.rtol, eps, tiny, value, bound);
  store_summary(errors, job.errors + which * kSummaryFields);
}

}  // namespace spectral
