// The SVD of small matrices of any type, one in each lane: one-sided Jacobi.
#pragma once

#include "cpu/common/gemm.h"
#include "cpu/common/lanes.h"
#include "cpu/vectors/factors.h"
#include "cpu/vectors/jacobi.h"

namespace spectral {
namespace SK_ISA {

inline int64_t svd_lanes_workspace(const MatrixView& a) {
  const int64_t rows = a.long_side(), n = a.short_side(), ld = leading_dimension(a.short_side());
  return (rows * n + n * n) * kLanes + round_up(rows, kPad) * ld + ld * ld + ld +
         finish_workspace(rows, ld);
}

inline void svd_lanes(const MatrixView& a, int64_t first, int count, const SvdOutput* out,
                      double* work) {
  const int64_t rows = a.long_side(), n = a.short_side(), ld = leading_dimension(a.short_side());
  double scales[kLanes];
  double* x = work;
  double* v = x + rows * n * kLanes;
  double* w = v + n * n * kLanes;
  const Factors f = {w,  w + round_up(rows, kPad) * ld,       rows, n,
                     ld, w + (round_up(rows, kPad) + ld) * ld};
  load_lanes(a, first, count, x, scales);
  for (int64_t k = 0; k < n * n; ++k)
    store(v + k * kLanes, splat(k % (n + 1) ? 0.0 : 1.0));
  jacobi(LaneColumns{x, rows}, LaneColumns{v, n}, n, a.is_double() ? 4e-16 : 1e-9);
  for (int lane = 0; lane < count; ++lane) {
    if (!std::isfinite(scales[lane])) {
      fill_not_a_number(out[lane], a.is_double(), a.m, a.n, n);
      continue;
    }
    std::memset(f.w, 0, static_cast<size_t>(rows * ld) * sizeof(double));
    std::memset(f.v, 0, static_cast<size_t>(n * ld) * sizeof(double));
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = 0; i < rows; ++i)
        f.w[i * ld + j] = x[(j * rows + i) * kLanes + lane];
      for (int64_t i = 0; i < n; ++i)
        f.v[i * ld + j] = v[(j * n + i) * kLanes + lane];
    }
    column_norms(f);
    // Jacobi makes columns of any length orthogonal, until their squares underflow.
    finish(a, f, 1.0 / scales[lane], 1e-100, out[lane], f.sigma + ld);
  }
}

}  // namespace SK_ISA
}  // namespace spectral
