// From a matrix to the qd arrays of a bidiagonal with the same singular values.
//
// float16, bfloat16, float32: Gram matrix of the short side in float64 (its rounding, 1e-16 of
// sigma_1^2, is at most 1e-8 of sigma_1 in a singular value, below float32's own), tridiagonal T,
// and T + shift = L D L^T. float64: Householder bidiagonalisation of X itself.
#pragma once

#include "cpu/bidiagonal.h"
#include "cpu/convert.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/lanes.h"
#include "cpu/tridiagonal.h"

namespace spectral {
namespace SK_ISA {

constexpr double kEps = 2.220446049250313e-16;
constexpr int64_t kSlice = 128;  // rows of X widened at a time
constexpr int64_t kPad = 16;     // rows of every float64 buffer are a multiple of this

// Widens rows [first, first + kSlice) of X into x (ld columns, padding zero); returns their number.
inline int64_t widen_slice(const MatrixView& a, int64_t first, double* x, int64_t ld) {
  const int64_t cols = a.short_side();
  const int64_t rows = a.long_side() - first < kSlice ? a.long_side() - first : kSlice;
  with_type(a, [&](auto* p) {
    copy_widened(p + first * a.stride_long(), rows, cols, a.stride_long(), a.stride_short(), x, ld);
  });
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = cols; j < ld; ++j)
      x[i * ld + j] = 0.0;
  return rows;
}

// G = X^T X by columns, tiles on and below the diagonal; slice holds kSlice * ld doubles.
inline void gram(const MatrixView& a, double* g, int64_t ld, double* slice) {
  const int64_t n = a.short_side();
  for (int64_t first = 0; first < a.long_side(); first += kSlice) {
    const int64_t rows = widen_slice(a, first, slice, ld);
    gemm({slice, ld, slice, ld, 1, g, ld}, n, n, rows, {true, first > 0});
  }
}

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

// T + shift = L D L^T in qd form. T is positive only up to rounding; a shift well above that
// rounding makes the factorisation exist and its errors relative, and is taken off again at the
// end.
inline void factor_tridiagonal(const double* d, const double* e, int64_t n, Reduced* out) {
  const double norm = tridiagonal_norm(d, e, n);
  const double scale = norm > 0 ? 1.0 / norm : 1.0;
  double* q = out->problem.q;
  double shift = 4.0 * kEps * static_cast<double>(n + 8);
  for (bool positive = false; !positive; shift *= 16.0) {
    positive = true;
    q[0] = d[0] * scale + shift;
    for (int64_t i = 0; i + 1 < n && positive; ++i) {
      positive = q[i] > 0.25 * shift;
      const double b = e[i] * scale;
      out->problem.e[i] = b * b / q[i];
      q[i + 1] = d[i + 1] * scale + shift - out->problem.e[i];
    }
    positive = positive && q[n - 1] > 0.25 * shift;
    out->shift = shift;
  }
  out->problem.drop = 1e-20;
  out->unscale = std::sqrt(norm);
}

// The bidiagonal (d, e): squares, with a floor of eps / 4 under the diagonal, which moves no
// singular value by more and keeps every q invertible.
inline void square_bidiagonal(const double* d, const double* e, int64_t n, int64_t stride,
                              double unscale, Reduced* out) {
  double largest = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::fmax(largest, std::fabs(d[i * stride]));
    if (i < n - 1) largest = std::fmax(largest, std::fabs(e[i * stride]));
  }
  const double scale = largest > 0 ? 1.0 / largest : 1.0;
  for (int64_t i = 0; i < n; ++i) {
    const double a = std::fmax(std::fabs(d[i * stride]) * scale, 0.25 * kEps);
    const double b = i < n - 1 ? e[i * stride] * scale : 0.0;
    out->problem.q[i] = a * a;
    out->problem.e[i] = b * b;
  }
  out->problem.drop = kEps * kEps / 64.0;
  out->shift = 0.0;
  out->unscale = largest * unscale;
}

inline void mark_not_finite(Reduced* out) {
  out->unscale = std::nan("");
  out->problem.n = 0;
}

inline int64_t gram_workspace(const MatrixView& a) {
  const int64_t ld = leading_dimension(a.short_side());
  return ld * ld + kSlice * ld + 3 * ld;
}

inline void reduce_gram(const MatrixView& a, Reduced* out, double* work) {
  const int64_t n = a.short_side(), ld = leading_dimension(a.short_side());
  double* g = work;
  double* slice = g + ld * ld;
  double* d = slice + kSlice * ld;
  gram(a, g, ld, slice);
  if (!std::isfinite(trace(g, ld, n))) return mark_not_finite(out);
  tridiagonalise(g, ld, n, d, d + ld, d + 2 * ld, slice);
  factor_tridiagonal(d, d + ld, n, out);
}

inline int64_t direct_workspace(const MatrixView& a) {
  const int64_t ld = round_up(a.long_side(), kLanes), cols = round_up(a.short_side(), kLanes);
  return ld * cols + bidiagonal_workspace(ld, cols) + 2 * cols;
}

inline void reduce_direct(const MatrixView& a, Reduced* out, double* work) {
  const int64_t rows = a.long_side(), n = a.short_side();
  const int64_t ld = round_up(rows, kLanes), cols = round_up(n, kLanes);
  const double largest = largest_magnitude(a);
  if (!std::isfinite(largest)) return mark_not_finite(out);
  const double scale = exact_scale(largest);
  double* d = work + ld * cols;
  std::memset(work, 0, static_cast<size_t>(ld * cols) * sizeof(double));
  copy_widened(static_cast<const double*>(a.data), n, rows, a.stride_short(), a.stride_long(), work,
               ld);
  for (int64_t i = 0; i < ld * n; ++i)
    work[i] *= scale;
  bidiagonalise(work, ld, rows, n, d, d + cols, d + 2 * cols);
  square_bidiagonal(d, d + cols, n, 1, 1.0 / scale, out);
}

inline int64_t reduce_workspace(const MatrixView& a) {
  return a.is_double() ? direct_workspace(a) : gram_workspace(a);
}

inline void reduce(const MatrixView& a, Reduced* out, double* work) {
  if (a.is_double())
    reduce_direct(a, out, work);
  else
    reduce_gram(a, out, work);
}

inline int64_t reduce_lanes_workspace(const MatrixView& a) {
  return (a.long_side() + 2) * a.short_side() * kLanes;
}

inline void reduce_lanes(const MatrixView& a, int64_t first, int count, Reduced* out,
                         double* work) {
  const int64_t rows = a.long_side(), n = a.short_side();
  double scales[kLanes];
  double* d = work + rows * n * kLanes;
  double* e = d + n * kLanes;
  load_lanes(a, first, count, work, scales);
  bidiagonalise_lanes(work, rows, n, d, e);
  for (int lane = 0; lane < count; ++lane) {
    if (std::isfinite(scales[lane]))
      square_bidiagonal(d + lane, e + lane, n, kLanes, 1.0 / scales[lane], out + lane);
    else
      mark_not_finite(out + lane);
  }
}

}  // namespace SK_ISA
}  // namespace spectral
