// From a matrix to the qd arrays of a bidiagonal with the same singular values.
//
// Householder bidiagonalisation of X itself: of one float64 matrix, whose Gram matrix would lose
// half of the digits, or of small matrices of any type in lanes.
#pragma once

#include "cpu/common/gram.h"
#include "cpu/common/lanes.h"
#include "cpu/values/bidiagonal.h"
#include "cpu/values/kernels.h"

namespace spectral {
namespace SK_ISA {

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
  out->largest = largest;
  out->unscale = unscale;
}

inline void mark_not_finite(Reduced* out) {
  out->unscale = std::nan("");
  out->problem.n = 0;
}

inline int64_t reduce_workspace(const MatrixView& a) {
  const int64_t ld = round_up(a.long_side(), kLanes), cols = round_up(a.short_side(), kLanes);
  return ld * cols + bidiagonal_workspace(ld, cols) + 2 * cols;
}

inline void reduce(const MatrixView& a, Reduced* out, double* work) {
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
