#include "cpu/driver.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cpu/epilogue.h"
#include "cpu/summary_bounds.h"
#include "cpu/tasks.h"

namespace spectral {
namespace {

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable = {&kernels_generic()};
#if SK_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    usable.push_back(&kernels_avx2());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      usable.push_back(&kernels_avx512());
  }
#endif
  return usable;
}

const Kernels*& current() {
  static const Kernels* chosen = usable_kernels().back();
  return chosen;
}

// Elements (or products) below which one thread is done before a second has woken up, and does not
// wait for it when the machine is busy.
constexpr int64_t kWorthATeam = 1000000;

}  // namespace

const Kernels& kernels() {
  return *current();
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Kernels* k : usable_kernels())
    names.push_back(k->name);
  return names;
}

void choose_isa(const std::string& name) {
  std::string usable;
  for (const Kernels* k : usable_kernels()) {
    if (name == k->name) {
      current() = k;
      return;
    }
    usable += (usable.empty() ? "" : ", ") + std::string(k->name);
  }
  throw std::invalid_argument("no instruction set '" + name + "' here; usable: " + usable);
}

bool vectors_supported(DType dtype, int64_t m, int64_t n) {
  const int64_t small = std::min(m, n), large = std::max(m, n);
  if (small <= kLaneShortSide && large <= kLaneLongSide) return true;
  return dtype != DType::kFloat64 && small <= kMaxVectorsSide;
}

namespace {

SvdOutput output_at(const SvdJob& job, int64_t b) {
  const int64_t bytes = job.a.is_double() ? 8 : 4, r = job.a.short_side();
  return {static_cast<char*>(job.out.ut) + b * r * job.a.m * bytes,
          static_cast<char*>(job.out.s) + b * r * bytes,
          static_cast<char*>(job.out.vh) + b * r * job.a.n * bytes};
}

}  // namespace

void run_svd(const std::vector<SvdJob>& jobs, int threads) {
  const Kernels& k = kernels();
  std::vector<Task> tasks;
  for (const SvdJob& job : jobs) {
    const bool lanes = fits_a_lane(job.a);
    const int64_t group = lanes ? lane_group(job.a.batch, k.lanes, threads) : 1;
    for (int64_t first = 0; first < job.a.batch; first += group) {
      const int count = static_cast<int>(std::min(group, job.a.batch - first));
      tasks.push_back(
          {cubic_cost(job.a) * count, [&k, &job, lanes, first, count] {
             if (!lanes) {
               k.svd(job.a.at(first), output_at(job, first), workspace(k.svd_workspace(job.a)));
               return;
             }
             std::vector<SvdOutput> out;
             for (int i = 0; i < count; ++i)
               out.push_back(output_at(job, first + i));
             k.svd_lanes(job.a, first, count, out.data(), workspace(k.svd_lanes_workspace(job.a)));
           }});
    }
  }
  run_tasks(tasks, threads);
}

void run_rsvd(const std::vector<RsvdJob>& jobs, int threads) {
  const Kernels& k = kernels();
  std::vector<Task> tasks;
  for (const RsvdJob& job : jobs) {
    const int64_t bytes = job.a.is_double() ? 8 : 4, rank = job.plan.rank;
    const double cost = static_cast<double>(job.a.m * job.a.n * job.plan.width);
    for (int64_t b = 0; b < job.a.batch; ++b)
      tasks.push_back(
          {cost, [&k, &job, b, bytes, rank] {
             RsvdPlan plan = job.plan;
             plan.start = static_cast<const char*>(plan.start) + b * job.a.n * plan.given * bytes;
             plan.random.entry = static_cast<uint32_t>(b);
             const SvdOutput out = {static_cast<char*>(job.out.ut) + b * rank * job.a.m * bytes,
                                    static_cast<char*>(job.out.s) + b * rank * bytes,
                                    static_cast<char*>(job.out.vh) + b * rank * job.a.n * bytes};
             k.rsvd(job.a.at(b), plan, out, workspace(k.rsvd_workspace(job.a, plan)));
           }});
  }
  run_tasks(tasks, threads);
}

bool track_supported(DType, int64_t m, int64_t n) {
  return std::min(m, n) <= kMaxVectorsSide;
}

void run_track(const std::vector<TrackJob>& jobs, int threads) {
  const Kernels& k = kernels();
  std::vector<Task> tasks;
  for (const TrackJob& job : jobs)
    tasks.push_back({cubic_cost(job.a), [&k, &job] {
                       k.track(job.a, job.plan, job.out, workspace(k.track_workspace(job.a)));
                     }});
  run_tasks(tasks, threads);
}

