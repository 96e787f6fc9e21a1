// The core C = R_u Sigma R_v^T (p x q) of U Sigma Vh, U = W_u R_u and Vh^T = W_v R_v, for factors
// U (m x k), Sigma (k x k), Vh (k x n) that are not float64; p = min(m, k), q = min(k, n).
//
// R is the Cholesky factor of a Gram matrix in float64, and W = U R^-1. What is proved of the
// singular values of C is derived in spectral_kernels/entry/core/op.py, and here by the same
// names. A side no longer than k is its own R. Flops: k^2 (m + n) for the Gram matrices, the same
// for W where it is wanted, and up to 16/3 k^3.
#pragma once

#include "cpu/common/arena.h"
#include "cpu/common/cholesky.h"
#include "cpu/factored/kernels.h"

namespace spectral {
namespace SK_ISA {

// A departure beyond this is not proved to leave float32 values within 8 eps.
constexpr double kMostDeparture = 0x1p-20;
constexpr double kSafety = 1.0 + 0x1p-20;  // for the rounding of the bounds themselves
constexpr int64_t kBasisPart = 128;        // vectors are made so many entries at a time

struct CoreSpace {
  int64_t k, ld, ldb;
  double *left, *right, *product, *matrix, *inverse, *sigma, *slice, *part, *lengths;
};

inline int64_t core_rows(const CoreJob& job) {
  return round_up(job.sigma.m, kPad);
}

inline CoreSpace carve_core(const CoreJob& job, Arena& arena) {
  const int64_t rows = core_rows(job), k = job.sigma.m;
  CoreSpace s = {};
  s.k = k;
  s.ld = leading_dimension(k);
  s.ldb = leading_dimension(kBasisPart);
  s.left = arena.take(rows * s.ld);
  s.right = arena.take(rows * s.ld);
  s.product = arena.take(rows * s.ld);
  s.matrix = arena.take(rows * s.ld);
  s.inverse = arena.take(rows * s.ld);
  s.sigma = arena.take(rows * s.ld);
  s.slice = arena.take(kSlice * s.ld);
  s.part = arena.take(2 * rows * s.ldb);
  s.lengths = arena.take(2 * s.ld);
  return s;
}

inline int64_t core_workspace(const CoreJob& job) {
  Arena arena;
  carve_core(job, arena);
  return arena.used();
}

inline double gamma_of(int64_t n) {
  const double nu = static_cast<double>(n) * 0x1p-53;
  return nu / (1.0 - nu);
}

// out (rounded up to kPad rows, ld) = a, zero beyond it.
inline void widen_padded(const MatrixView& a, double* out, int64_t ld) {
  std::memset(out, 0, static_cast<size_t>(round_up(a.m, kPad) * ld) * sizeof(double));
  with_type(a, [&](auto* p) { copy_widened(p, a.m, a.n, a.stride_m, a.stride_n, out, ld); });
}

// w (k, m) = (x X)^T for x (m x k), X the inverse in the space: a vector after the other.
inline void write_basis(const MatrixView& x, const CoreSpace& s, float* w) {
  double* in = s.part;
  double* out = s.part + round_up(s.k, kPad) * s.ldb;
  for (int64_t first = 0; first < x.m; first += kBasisPart) {
    const int64_t here = x.m - first < kBasisPart ? x.m - first : kBasisPart;
    MatrixView rows = x.transposed();
    rows.n = here;
    rows.data = static_cast<const char*>(x.data) + first * x.stride_m * size_of(x.dtype);
    widen_padded(rows, in, s.ldb);
    for (int64_t r = 0; r < s.k; r += kPanel) {
      const int64_t end = s.k < r + kPanel ? s.k : r + kPanel;
      // The inverse is zero below its diagonal.
      gemm({in, s.ldb, s.inverse + r, s.ld, 1, out + r * s.ldb, s.ldb}, end - r, here, end);
    }
    for (int64_t r = 0; r < s.k; ++r)
      for (int64_t j = 0; j < here; ++j)
        w[r * x.m + first + j] = static_cast<float>(out[r * s.ldb + j]);
  }
}

// R (p x k) of x (m x k) and the lengths (k) of its columns; returns the bound of ||W^T W - I||_2,
// infinite where there is none that is small enough. w (p, m): the basis, unless null.
inline double make_triangle(const MatrixView& x, const CoreSpace& s, double* r, double* lengths,
                            float* w) {
  const int64_t k = s.k, ld = s.ld;
  if (x.m <= k) {
    widen_padded(x, r, ld);
    for (int64_t j = 0; j < k; ++j) {
      double squares = 0.0;
      for (int64_t i = 0; i < x.m; ++i)
        squares += r[i * ld + j] * r[i * ld + j];
      lengths[j] = kSafety * std::sqrt(squares);
    }
    for (int64_t i = 0; w && i < x.m * x.m; ++i)
      w[i] = i % (x.m + 1) == 0 ? 1.0f : 0.0f;
    return 0.0;
  }
  gram(x, r, ld, s.slice);
  for (int64_t j = 0; j < k; ++j)
    lengths[j] = kSafety * std::sqrt(r[j * ld + j]);
  if (!cholesky(r, k, ld, s.slice)) return HUGE_VAL;
  invert_upper(r, k, ld, s.inverse);
  double* sums = s.part;
  std::memset(sums, 0, static_cast<size_t>(k) * sizeof(double));
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = i; j < k; ++j)
      sums[j] += lengths[i] * std::fabs(s.inverse[i * ld + j]);
  double squares = 0.0;
  for (int64_t j = 0; j < k; ++j)
    squares += sums[j] * sums[j];
  const double sides = static_cast<double>(k);
  const double delta = kSafety * gamma_of(k + 1) * std::sqrt(sides * squares);
  const double g = gemm_gamma<double>(x.m) + gamma_of(k + 2);
  const double bound = kSafety * g * squares / ((1.0 - delta) * (1.0 - delta));
  if (!(delta < 0.5 && bound <= kMostDeparture)) return HUGE_VAL;
  if (w) write_basis(x, s, w);
  return bound;
}

// error of the core, which is written to s.matrix (p x q).
inline double multiply_core(const CoreJob& job, const CoreSpace& s, double f_u, double f_v) {
  const int64_t k = s.k, ld = s.ld, p = job.u.m < k ? job.u.m : k;
  const int64_t q = job.vh.n < k ? job.vh.n : k;
  const double *d_u = s.lengths, *d_v = s.lengths + ld;
  widen_padded(job.sigma, s.sigma, ld);
  double z = 0.0;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j)
      z += d_u[i] * std::fabs(s.sigma[i * ld + j]) * d_v[j];
  gemm({s.sigma, ld, s.left, 1, ld, s.product, ld}, p, k, k);
  // R_v^T, whose rows gemm reads along.
  std::memset(s.inverse, 0, static_cast<size_t>(core_rows(job) * ld) * sizeof(double));
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < k; ++j)
      s.inverse[j * ld + i] = s.right[i * ld + j];
  gemm({s.inverse, ld, s.product, 1, ld, s.matrix, ld}, p, q, k);
  double squares = 0.0;
  for (int64_t i = 0; i < p; ++i)
    for (int64_t j = 0; j < q; ++j)
      squares += s.matrix[i * ld + j] * s.matrix[i * ld + j];
  const double h_u = 0.5 * f_u * (1.0 + f_u), h_v = 0.5 * f_v * (1.0 + f_v);
  const double stretch = h_u + h_v + h_u * h_v;
  const double rounding = (1.0 + stretch) * 2.01 * gemm_gamma<double>(k) * z;
  // float32 rounds by half an eps, or by half the smallest number below the normal range; zero is
  // what it is.
  const double below = z > 0.0 ? 0x1p-149 : 0.0;
  const double narrowing =
      0x1.01p-24 * std::sqrt(squares) + std::sqrt(static_cast<double>(p * q)) * below;
  return kSafety * (stretch * std::sqrt(squares) + rounding + narrowing);
}

