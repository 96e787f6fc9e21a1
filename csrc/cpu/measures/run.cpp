// Snapshots, alignments, ranks and clusters of ragged lists.
#include <algorithm>

#include "cpu/common/instruction_sets.h"
#include "cpu/common/tasks.h"
#include "cpu/measures/clusters.h"
#include "cpu/measures/summary.h"
#include "cpu/measures/summary_bounds.h"
#include "cpu/operations.h"

namespace spectral {
namespace {

// Elements (or products) below which one thread is done before a second has woken up, and does not
// wait for it when the machine is busy.
constexpr int64_t kWorthATeam = 1000000;

// A spectrum takes a microsecond: threads only where there are many.
constexpr int64_t kSpectraWorthATeam = 16384;

double epsilon(DType dtype) {
  return dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
}

double threshold(const SummaryJob& job) {
  return job.rtol < 0 ? epsilon(job.dtype) * static_cast<double>(std::max(job.m, job.n)) : job.rtol;
}

// Calls with the b-th spectrum as a pointer of its type.
template <class Job, class Use>
void with_spectrum(const Job& job, int64_t b, Use use) {
  if (job.dtype == DType::kFloat64)
    use(static_cast<const double*>(job.s) + b * job.r);
  else
    use(static_cast<const float*>(job.s) + b * job.r);
}

void summarize_one(const SummaryJob& job, int64_t b) {
  with_spectrum(job, b, [&](const auto* s) {
    double* summary = job.out + b * kSummaryFields;
    summarize_spectrum(s, job.r, threshold(job), summary);
    if (job.bounds)
      bound_summary(s, job.b + b * job.r, job.r, job.beta[b], threshold(job), epsilon(job.dtype),
                    summary, job.bounds + b * kSummaryFields);
  });
}

// Inner products that a pair of bases asks for.
int64_t alignment_dots(const AlignmentJob& job) {
  int64_t dots = job.count;
  for (int64_t i = 0, start = 0; job.cosine && i < job.count; ++i) {
    if (job.first[i] != job.first[start]) start = i;
    dots += 2 * (i - start);
  }
  return dots;
}

}  // namespace

void run_summaries(const std::vector<SummaryJob>& jobs, int threads) {
  int64_t total = 0;
  for (const SummaryJob& job : jobs)
    total += job.batch * job.r;
  const int team = total > kSpectraWorthATeam ? threads : 1;
  for (const SummaryJob& job : jobs)
    run_parallel(job.batch, team, [&job](int64_t b) { summarize_one(job, b); });
}

void run_clusters(const std::vector<ClusterJob>& jobs) {
  for (const ClusterJob& job : jobs)
    with_spectrum(job, 0, [&](const auto* s) {
      find_clusters(s, job.b, job.other, job.r, job.unseen, job.first, job.alone);
    });
}

void run_alignments(const std::vector<AlignmentJob>& jobs, int threads) {
  const auto& k = kernels<MeasuresKernels>();
  int64_t work = 0;
  for (const AlignmentJob& job : jobs)
    work += job.length * alignment_dots(job);
  run_parallel(static_cast<int64_t>(jobs.size()), work > kWorthATeam ? threads : 1,
               [&](int64_t i) { k.alignment(jobs[static_cast<size_t>(i)]); });
}

void run_snapshots(const std::vector<SnapshotJob>& jobs, int threads) {
  const auto& k = kernels<MeasuresKernels>();
  std::vector<std::pair<const SnapshotJob*, int64_t>> all;
  int64_t work = 0;
  for (const SnapshotJob& job : jobs) {
    for (int64_t b = 0; b < job.a.batch; ++b)
      all.emplace_back(&job, b);
    work += job.a.batch * job.a.m * job.a.n;
  }
  const int team = work > kWorthATeam ? threads : 1;
  run_parallel(static_cast<int64_t>(all.size()), team, [&k, &all](int64_t i) {
    const auto& [job, b] = all[static_cast<size_t>(i)];
    const int64_t bytes = job->a.is_double() ? 8 : 4;
    k.snapshot(job->a.at(b), static_cast<char*>(job->packed) + b * job->a.m * job->a.n * bytes,
               job->stats + kSnapshotFields * b);
  });
}

}  // namespace spectral
