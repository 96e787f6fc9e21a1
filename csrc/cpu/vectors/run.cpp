// SVDs and randomized SVDs of ragged lists.
#include <algorithm>

#include "cpu/common/instruction_sets.h"
#include "cpu/common/tasks.h"
#include "cpu/operations.h"

namespace spectral {

bool vectors_supported(DType dtype, int64_t m, int64_t n) {
  MatrixView a = {};
  a.m = m;
  a.n = n;
  return fits_a_lane(a) || (dtype != DType::kFloat64 && a.short_side() <= kMaxDirectSide);
}

void run_svd(const std::vector<SvdJob>& jobs, int threads) {
  const auto& k = kernels<VectorsKernels>();
  std::vector<Task> tasks;
  for (const SvdJob& job : jobs) {
    const bool lanes = fits_a_lane(job.a);
    const int64_t group = lanes ? lane_group(job.a.batch, threads) : 1, r = job.a.short_side();
    for (int64_t first = 0; first < job.a.batch; first += group) {
      const int count = static_cast<int>(std::min(group, job.a.batch - first));
      tasks.push_back({cubic_cost(job.a) * count, [&k, &job, lanes, first, count, r] {
                         if (!lanes) {
                           k.svd(job.a.at(first), job.out.at(job.a, r, first),
                                 workspace(k.svd_workspace(job.a)));
                           return;
                         }
                         std::vector<SvdOutput> out;
                         for (int i = 0; i < count; ++i)
                           out.push_back(job.out.at(job.a, r, first + i));
                         k.svd_lanes(job.a, first, count, out.data(),
                                     workspace(k.svd_lanes_workspace(job.a)));
                       }});
    }
  }
  run_tasks(tasks, threads);
}

void run_rsvd(const std::vector<RsvdJob>& jobs, int threads) {
  const auto& k = kernels<VectorsKernels>();
  std::vector<Task> tasks;
  for (const RsvdJob& job : jobs)
    for (int64_t b = 0; b < job.a.batch; ++b)
      tasks.push_back({static_cast<double>(job.a.m * job.a.n * job.width), [&k, &job, b] {
                         const int64_t bytes = job.a.is_double() ? 8 : 4;
                         RsvdJob one = job;
                         one.a = job.a.at(b);
                         one.start =
                             static_cast<const char*>(job.start) + b * job.a.n * job.given * bytes;
                         one.random.entry = static_cast<uint32_t>(b);
                         one.out = job.out.at(job.a, job.rank, b);
                         k.rsvd(one, workspace(k.rsvd_workspace(one)));
                       }});
  run_tasks(tasks, threads);
}

}  // namespace spectral
