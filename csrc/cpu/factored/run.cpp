// Cores of ragged lists of factors.
#include <algorithm>

#include "cpu/common/instruction_sets.h"
#include "cpu/common/tasks.h"
#include "cpu/operations.h"

namespace spectral {
namespace {

CoreJob core_at(const CoreJob& first, int64_t b) {
  const int64_t k = first.sigma.m, p = std::min(first.u.m, k), q = std::min(first.vh.n, k);
  CoreJob job = first;
  job.u = first.u.at(b);
  job.sigma = first.sigma.at(b);
  job.vh = first.vh.at(b);
  job.matrix += b * p * q;
  job.error += b;
  if (job.left) job.left += b * p * first.u.m;
  if (job.right) job.right += b * q * first.vh.n;
  return job;
}

}  // namespace

void run_cores(const std::vector<CoreJob>& jobs, int threads) {
  const auto& k = kernels<FactoredKernels>();
  std::vector<Task> tasks;
  for (const CoreJob& job : jobs)
    for (int64_t b = 0; b < job.u.batch; ++b)
      tasks.push_back({cubic_cost(job.u) + cubic_cost(job.vh), [&k, &job, b] {
                         const CoreJob one = core_at(job, b);
                         k.core(one, workspace(k.core_workspace(one)));
                       }});
  run_tasks(tasks, threads);
}

}  // namespace spectral
