// Matrices that are kept as factors: the jobs, and what is compiled once per instruction set.
#pragma once

#include "cpu/common/matrix_view.h"

namespace spectral {

// The cores of U (m x k) Sigma (k x k) Vh (k x n), U and Vh not float64, p = min(m, k),
// q = min(k, n).
struct CoreJob {
  MatrixView u, sigma, vh;
  float* matrix;  // (batch, p, q)
  double* error;  // (batch), of its singular values; -1 where another method must find them
  float* left;    // (batch, p, m): left vectors by columns; null where they are not wanted
  float* right;   // (batch, q, n), or null
};

struct FactoredKernels {
  // The first matrix of the job.
  int64_t (*core_workspace)(const CoreJob&);
  void (*core)(const CoreJob&, double* work);
};

}  // namespace spectral
