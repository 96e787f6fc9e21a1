// The SVD with vectors from the float64 Gram matrix: its eigenvectors V, then one-sided: W = X V,
// sigma_j = |w_j|, u_j = w_j / sigma_j.
//
// V diagonalises X^T X to about eps64 sigma_1^2, so the columns of W are orthogonal to eps64
// sigma_1^2 / (sigma_i sigma_j): to float32's own precision as long as sigma_j > 1e-5 sigma_1. What
// is smaller is solved again, after its part along the leading u is removed (a change below 1e-11
// sigma_1), from the Gram matrix of W's own tail: each round adds five digits of range.
#pragma once

#include "cpu/common/arena.h"
#include "cpu/common/gram.h"
#include "cpu/vectors/factors.h"
#include "cpu/vectors/symmetric_eigen.h"

namespace spectral {
namespace SK_ISA {

constexpr double kTrusted = 1e-5;  // the range of sigma one Gram matrix resolves
constexpr double kNoise = 1e-13;   // below this part of sigma_1 columns of W are rounding

struct GramSvdSpace {
  double *g, *q, *eigenvectors, *d, *e, *tau, *scratch;
  double *w, *v, *tail, *product, *sigma;
  Rotation* rotations;
  Sweep* sweeps;
  int64_t log_capacity;
};

inline int64_t log_capacity(int64_t ld) {
  return 32 * ld;
}

inline int64_t svd_scratch(int64_t rows, int64_t ld) {
  const int64_t slice = kSlice * ld, finishing = finish_workspace(rows, ld);
  return slice > finishing ? slice : finishing;
}

inline GramSvdSpace carve(const MatrixView& a, Arena& arena) {
  const int64_t ld = leading_dimension(a.short_side()), rows = round_up(a.long_side(), kPad);
  GramSvdSpace s;
  s.g = arena.take(ld * ld);
  s.q = arena.take(ld * ld);
  s.eigenvectors = arena.take(ld * ld);
  s.v = arena.take(ld * ld);
  s.product = arena.take(ld * ld);
  s.d = arena.take(ld);
  s.e = arena.take(ld);
  s.tau = arena.take(ld);
  s.sigma = arena.take(ld);
  s.scratch = arena.take(svd_scratch(rows, ld));
  s.w = arena.take(rows * ld);
  s.tail = arena.take(2 * rows * ld);
  s.log_capacity = log_capacity(ld);
  s.rotations = arena.take<Rotation>(s.log_capacity);
  s.sweeps = arena.take<Sweep>(s.log_capacity / 2 + 1);
  return s;
}

inline int64_t gram_svd_workspace(const MatrixView& a) {
  Arena arena;
  carve(a, arena);
  return arena.used();
}

// Eigenvectors of the n x n matrix in s.g (by columns, ld), by rows into out, eigenvalues
// descending.
inline bool eigenvectors(GramSvdSpace& s, int64_t n, int64_t ld, double* out) {
  tridiagonalise(s.g, ld, n, s.d, s.e, s.tau, s.scratch);
  form_reflectors(s.g, ld, n, s.tau, s.q, s.scratch);
  RotationLog log = {s.rotations, s.sweeps, s.log_capacity};
  if (!tridiagonal_ql(s.d, s.e, n, s.q, ld, n, log)) return false;
  int64_t* order = reinterpret_cast<int64_t*>(s.e);
  descending_order(s.d, n, order);
  std::memset(out, 0, static_cast<size_t>(ld * ld) * sizeof(double));
  constexpr int64_t kBlock = 16;
  for (int64_t i0 = 0; i0 < n; i0 += kBlock)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = i0; i < n && i < i0 + kBlock; ++i)
        out[i * ld + j] = s.q[order[j] * ld + i];
  return true;
}

// tail = columns [lead, n) of w with their part along the columns before `lead` removed.
inline void separate_tail(const Factors& f, int64_t lead, int64_t ldt, double* tail,
                          double* product) {
  const int64_t rows = round_up(f.rows, kPad), count = f.n - lead;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < ldt; ++j)
      tail[i * ldt + j] = j < count ? f.w[i * f.ld + lead + j] : 0.0;
  if (lead == 0) return;
  gemm({tail, ldt, f.w, f.ld, 1, product, ldt}, lead, count, rows);
  for (int64_t r = 0; r < lead; ++r)
    for (int64_t j = 0; j < ldt; ++j)
      product[r * ldt + j] *= -1.0 / (f.sigma[r] * f.sigma[r]);
  gemm({product, ldt, f.w, 1, f.ld, tail, ldt}, rows, count, lead, {false, true});
}