inline void fill_core(const CoreJob& job, float value) {
  const int64_t k = job.sigma.m, m = job.u.m, n = job.vh.n;
  const int64_t p = m < k ? m : k, q = n < k ? n : k;
  for (int64_t i = 0; i < p * q; ++i)
    job.matrix[i] = value;
  for (int64_t i = 0; job.left && i < p * m; ++i)
    job.left[i] = value;
  for (int64_t i = 0; job.right && i < q * n; ++i)
    job.right[i] = value;
  *job.error = value;
}

inline void core(const CoreJob& job, double* work) {
  Arena arena(work);
  const CoreSpace s = carve_core(job, arena);
  const int64_t k = s.k, p = job.u.m < k ? job.u.m : k, q = job.vh.n < k ? job.vh.n : k;
  const double largest =
      largest_magnitude(job.u) + largest_magnitude(job.sigma) + largest_magnitude(job.vh);
  if (!std::isfinite(largest)) return fill_core(job, std::nanf(""));
  const double f_u = make_triangle(job.u, s, s.left, s.lengths, job.left);
  const double f_v = make_triangle(job.vh.transposed(), s, s.right, s.lengths + s.ld, job.right);
  // Another method is for these.
  if (std::isinf(f_u) || std::isinf(f_v)) return fill_core(job, -1.0f);
  *job.error = multiply_core(job, s, f_u, f_v);
  bool finite = true;
  for (int64_t i = 0; i < p; ++i)
    for (int64_t j = 0; j < q; ++j) {
      const float entry = static_cast<float>(s.matrix[i * s.ld + j]);
      finite = finite && std::isfinite(entry);
      job.matrix[i * q + j] = entry;
    }
  if (!finite) fill_core(job, std::nanf(""));
}

}  // namespace SK_ISA
}  // namespace spectral
