// Updates of trackers for ragged lists.
#include "cpu/common/instruction_sets.h"
#include "cpu/common/tasks.h"
#include "cpu/operations.h"

namespace spectral {

bool track_supported(DType, int64_t m, int64_t n) {
  return (m < n ? m : n) <= kMaxDirectSide;
}

void run_track(const std::vector<TrackJob>& jobs, int threads) {
  const auto& k = kernels<TrackingKernels>();
  std::vector<Task> tasks;
  for (const TrackJob& job : jobs)
    tasks.push_back(
        {cubic_cost(job.a), [&k, &job] { k.track(job, workspace(k.track_workspace(job.a))); }});
  run_tasks(tasks, threads);
}

void run_leading(const std::vector<LeadingJob>& jobs, int threads) {
  const auto& k = kernels<TrackingKernels>();
  std::vector<Task> tasks;
  for (const LeadingJob& job : jobs)
    tasks.push_back({static_cast<double>(job.a.m * job.a.n * job.l),
                     [&k, &job] { k.leading(job, workspace(k.leading_workspace(job.a, job.l))); }});
  run_tasks(tasks, threads);
}

}  // namespace spectral