inline void replace_columns(double* x, int64_t ld, int64_t rows, int64_t first, int64_t count,
                            const double* columns, int64_t ldc) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < count; ++j)
      x[i * ld + first + j] = columns[i * ldc + j];
}

inline double largest_of(const double* x, int64_t n) {
  double largest = 0.0;
  for (int64_t j = 0; j < n; ++j)
    largest = x[j] > largest ? x[j] : largest;
  return largest;
}

// Columns from `lead` on: the leading ones are above kTrusted of the largest among them.
inline int64_t next_lead(const Factors& f, int64_t lead) {
  const double top = largest_of(f.sigma + lead, f.n - lead);
  while (lead < f.n && f.sigma[lead] > kTrusted * top)
    ++lead;
  return lead;
}

// Solves the columns below kTrusted again, from their own Gram matrix, down to the noise.
inline bool resolve_tail(GramSvdSpace& s, const Factors& f) {
  int64_t lead = next_lead(f, 0);
  const double noise = kNoise * f.sigma[0];
  while (lead < f.n) {
    if (largest_of(f.sigma + lead, f.n - lead) <= noise) return true;
    const int64_t count = f.n - lead, ldt = leading_dimension(count), rows = round_up(f.rows, kPad);
    double* rotated = s.tail + rows * ldt;
    separate_tail(f, lead, ldt, s.tail, s.product);
    gemm({s.tail, ldt, s.tail, ldt, 1, s.g, ldt}, count, count, rows, {true, false});
    if (!eigenvectors(s, count, ldt, s.eigenvectors)) return false;
    gemm({s.eigenvectors, ldt, s.tail, 1, ldt, rotated, ldt}, rows, count, count);
    replace_columns(f.w, f.ld, f.rows, lead, count, rotated, ldt);
    gemm({s.eigenvectors, ldt, f.v + lead, 1, f.ld, rotated, ldt}, f.n, count, count);
    replace_columns(f.v, f.ld, f.n, lead, count, rotated, ldt);
    column_norms(f);
    const int64_t next = next_lead(f, lead);
    lead = next > lead ? next : lead + 1;
  }
  return true;
}

// w = X v, both by rows; scratch holds kSlice * ld doubles. Rows of w past X's are zero.
inline void multiply_rows(const MatrixView& a, const double* v, double* w, int64_t ld,
                          double* scratch) {
  const int64_t rows = a.long_side(), n = a.short_side();
  std::memset(w + rows * ld, 0,
              static_cast<size_t>((round_up(rows, kPad) - rows) * ld) * sizeof(double));
  for (int64_t first = 0; first < rows; first += kSlice) {
    const int64_t count = widen_slice(a, first, scratch, ld), padded = round_up(count, kGemmRows);
    std::memset(scratch + count * ld, 0,
                static_cast<size_t>((padded - count) * ld) * sizeof(double));
    gemm({v, ld, scratch, 1, ld, w + first * ld, ld}, padded, n, n);
  }
}

// The factors of X = w v^T from scratch; false where X is not finite.
inline bool solve_factors(const MatrixView& a, GramSvdSpace& s, const Factors& f) {
  gram(a, s.g, f.ld, s.scratch);
  if (!std::isfinite(trace(s.g, f.ld, f.n))) return false;
  if (!eigenvectors(s, f.n, f.ld, s.v)) return false;
  multiply_rows(a, f.v, f.w, f.ld, s.scratch);
  column_norms(f);
  return resolve_tail(s, f);
}

inline bool gram_svd(const MatrixView& a, const SvdOutput& out, double* work) {
  const int64_t n = a.short_side(), ld = leading_dimension(n);
  Arena arena(work);
  GramSvdSpace s = carve(a, arena);
  const Factors f = {s.w, s.v, a.long_side(), n, ld, s.sigma};
  if (!solve_factors(a, s, f)) return false;
  finish(a, f, 1.0, kNoise * largest_of(f.sigma, n), out, s.scratch);
  return true;
}

inline void svd(const MatrixView& a, const SvdOutput& out, double* work) {
  if (!gram_svd(a, out, work)) fill_not_a_number(out, false, a.m, a.n, a.short_side());
}

}  // namespace SK_ISA
}  // namespace spectral
