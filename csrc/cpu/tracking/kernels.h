// Updates of decompositions that are followed from step to step: the jobs, and what is compiled
// once per instruction set.
#pragma once

#include "cpu/common/matrix_view.h"
#include "cpu/tracking/decisions.h"

namespace spectral {

// An update of a whole SVD: what is kept of the matrix, and what is told of the update
// (spectral_kernels/_C.pyi).
struct TrackJob {
  MatrixView a;  // one matrix
  void* v;       // (r, r): columns are the vectors on the short side, in an order of their own
  bool single;   // v is float32 and sweeps are; else both are float64
  bool warm;
  double tolerance;
  double* drift;   // of v from orthonormal, a bound; kept with it
  int64_t* names;  // (r + 1): the identity of each column of v, then the next fresh one
  SvdOutput out;
  double* bounds;       // (r)
  int64_t* identities;  // (r): of the vectors in order; -1 for a matrix that is not finite
  double* report;       // kTrackFields
};

// Work done, and the bound of the 2-norm of all errors.
constexpr int kTrackFields = 2;

// The same for k leading triplets. block, start and fresh are of the type of results.
struct LeadingJob {
  MatrixView a;  // one matrix
  int64_t k, l;
  bool warm;
  double tolerance;
  void* block;        // (n, l) right vectors; read where warm
  const void* start;  // (n, l) random: for a block that is started anew
  const void* fresh;  // (n, fresh_columns) random, in place of the last of a warm block
  int64_t fresh_columns;
  int64_t* identities;  // (l + 1): a number for every vector of the block, and the next one
  SvdOutput out;
  double* bounds;     // (k)
  double* residuals;  // (k)
  double* report;     // kLeadingFields
};

// Work done, iterations, whether A is zero, the bound of the
// 2-norm of all errors, ||A||_F.
constexpr int kLeadingFields = 5;

struct TrackingKernels {
  int64_t (*track_workspace)(const MatrixView&);
  void (*track)(const TrackJob&, double* work);
  int64_t (*leading_workspace)(const MatrixView&, int64_t l);
  void (*leading)(const LeadingJob&, double* work);
};

}  // namespace spectral
