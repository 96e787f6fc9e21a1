// Orthonormal bases of a few long vectors, stored as the rows of a count x length array (leading
// dimension a multiple of the vector length, padding zero): Cholesky QR, or Gram-Schmidt where the
// rows are too near dependent for that.
#pragma once

#include "cpu/common/cholesky.h"
#include "cpu/common/skinny_products.h"

namespace spectral {
namespace SK_ISA {

// A few float64 rows to be made orthonormal, with room for the steps of it.
struct Basis {
  double* rows;
  int64_t count, length, ld;
  double* gram;   // count x ldg, ldg = round_up(count, kLanes)
  double* lower;  // the same: rows = lower * orthonormal rows
  double* spare;  // as large as rows, and at least length + count
};

inline int64_t basis_ldg(const Basis& b) {
  return round_up(b.count, kLanes);
}

// One round of Cholesky QR (Yamamoto et al. 2015): rows <- L^-1 rows.
inline bool cholesky_qr(Basis& b) {
  const int64_t ld = basis_ldg(b);
  project(b.rows, b.ld, b.count, b.rows, b.ld, b.count, b.ld, b.gram, ld);
  if (!invert_cholesky(b.gram, b.lower, b.count, ld)) return false;
  accumulate<double>({b.lower, ld, 1}, b.count, b.rows, b.ld, b.count, b.ld, b.spare, b.ld);
  double* done = b.spare;
  b.spare = b.rows;
  b.rows = done;
  return true;
}

// x -= sum_k (x . row_k) row_k over the first `count` rows, twice; coefficients are added up.
inline void project_out_twice(const Basis& b, int64_t count, double* x, double* coefficients) {
  for (int round = 0; round < 2; ++round)
    for (int64_t k = 0; k < count; ++k) {
      const double* row = b.rows + k * b.ld;
      const double c = dot(x, row, b.ld);
      coefficients[k] += c;
      for (int64_t j = 0; j < b.ld; j += kLanes)
        store(x + j, load(x + j) - c * load(row + j));
    }
}

// The axis the first `count` rows cover least, orthogonalised against them, becomes row `count`.
inline void complete_row(const Basis& b, int64_t count) {
  double* x = b.rows + count * b.ld;
  double* coefficients = b.spare;
  int64_t best = 0;
  double least = HUGE_VAL;
  for (int64_t j = 0; j < b.length; ++j) {
    double covered = 0.0;
    for (int64_t k = 0; k < count; ++k)
      covered += b.rows[k * b.ld + j] * b.rows[k * b.ld + j];
    if (covered < least) {
      least = covered;
      best = j;
    }
  }
  std::memset(x, 0, static_cast<size_t>(b.ld) * sizeof(double));
  x[best] = 1.0;
  std::memset(coefficients, 0, static_cast<size_t>(count) * sizeof(double));
  project_out_twice(b, count, x, coefficients);
  const double inverse = 1.0 / std::sqrt(dot(x, x, b.ld));
  for (int64_t j = 0; j < b.length; ++j)
    x[j] *= inverse;
}

// Gram-Schmidt, twice: for any input. rows_in = lower * rows_out; dependent rows get a zero on the
// diagonal of lower and a fresh direction.
inline void gram_schmidt(const Basis& b) {
  const int64_t ld = basis_ldg(b);
  std::memset(b.lower, 0, static_cast<size_t>(b.count * ld) * sizeof(double));
  for (int64_t c = 0; c < b.count; ++c) {
    double* x = b.rows + c * b.ld;
    const double before = std::sqrt(dot(x, x, b.ld));
    project_out_twice(b, c, x, b.lower + c * ld);
    const double norm = std::sqrt(dot(x, x, b.ld));
    if (norm > 1e-14 * before) {
      b.lower[c * ld + c] = norm;
      for (int64_t j = 0; j < b.length; ++j)
        x[j] /= norm;
    } else {
      complete_row(b, c);
    }
  }
}

inline void orthonormalise(Basis& b, int rounds) {
  for (int round = 0; round < rounds; ++round)
    if (!cholesky_qr(b)) return gram_schmidt(b);
}

}  // namespace SK_ISA
}  // namespace spectral
