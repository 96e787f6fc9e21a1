// Singular values without vectors: the jobs, and what is compiled once per instruction set.
#pragma once

#include "cpu/common/matrix_view.h"

namespace spectral {

struct ValuesJob {
  MatrixView a;
  void* s;  // (batch, r)
};

// Where the eigenvalues of one positive tridiagonal B^T B come from and go to.
struct QdProblem {
  int64_t n;
  double* q;    // n squares of B's diagonal; replaced by the eigenvalues, unordered
  double* e;    // n - 1 squares of its superdiagonal (room for n); destroyed
  double drop;  // an e_i below this is dropped: it moves no singular value by more than sqrt(drop)
  bool converged;
};

// A matrix reduced to a QdProblem: sigma = sqrt(eigenvalue) * largest * unscale, from left to
// right: the product of the last two may overflow where a value does not.
struct Reduced {
  QdProblem problem;
  double largest;  // entry of the bidiagonal
  double unscale;  // a power of two; NaN for a matrix with NaN or infinity inside
};

constexpr int64_t kGramPart = 16;

struct ValuesKernels {
  // Singular values of one matrix that is not float64: columns of its Gram matrix, in parts that
  // start at multiples of kGramPart, then all values.
  int64_t (*gram_size)(const MatrixView&);
  int64_t (*gram_workspace)(const MatrixView&);
  void (*gram_part)(const MatrixView&, int64_t first, int64_t last, double* g, double* work);
  void (*gram_values)(const MatrixView&, double* g, float* s, double* work);

  // Reduction of `count` <= lanes small matrices from `first` on, or of one float64 matrix.
  int64_t (*reduce_lanes_workspace)(const MatrixView&);
  void (*reduce_lanes)(const MatrixView&, int64_t first, int count, Reduced*, double* work);
  int64_t (*reduce_workspace)(const MatrixView&);
  void (*reduce)(const MatrixView&, Reduced*, double* work);

  int64_t (*qd_workspace)(int64_t longest, int count);
  void (*qd)(QdProblem*, int count, double* work);
};

}  // namespace spectral
