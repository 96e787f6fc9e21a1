// What the bindings call: an operation on a ragged list of jobs, spread over threads; small
// matrices over the lanes of vectors as well.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/factored/kernels.h"
#include "cpu/measures/kernels.h"
#include "cpu/tracking/kernels.h"
#include "cpu/values/kernels.h"
#include "cpu/vectors/kernels.h"

namespace spectral {

bool values_supported(DType dtype, int64_t m, int64_t n);
bool vectors_supported(DType dtype, int64_t m, int64_t n);
bool track_supported(DType dtype, int64_t m, int64_t n);

void run_values(const std::vector<ValuesJob>& jobs, int threads);
void run_svd(const std::vector<SvdJob>& jobs, int threads);
void run_rsvd(const std::vector<RsvdJob>& jobs, int threads);
void run_track(const std::vector<TrackJob>& jobs, int threads);
void run_leading(const std::vector<LeadingJob>& jobs, int threads);
void run_cores(const std::vector<CoreJob>& jobs, int threads);
void run_summaries(const std::vector<SummaryJob>& jobs, int threads);
void run_clusters(const std::vector<ClusterJob>& jobs);
void run_alignments(const std::vector<AlignmentJob>& jobs, int threads);
void run_snapshots(const std::vector<SnapshotJob>& jobs, int threads);

}  // namespace spectral
