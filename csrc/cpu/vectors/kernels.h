// Decompositions from scratch: the jobs, and what is compiled once per instruction set.
#pragma once

#include "cpu/common/matrix_view.h"

namespace spectral {

struct SvdJob {
  MatrixView a;
  SvdOutput out;
};

// Which random block: of one seed, that of one entry of the batch of one matrix of a list.
struct RandomBlock {
  uint64_t seed;
  uint32_t entry, matrix;
};

struct RsvdJob {
  MatrixView a;
  int64_t rank, width, power_iters;
  const void* start;  // (n, given): the first columns of the start block; the others are random
  int64_t given;
  RandomBlock random;
  SvdOutput out;
};

struct VectorsKernels {
  // `count` <= lanes small matrices from `first` on, or one matrix that is not float64.
  int64_t (*svd_lanes_workspace)(const MatrixView&);
  void (*svd_lanes)(const MatrixView&, int64_t first, int count, const SvdOutput*, double* work);
  int64_t (*svd_workspace)(const MatrixView&);
  void (*svd)(const MatrixView&, const SvdOutput&, double* work);

  // The first matrix of the job.
  int64_t (*rsvd_workspace)(const RsvdJob&);
  void (*rsvd)(const RsvdJob&, double* work);
  void (*normals)(const RandomBlock&, int64_t n, int64_t first, int64_t last, float* out,
                  int64_t ld);
};

}  // namespace spectral