void run_leading(const std::vector<LeadingJob>& jobs, int threads) {
  const Kernels& k = kernels();
  std::vector<Task> tasks;
  for (const LeadingJob& job : jobs) {
    const int64_t l = job.plan.l;
    tasks.push_back({static_cast<double>(job.a.m * job.a.n * l), [&k, &job, l] {
                       k.leading(job.a, job.plan, job.out,
                                 workspace(k.leading_workspace(job.a, l)));
                     }});
  }
  run_tasks(tasks, threads);
}

namespace {

CorePlan core_at(const CorePlan& first, int64_t b) {
  const int64_t k = first.sigma.m, p = std::min(first.u.m, k), q = std::min(first.vh.n, k);
  CorePlan plan = first;
  plan.u = first.u.at(b);
  plan.sigma = first.sigma.at(b);
  plan.vh = first.vh.at(b);
  plan.matrix += b * p * q;
  plan.error += b;
  if (plan.left) plan.left += b * p * first.u.m;
  if (plan.right) plan.right += b * q * first.vh.n;
  return plan;
}

}  // namespace

void run_cores(const std::vector<CoreJob>& jobs, int threads) {
  const Kernels& k = kernels();
  std::vector<Task> tasks;
  for (const CoreJob& job : jobs)
    for (int64_t b = 0; b < job.plan.u.batch; ++b)
      tasks.push_back({cubic_cost(job.plan.u) + cubic_cost(job.plan.vh), [&k, &job, b] {
                         const CorePlan plan = core_at(job.plan, b);
                         k.core(plan, workspace(k.core_workspace(plan)));
                       }});
  run_tasks(tasks, threads);
}

namespace {

// A spectrum takes a microsecond: threads only where there are many.
constexpr int64_t kSpectraWorthATeam = 16384;

double epsilon(DType dtype) {
  return dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
}

double threshold(const SummaryJob& job) {
  return job.rtol < 0 ? epsilon(job.dtype) * static_cast<double>(std::max(job.m, job.n)) : job.rtol;
}

// Calls with the b-th spectrum as a pointer of its type.
template <class Use>
void with_spectrum(const SummaryJob& job, int64_t b, Use use) {
  if (job.dtype == DType::kFloat64)
    use(static_cast<const double*>(job.s) + b * job.r);
  else
    use(static_cast<const float*>(job.s) + b * job.r);
}

void summarize_one(const SummaryJob& job, int64_t b) {
  with_spectrum(job, b, [&](const auto* s) {
    summarize_spectrum(s, job.r, threshold(job), job.out + b * kSummaryFields);
  });
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

void run_bounded_summaries(const std::vector<BoundedSummaryJob>& jobs, int threads) {
  int64_t total = 0;
  for (const BoundedSummaryJob& job : jobs)
    total += job.summary.batch * job.summary.r;
  const int team = total > kSpectraWorthATeam ? threads : 1;
  for (const BoundedSummaryJob& job : jobs) {
    const SummaryJob& own = job.summary;
    run_parallel(own.batch, team, [&job, &own](int64_t b) {
      summarize_one(own, b);
      with_spectrum(own, b, [&](const auto* s) {
        bound_summary(s, job.b + b * own.r, own.r, job.beta[b], threshold(own), epsilon(own.dtype),
                      own.out + b * kSummaryFields, job.out + b * kSummaryFields);
      });
    });
  }
}

// Inner products that a pair of bases asks for.
static int64_t alignment_dots(const AlignmentPair& p) {
  int64_t dots = p.count;
  for (int64_t i = 0, start = 0; p.cosine && i < p.count; ++i) {
    if (p.first[i] != p.first[start]) start = i;
    dots += 2 * (i - start);
  }
  return dots;
}

void run_clusters(const std::vector<ClusterJob>& jobs) {
  for (const ClusterJob& j : jobs) {
    if (j.dtype == DType::kFloat64)
      find_clusters(static_cast<const double*>(j.s), j.b, j.other, j.r, j.unseen, j.first, j.alone);
    else
      find_clusters(static_cast<const float*>(j.s), j.b, j.other, j.r, j.unseen, j.first, j.alone);
  }
}

void run_alignments(const std::vector<AlignmentPair>& pairs, int threads) {
  const Kernels& k = kernels();
  int64_t work = 0;
  for (const AlignmentPair& p : pairs)
    work += p.length * alignment_dots(p);
  run_parallel(static_cast<int64_t>(pairs.size()), work > kWorthATeam ? threads : 1,
               [&](int64_t i) { k.alignment(pairs[static_cast<size_t>(i)]); });
}

void run_snapshots(const std::vector<SnapshotJob>& jobs, int threads) {
  const Kernels& k = kernels();
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
    SnapshotStats stats;
    k.snapshot(job->a.at(b), static_cast<char*>(job->packed) + b * job->a.m * job->a.n * bytes,
               &stats);
    double* out = job->stats + 3 * b;
    out[0] = stats.max_abs;
    out[1] = stats.frobenius_norm;
    out[2] = stats.finite;
  });
}

}  // namespace spectral
