// Singular values of a float16, bfloat16 or float32 matrix: Gram matrix of the short side in
// float64, tridiagonal form, Sturm counts.
#pragma once

#include "cpu/common/gram.h"
#include "cpu/common/tridiagonal.h"
#include "cpu/values/brackets.h"

namespace spectral {
namespace SK_ISA {

// max row sum of |T|: between the largest eigenvalue and three times it.
inline double tridiagonal_norm(const double* d, const double* e, int64_t n) {
  double norm = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double row =
        std::fabs(d[i]) + (i > 0 ? std::fabs(e[i - 1]) : 0.0) + (i < n - 1 ? std::fabs(e[i]) : 0.0);
    norm = row > norm ? row : norm;
  }
  return norm;
}

// Eigenvalues of T over ||T||, ascending; d and e are overwritten. A floor under the squares, which
// moves no eigenvalue by more than 1e-18, keeps the recurrence from ending in zeros.
inline void scaled_eigenvalues(double* d, double* e, int64_t n, double norm, double* squares,
                               double* eigenvalues, double* work) {
  const double scale = 1.0 / norm;
  squares[0] = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    d[i] *= scale;
    if (i == n - 1) break;
    const double b = e[i] * scale;
    squares[i + 1] = std::fmax(b * b, kSquareFloor);
  }
  sturm_eigenvalues({d, squares, n}, eigenvalues, work);
}

inline int64_t gram_size(const MatrixView& a) {
  const int64_t ld = leading_dimension(a.short_side());
  return ld * ld;
}

// For either step: the slices of X make room for all that comes after, n + 1 brackets among it.
static_assert(sizeof(Bracket) <= kSlice * sizeof(double), "brackets fit where slices were");
inline int64_t gram_workspace(const MatrixView& a) {
  return (kSlice + 4) * leading_dimension(a.short_side());
}

inline void gram_part(const MatrixView& a, int64_t first, int64_t last, double* g, double* work) {
  gram_columns(a, first, last, g, leading_dimension(a.short_side()), work);
}

// From the Gram matrix, which is overwritten, n values descending into s; NaN for a matrix with NaN
// or infinity inside.
inline void gram_values(const MatrixView& a, double* g, float* s, double* work) {
  const int64_t n = a.short_side(), ld = leading_dimension(n);
  double* d = work;
  double* e = d + ld;
  double* squares = e + ld;
  double* eigenvalues = squares + ld;
  double* scratch = eigenvalues + ld;
  const bool finite = std::isfinite(trace(g, ld, n));
  if (finite) tridiagonalise(g, ld, n, d, e, eigenvalues, scratch);
  const double norm = finite ? tridiagonal_norm(d, e, n) : 0.0;
  if (norm > 0) scaled_eigenvalues(d, e, n, norm, squares, eigenvalues, scratch);
  for (int64_t i = 0; i < n; ++i) {
    const double value = norm > 0 ? std::sqrt(norm * eigenvalues[n - 1 - i]) : 0.0;
    s[i] = static_cast<float>(finite ? value : std::nan(""));
  }
}

}  // namespace SK_ISA
}  // namespace spectral
