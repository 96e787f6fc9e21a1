// Which way the singular values of a matrix are found, and who does what of it.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/common/instruction_sets.h"
#include "cpu/common/tasks.h"
#include "cpu/operations.h"

namespace spectral {
namespace {

// Multiplications above which threads share one Gram matrix.
constexpr double kWorthParts = 2e7;

// Values that dqds finds; the others come from a Gram matrix.
bool by_reduction(const MatrixView& a) {
  return a.is_double() || fits_a_lane(a);
}

// One matrix whose values come from its Gram matrix.
struct GramJob {
  MatrixView a;
  float* s;
};

std::vector<GramJob> gram_jobs(const std::vector<ValuesJob>& jobs) {
  std::vector<GramJob> all;
  for (const ValuesJob& job : jobs)
    for (int64_t b = 0; b < job.a.batch && !by_reduction(job.a); ++b)
      all.push_back({job.a.at(b), static_cast<float*>(job.s) + b * job.a.short_side()});
  return all;
}

void add_gram_values(const GramJob& job, std::vector<Task>& tasks) {
  const auto& k = kernels<ValuesKernels>();
  tasks.push_back({cubic_cost(job.a), [&k, job] {
                     const int64_t size = k.gram_size(job.a), n = job.a.short_side();
                     double* g = workspace(size + k.gram_workspace(job.a));
                     k.gram_part(job.a, 0, n, g, g + size);
                     k.gram_values(job.a, g, job.s, g + size);
                   }});
}

// Columns of a triangle, cut into parts of equal area. What a part computes does not depend on the
// cut, so that the number of threads changes no result.
void add_gram_parts(const GramJob& job, int parts, double* g, std::vector<Task>& tasks) {
  const auto& k = kernels<ValuesKernels>();
  const int64_t n = job.a.short_side();
  int64_t first = 0;
  for (int part = 1; part <= parts; ++part) {
    const double share = 1.0 - std::sqrt(1.0 - static_cast<double>(part) / parts);
    const auto columns = static_cast<int64_t>(share * static_cast<double>(n));
    const int64_t last = part == parts ? n : columns / kGramPart * kGramPart;
    if (last > first)
      tasks.push_back({cubic_cost(job.a) / parts, [&k, job, first, last, g] {
                         k.gram_part(job.a, first, last, g, workspace(k.gram_workspace(job.a)));
                       }});
    first = last;
  }
}

// With fewer matrices than threads all work on each Gram matrix; the tridiagonal form is a chain of
// short steps, which a team would spend on waiting for each other.
void run_in_parts(const std::vector<GramJob>& jobs, int threads, std::vector<Task>& tasks) {
  const auto& k = kernels<ValuesKernels>();
  int64_t total = 0;
  for (const GramJob& job : jobs)
    total += k.gram_size(job.a);
  double* shared = shared_workspace(total);
  const auto count = static_cast<int>(jobs.size());
  std::vector<Task> rest;
  for (const GramJob& job : jobs) {
    double* g = shared;
    shared += k.gram_size(job.a);
    add_gram_parts(job, (threads + count - 1) / count, g, tasks);
    rest.push_back({cubic_cost(job.a), [&k, job, g] {
                      k.gram_values(job.a, g, job.s, workspace(k.gram_workspace(job.a)));
                    }});
  }
  run_tasks(tasks, threads);
  run_tasks(rest, threads);
  release_shared_workspace();
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
    if (by_reduction(job.a)) total += job.a.batch * job.a.short_side();
  all.storage.resize(static_cast<size_t>(2 * total));
  double* next = all.storage.data();
  for (const ValuesJob& job : jobs) {
    if (!by_reduction(job.a)) continue;
    const int64_t n = job.a.short_side(), bytes = job.a.is_double() ? 8 : 4;
    for (int64_t b = 0; b < job.a.batch; ++b, next += 2 * n) {
      all.reduced.push_back({{n, next, next + n, 0.0, false}, 1.0, 1.0});
      all.out.push_back(static_cast<char*>(job.s) + b * n * bytes);
      all.is_double.push_back(job.a.is_double());
    }
  }
  return all;
}

void add_reductions(const ValuesJob& job, Reduced* reduced, int threads, std::vector<Task>& tasks) {
  const auto& k = kernels<ValuesKernels>();
  const MatrixView& a = job.a;
  if (!fits_a_lane(a)) {
    for (int64_t b = 0; b < a.batch; ++b)
      tasks.push_back({cubic_cost(a), [&k, a, b, reduced] {
                         k.reduce(a.at(b), reduced + b, workspace(k.reduce_workspace(a)));
                       }});
    return;
  }
  const int64_t group = lane_group(a.batch, threads);
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
    out[i] = static_cast<T>(std::sqrt(std::max(0.0, values[i])) * r.largest * r.unscale);
}

// Bidiagonals of similar length share the lanes of a vector.
void solve_reductions(Reductions& all, int threads) {
  const auto& k = kernels<ValuesKernels>();
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
  const int64_t group = lane_group(total, threads, 2);
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

bool values_supported(DType dtype, int64_t m, int64_t n) {
  return dtype != DType::kFloat64 || std::min(m, n) <= kMaxDirectSide;
}

void run_values(const std::vector<ValuesJob>& jobs, int threads) {
  Reductions all = allocate(jobs);
  std::vector<Task> tasks;
  Reduced* reduced = all.reduced.data();
  for (const ValuesJob& job : jobs) {
    if (!by_reduction(job.a)) continue;
    add_reductions(job, reduced, threads, tasks);
    reduced += job.a.batch;
  }
  const std::vector<GramJob> grams = gram_jobs(jobs);
  double work = 0.0;
  for (const GramJob& job : grams)
    work += cubic_cost(job.a);
  if (work > kWorthParts && tasks.size() + grams.size() < static_cast<size_t>(threads)) {
    run_in_parts(grams, threads, tasks);
  } else {
    for (const GramJob& job : grams)
      add_gram_values(job, tasks);
    run_tasks(tasks, threads);
  }
  solve_reductions(all, threads);
}

}  // namespace spectral
