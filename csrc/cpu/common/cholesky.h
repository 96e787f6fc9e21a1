// Cholesky factors and their inverses.
//
// R with R^T R = G and its inverse, both upper triangular by rows, in blocks. Within a block of
// kPanel rows: outer products, along rows, which are contiguous; beside it: gemm. Whatever the
// order of sums, |R^T R - G| <= gamma_(n+1) |R^T| |R| and R X = I - D with |D| <= gamma_(n+1) |R|
// |X|, entry by entry (Higham 2002, Theorems 10.3 and 8.5). Flops: n^3 / 3 each. Buffers have
// round_up(n, kPad) rows of ld = leading_dimension(n), zero from column n on.
#pragma once

#include "cpu/common/gemm.h"
#include "cpu/common/gram.h"

namespace spectral {
namespace SK_ISA {

constexpr int64_t kPanel = 32;  // a multiple of the tiles of gemm

// row[first, n) -= factor * other[first, n)
inline void subtract_row(double* row, const double* other, double factor, int64_t first,
                         int64_t n) {
  for (int64_t j = first; j < n; ++j)
    row[j] -= factor * other[j];
}

// g (tiles on and right of the diagonal) is replaced by R; false where a pivot is not positive.
// panel: kPanel * ld.
inline bool cholesky(double* g, int64_t n, int64_t ld, double* panel) {
  for (int64_t s = 0; s < n; s += kPanel) {
    const int64_t e = n < s + kPanel ? n : s + kPanel;
    for (int64_t i = s; i < e; ++i) {
      double* row = g + i * ld;
      for (int64_t l = s; l < i; ++l)
        subtract_row(row, g + l * ld, g[l * ld + i], i, n);
      // False for NaN, too.
      if (!(row[i] > 0.0)) return false;
      const double pivot = std::sqrt(row[i]);
      for (int64_t j = i; j < n; ++j)
        row[j] /= pivot;
      row[i] = pivot;
    }
    if (e == n) break;
    for (int64_t l = 0; l < e - s; ++l)
      for (int64_t j = e; j < ld; ++j)
        panel[l * ld + j] = -g[(s + l) * ld + j];
    gemm({g + s * ld + e, ld, panel + e, ld, 1, g + e * (ld + 1), ld}, n - e, n - e, e - s,
         {true, true});
  }
  for (int64_t i = 1; i < n; ++i)
    std::memset(g + i * ld, 0, static_cast<size_t>(i) * sizeof(double));
  return true;
}

// x <- R^-1, by rows from the last one on.
inline void invert_upper(const double* r, int64_t n, int64_t ld, double* x) {
  std::memset(x, 0, static_cast<size_t>(round_up(n, kPad) * ld) * sizeof(double));
  for (int64_t s = (n - 1) / kPanel * kPanel; s >= 0; s -= kPanel) {
    const int64_t e = n < s + kPanel ? n : s + kPanel;
    if (e < n)
      gemm({x + e * (ld + 1), ld, r + s * ld + e, 1, ld, x + s * ld + e, ld}, e - s, n - e, n - e);
    for (int64_t i = e - 1; i >= s; --i) {
      double* row = x + i * ld;
      for (int64_t j = e; j < n; ++j)
        row[j] = -row[j];
      row[i] = 1.0;
      for (int64_t l = i + 1; l < e; ++l)
        subtract_row(row, x + l * ld, r[i * ld + l], l, n);
      for (int64_t j = i; j < n; ++j)
        row[j] /= r[i * ld + i];
    }
  }
}

// g (n x n by rows, its lower triangle) is replaced by its Cholesky factor L, lower by L^-1; false
// where g is too near singular for the product with L^-1 to be orthonormal (a pivot below 1e-10 of
// its row, the square of a condition of 1e5).
inline bool invert_cholesky(double* g, double* lower, int64_t n, int64_t ld) {
  for (int64_t j = 0; j < n; ++j) {
    const double before = g[j * ld + j];
    for (int64_t k = 0; k < j; ++k)
      g[j * ld + j] -= g[j * ld + k] * g[j * ld + k];
    if (!(g[j * ld + j] > 1e-10 * before)) return false;
    g[j * ld + j] = std::sqrt(g[j * ld + j]);
    for (int64_t i = j + 1; i < n; ++i) {
      double sum = g[i * ld + j];
      for (int64_t k = 0; k < j; ++k)
        sum -= g[i * ld + k] * g[j * ld + k];
      g[i * ld + j] = sum / g[j * ld + j];
    }
  }
  std::memset(lower, 0, static_cast<size_t>(n * ld) * sizeof(double));
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = j; i < n; ++i) {
      double sum = i == j ? 1.0 : 0.0;
      for (int64_t k = j; k < i; ++k)
        sum -= g[i * ld + k] * lower[k * ld + j];
      lower[i * ld + j] = sum / g[i * ld + i];
    }
  return true;
}

}  // namespace SK_ISA
}  // namespace spectral
