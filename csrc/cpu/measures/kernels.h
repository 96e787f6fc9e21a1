// What one pass over a matrix, a spectrum or two bases tells: the jobs, and what is compiled once
// per instruction set.
#pragma once

#include "cpu/common/matrix_view.h"

namespace spectral {

struct SnapshotJob {
  MatrixView a;
  void* packed;   // (batch, m, n)
  double* stats;  // (batch, kSnapshotFields): largest magnitude, Frobenius norm, whether finite
};

constexpr int kSnapshotFields = 3;

struct AlignmentJob {
  const void* u;
  const void* v;
  DType dtype;
  int64_t u_stride_row, u_stride_col, v_stride_row, v_stride_col;
  int64_t length, count;
  void* out;
  // Cosines of clusters as well, unless null: the first index of each vector's cluster (count),
  // ascending, and where the cosines go (count).
  const int64_t* first;
  void* cosine;
};

struct SummaryJob {
  const void* s;
  DType dtype;
  int64_t batch, r, m, n;
  double rtol;  // negative: max(m, n) * eps of the dtype
  double* out;  // (batch, kSummaryFields)
  // The same of the bounds, unless null: from errors of s of at most b (batch, r), and beta (batch)
  // of all together.
  double* bounds;
  const double* b;
  const double* beta;
};

// A spectrum s' with its bounds b' that another is compared with. A run may leave the other's here,
// for the next one.
struct ComparedSpectrum {
  double* s;
  double* b;
  bool follow;
};

struct ClusterJob {
  const void* s;  // (r) of the dtype
  DType dtype;
  const double* b;
  ComparedSpectrum other;
  int64_t r;
  int64_t unseen;
  int64_t* first;
  uint8_t* alone;
};

struct MeasuresKernels {
  void (*alignment)(const AlignmentJob&);
  // One matrix: its copy, and kSnapshotFields numbers.
  void (*snapshot)(const MatrixView&, void* packed, double* stats);
};

}  // namespace spectral
