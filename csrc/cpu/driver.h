// Schedules kernels over ragged lists of jobs: matrices over threads, small ones over lanes as
// well.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/clusters.h"
#include "cpu/kernels.h"

namespace spectral {

// The largest short sides that the exact solvers take, beyond which blocked LAPACK wins: float64
// values, and vectors of the other types. Values of the others have no limit.
constexpr int64_t kMaxDirectSide = 384;
constexpr int64_t kMaxVectorsSide = 384;
// At or below these a matrix is one lane of a vector.
constexpr int64_t kLaneShortSide = 32;
constexpr int64_t kLaneLongSide = 64;

inline bool fits_a_lane(const MatrixView& a) {
  return a.short_side() <= kLaneShortSide && a.long_side() <= kLaneLongSide;
}

// Full vectors when the batch feeds every thread, else the batch spread evenly.
inline int64_t lane_group(int64_t batch, int lanes, int threads) {
  return std::clamp<int64_t>((batch + threads - 1) / threads, 1, lanes);
}

struct ValuesJob {
  MatrixView a;
  void* s;
};

struct SvdJob {
  MatrixView a;
  SvdOutput out;
};

struct RsvdJob {
  MatrixView a;
  RsvdPlan plan;
  SvdOutput out;
};

struct TrackJob {
  MatrixView a;  // one matrix
  TrackPlan plan;
  SvdOutput out;
};

struct LeadingJob {
  MatrixView a;  // one matrix
  LeadingPlan plan;
  SvdOutput out;
};

struct CoreJob {
  CorePlan plan;  // of the first of u.batch matrices
};

struct SummaryJob {
  const void* s;
  DType dtype;
  int64_t batch, r, m, n;
  double rtol;  // negative: max(m, n) * eps of the dtype
  double* out;
};

struct BoundedSummaryJob {
  SummaryJob summary;
  const double* b;     // (batch, r)
  const double* beta;  // (batch)
  double* out;         // as the summary's
};

struct ClusterJob {
  const void* s;  // (r) of the dtype
  DType dtype;
  const double* b;
  Compared other;
  int64_t r;
  int64_t unseen;
  int64_t* first;
  uint8_t* alone;
};

struct SnapshotJob {
  MatrixView a;
  void* packed;
  double* stats;  // (batch, 3)
};

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
void run_bounded_summaries(const std::vector<BoundedSummaryJob>& jobs, int threads);
void run_clusters(const std::vector<ClusterJob>& jobs);
void run_alignments(const std::vector<AlignmentPair>& pairs, int threads);
void run_snapshots(const std::vector<SnapshotJob>& jobs, int threads);

const Kernels& kernels();
std::vector<std::string> usable_isas();
void choose_isa(const std::string& name);

}  // namespace spectral
