#include "cpu/driver.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>

#include "cpu/epilogue.h"

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

// Grows and is kept per thread, so that a call at every training step allocates nothing.
double* workspace(int64_t doubles) {
  struct Free {
    void operator()(double* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<double, Free> memory;
  thread_local int64_t capacity = 0;
  if (doubles > capacity) {
    memory.reset();
    capacity = 0;
    const auto bytes = static_cast<size_t>((doubles + 7) / 8 * 8) * sizeof(double);
    memory.reset(static_cast<double*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    capacity = doubles;
  }
  return memory.get();
}

struct Task {
  double cost;
  std::function<void()> run;
};

// Longest first, taken one by one: with a few large matrices anything else leaves threads idle. An
// exception in a task (memory) is carried out of the parallel region.
void run_tasks(std::vector<Task>& tasks, int threads) {
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.cost > b.cost; });
  const int count = static_cast<int>(tasks.size());
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(std::max(1, std::min(threads, count)))
  for (int i = 0; i < count; ++i) {
    try {
      tasks[static_cast<size_t>(i)].run();
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Elements (or products) below which one thread is done before a second has woken up, and does not
// wait for it when the machine is busy.
constexpr int64_t kWorthATeam = 1000000;

double cubic_cost(const MatrixView& a) {
  const auto n = static_cast<double>(a.short_side());
  return n * n * (static_cast<double>(a.long_side()) + 4.0 * n);
}

bool fits_a_lane(const MatrixView& a) {
  return a.short_side() <= kLaneShortSide && a.long_side() <= kLaneLongSide;
}

// Full vectors when the batch feeds every thread, else the batch spread evenly.
int64_t lane_group(int64_t batch, int lanes, int threads) {
  return std::clamp<int64_t>((batch + threads - 1) / threads, 1, lanes);
}

// The reduced form of every matrix of every job, side by side.
struct Reductions {
  std::vector<double> storage;
  std::vector<Reduced> reduced;
  std::vector<void*> out;
  std::vector<char> is_double;
};

Reductions allocate(const std::vector<ValuesJob>& jobs) {
  Reductions all;
  int64_t total = 0;
  for (const ValuesJob& job : jobs)
    total += job.a.batch * job.a.short_side();
  all.storage.resize(static_cast<size_t>(2 * total));
  double* next = all.storage.data();
  for (const ValuesJob& job : jobs) {
    const int64_t n = job.a.short_side(), bytes = job.a.is_double() ? 8 : 4;
    for (int64_t b = 0; b < job.a.batch; ++b, next += 2 * n) {
      all.reduced.push_back({{n, next, next + n, 0.0, false}, 0.0, 1.0});
      all.out.push_back(static_cast<char*>(job.s) + b * n * bytes);
      all.is_double.push_back(job.a.is_double());
    }
  }
  return all;
}

void add_reductions(const ValuesJob& job, Reduced* reduced, int threads, std::vector<Task>& tasks) {
  const Kernels& k = kernels();
  const MatrixView& a = job.a;
  if (!fits_a_lane(a)) {
    for (int64_t b = 0; b < a.batch; ++b)
      tasks.push_back({cubic_cost(a), [&k, a, b, reduced] {
                         k.reduce(a.at(b), reduced + b, workspace(k.reduce_workspace(a)));
                       }});
    return;
  }
  const int64_t group = lane_group(a.batch, k.lanes, threads);
  for (int64_t first = 0; first < a.batch; first += group) {
    const int count = static_cast<int>(std::min(group, a.batch - first));
    tasks.push_back({cubic_cost(a) * count, [&k, a, first, count, reduced] {
                       k.reduce_lanes(a, first, count, reduced + first,
                                      workspace(k.reduce_lanes_workspace(a)));
                     }});
  }
}

template <class T>
void write_values(const Reduced& r, int64_t n, T* out) {
  if (!r.problem.converged || std::isnan(r.unscale)) {
    std::fill(out, out + n, static_cast<T>(NAN));
    return;
  }
  double* values = r.problem.q;
  std::sort(values, values + n, std::greater<double>());
  for (int64_t i = 0; i < n; ++i)
    out[i] = static_cast<T>(r.unscale * std::sqrt(std::max(0.0, values[i] - r.shift)));
}

// Bidiagonals of similar length share the lanes of a vector.
void solve_reductions(Reductions& all, int threads) {
  const Kernels& k = kernels();
  const int64_t total = static_cast<int64_t>(all.reduced.size());
  std::vector<int64_t> order(static_cast<size_t>(total)), sides(static_cast<size_t>(total));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < total; ++i) {
    const Reduced& r = all.reduced[static_cast<size_t>(i)];
    sides[static_cast<size_t>(i)] = r.problem.e - r.problem.q;
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return all.reduced[static_cast<size_t>(a)].problem.n >
           all.reduced[static_cast<size_t>(b)].problem.n;
  });
  const int64_t group = lane_group(total, 2 * k.lanes, threads);
  std::vector<Task> tasks;
  for (int64_t first = 0; first < total; first += group) {
    const int count = static_cast<int>(std::min(group, total - first));
    const int64_t* members = order.data() + first;
    const int64_t longest = all.reduced[static_cast<size_t>(members[0])].problem.n;
    tasks.push_back(
        {static_cast<double>(longest * longest), [&k, &all, &sides, members, count, longest] {
           std::vector<QdProblem> problems;
           for (int i = 0; i < count; ++i)
             problems.push_back(all.reduced[static_cast<size_t>(members[i])].problem);
           k.qd(problems.data(), count, workspace(k.qd_workspace(longest, count)));
           for (int i = 0; i < count; ++i) {
             const auto at = static_cast<size_t>(members[i]);
             all.reduced[at].problem = problems[static_cast<size_t>(i)];
             if (all.is_double[at])
               write_values(all.reduced[at], sides[at], static_cast<double*>(all.out[at]));
             else
               write_values(all.reduced[at], sides[at], static_cast<float*>(all.out[at]));
           }
         }});
  }
  run_tasks(tasks, threads);
}

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

bool values_supported(DType, int64_t m, int64_t n) {
  return std::min(m, n) <= kMaxValuesSide;
}

bool vectors_supported(DType dtype, int64_t m, int64_t n) {
  const int64_t small = std::min(m, n), large = std::max(m, n);
  if (small <= kLaneShortSide && large <= kLaneLongSide) return true;
  return dtype != DType::kFloat64 && small <= kMaxVectorsSide;
}

void run_values(const std::vector<ValuesJob>& jobs, int threads) {
  Reductions all = allocate(jobs);
  std::vector<Task> tasks;
  Reduced* reduced = all.reduced.data();
  for (const ValuesJob& job : jobs) {
    add_reductions(job, reduced, threads, tasks);
    reduced += job.a.batch;
  }
  run_tasks(tasks, threads);
  solve_reductions(all, threads);
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
             plan.start = static_cast<const char*>(plan.start) + b * job.a.n * plan.width * bytes;
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

void run_summaries(const std::vector<SummaryJob>& jobs, int threads) {
  // A spectrum takes a microsecond: threads only where there are many.
  int64_t total = 0;
  for (const SummaryJob& job : jobs)
    total += job.batch * job.r;
  const int team = total > 16384 ? threads : 1;
  for (const SummaryJob& job : jobs) {
    const double eps = job.dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
    const double rtol = job.rtol < 0 ? eps * static_cast<double>(std::max(job.m, job.n)) : job.rtol;
#pragma omp parallel for num_threads(team) if (team > 1)
    for (int64_t b = 0; b < job.batch; ++b) {
      double* out = job.out + b * kSummaryFields;
      if (job.dtype == DType::kFloat64)
        summarize_spectrum(static_cast<const double*>(job.s) + b * job.r, job.r, rtol, out);
      else
        summarize_spectrum(static_cast<const float*>(job.s) + b * job.r, job.r, rtol, out);
    }
  }
}

void run_alignments(const std::vector<AlignmentPair>& pairs, int threads) {
  const Kernels& k = kernels();
  const int count = static_cast<int>(pairs.size());
  int64_t work = 0;
  for (const AlignmentPair& p : pairs)
    work += p.length * p.count;
  const int team = work > kWorthATeam ? std::max(1, std::min(threads, count)) : 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) if (team > 1)
  for (int i = 0; i < count; ++i)
    k.alignment(pairs[static_cast<size_t>(i)]);
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
  const int count = static_cast<int>(all.size());
  const int team = work > kWorthATeam ? std::max(1, std::min(threads, count)) : 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) if (team > 1)
  for (int i = 0; i < count; ++i) {
    const auto& [job, b] = all[static_cast<size_t>(i)];
    const int64_t bytes = job->a.is_double() ? 8 : 4;
    SnapshotStats stats;
    k.snapshot(job->a.at(b), static_cast<char*>(job->packed) + b * job->a.m * job->a.n * bytes,
               &stats);
    double* out = job->stats + 3 * b;
    out[0] = stats.max_abs;
    out[1] = stats.frobenius_norm;
    out[2] = stats.finite;
  }
}

}  // namespace spectral
