// Householder bidiagonalisation U^T X V = B (Golub & Van Loan, Algorithm 5.4.2) of a float64 matrix
// on its own data, for inputs whose Gram matrix would lose half of their digits.
//
// X (rows x n, rows >= n) is stored by columns, ld a multiple of the vector length, padding zero.
// As in tridiagonal.h the rank-two update of step j - 1, X -= u z^T + w v^T, is applied while step
// j forms z = X^T u; a second pass forms w = X v. Flops: 8/3 n^3 for a square; bytes: 8 n^3.
#pragma once

#include "cpu/common/tridiagonal.h"

namespace spectral {
namespace SK_ISA {

// For matrices scaled to about one.
constexpr double kNegligible = 1e-200;

// Reflector vectors of one step: u, w have a row each, v, z a column each.
struct BidiagonalStep {
  double* u;
  double* w;
  double* v;
  double* z;
};

// Columns [col, col + kColumns), rows [row, rows): X -= u z^T + w v^T, then sums[c] = x_c . next_u.
inline void update_and_project(double* x, int64_t ld, int64_t rows, int64_t col, int64_t row,
                               const BidiagonalStep& old, const double* next_u, double* sums) {
  Vd dot[kColumns], zc[kColumns], vc[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    dot[c] = Vd{};
    zc[c] = splat(old.z[col + c]);
    vc[c] = splat(old.v[col + c]);
  }
  for (int64_t i = row; i < rows; i += kLanes) {
    const Vd u = load(old.u + i), w = load(old.w + i), next = load(next_u + i);
    for (int c = 0; c < kColumns; ++c) {
      double* p = x + (col + c) * ld + i;
      const Vd a = load(p) - u * zc[c] - w * vc[c];
      store(p, a);
      dot[c] += a * next;
    }
  }
  for (int c = 0; c < kColumns; ++c)
    sums[col + c] = horizontal_sum(dot[c]);
}

inline void multiply(const double* x, int64_t ld, int64_t rows, int64_t first_row, int64_t cols,
                     int64_t first_col, const double* v, double* w) {
  for (int64_t i = first_row; i < rows; i += kLanes) {
    Vd sum[kColumns];
    for (int c = 0; c < kColumns; ++c)
      sum[c] = Vd{};
    for (int64_t j = first_col; j < cols; j += kColumns)
      for (int c = 0; c < kColumns; ++c)
        sum[c] += load(x + (j + c) * ld + i) * v[j + c];
    for (int c = 1; c < kColumns; ++c)
      sum[0] += sum[c];
    store(w + i, sum[0]);
  }
}

inline int64_t bidiagonal_workspace(int64_t ld, int64_t n) {
  return 3 * ld + 3 * round_up(n, kLanes);
}

// x, scaled to about one: round_up(n, kColumns) columns of ld >= round_up(rows, kLanes); d has n, e
// n - 1 entries, signed.
inline void bidiagonalise(double* x, int64_t ld, int64_t rows, int64_t n, double* d, double* e,
                          double* work) {
  const int64_t padded_rows = round_up(rows, kLanes), padded_n = round_up(n, kLanes);
  std::memset(work, 0, static_cast<size_t>(bidiagonal_workspace(ld, n)) * sizeof(double));
  double* next_u = work;
  BidiagonalStep old = {work + ld, work + 2 * ld, work + 3 * ld, work + 3 * ld + padded_n};
  double* next_v = work + 3 * ld + 2 * padded_n;
  for (int64_t j = 0; j < n; ++j) {
    double* column = x + j * ld;
    for (int64_t i = j; i < rows; ++i)
      column[i] -= old.u[i] * old.z[j] + old.w[i] * old.v[j];
    const double tau = householder(column + j, rows - j, kNegligible, &d[j]);
    if (j == n - 1) break;
    const int64_t first_row = j / kLanes * kLanes, first_col = (j + 1) / kColumns * kColumns;
    for (int64_t i = first_row; i < padded_rows; ++i)
      next_u[i] = i >= j ? column[i] : 0.0;
    old.z[j] = old.v[j] = 0.0;
    // sums = X^T u of the updated X; z = tau * sums, and row j of the result is row j - z^T.
    double* sums = next_v;
    for (int64_t col = first_col; col < n; col += kColumns)
      update_and_project(x, ld, padded_rows, col, first_row, old, next_u, sums);
    for (int64_t c = first_col; c < padded_n; ++c)
      old.z[c] = c > j && c < n ? tau * sums[c] : 0.0;
    for (int64_t c = first_col; c < padded_n; ++c)
      next_v[c] = c > j && c < n ? x[c * ld + j] - old.z[c] : 0.0;
    const double tau_v = householder(next_v + j + 1, n - j - 1, kNegligible, &e[j]);
    for (int64_t c = first_col; c < padded_n; ++c)
      old.v[c] = c > j && c < n ? next_v[c] : 0.0;
    // w = tau_v (X - u z^T) v; the update of the next step is then X - u z^T - w v^T.
    double zv = 0.0;
    for (int64_t c = j + 1; c < n; ++c)
      zv += old.z[c] * old.v[c];
    multiply(x, ld, padded_rows, first_row, n, first_col, old.v, old.w);
    for (int64_t i = first_row; i < padded_rows; ++i) {
      old.w[i] = i > j ? tau_v * (old.w[i] - zv * next_u[i]) : 0.0;
      old.u[i] = i > j ? next_u[i] : 0.0;
    }
  }
}

}  // namespace SK_ISA
}  // namespace spectral
