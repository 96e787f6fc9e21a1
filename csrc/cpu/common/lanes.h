// Small matrices, one per lane: element (i, j) of kLanes matrices side by side in one vector, and
// their Householder bidiagonalisation in lockstep: 8/3 n^3 flops a matrix, all of them vector flops
// whatever the size.
#pragma once

#include "cpu/common/convert.h"

namespace spectral {
namespace SK_ISA {

// x[(j * rows + i) * kLanes + lane] = element (i, j) of X for the view's matrix `first + lane`,
// scaled by a power of two to about one; lanes past `count` are zero. NaN where X is not finite.
inline void load_lanes(const MatrixView& a, int64_t first, int count, double* x, double* scales) {
  const int64_t rows = a.long_side(), cols = a.short_side();
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane >= count) {
      for (int64_t k = 0; k < rows * cols; ++k)
        x[k * kLanes + lane] = 0.0;
      scales[lane] = 1.0;
      continue;
    }
    const MatrixView one = a.at(first + lane);
    const int64_t si = one.stride_long(), sj = one.stride_short();
    double largest = 0.0;
    bool finite = true;
    with_type(one, [&](auto* p) {
      for (int64_t j = 0; j < cols; ++j)
        for (int64_t i = 0; i < rows; ++i) {
          const double value = widen(p[i * si + j * sj]);
          const double magnitude = std::fabs(value);
          finite &= magnitude <= 1.7976931348623157e308;
          largest = magnitude > largest ? magnitude : largest;
          x[(j * rows + i) * kLanes + lane] = value;
        }
    });
    const double scale = finite ? exact_scale(largest) : std::nan("");
    scales[lane] = scale;
    // Zeros keep a matrix with NaN from keeping its neighbours' Jacobi sweeps busy.
    if (scale != 1.0)
      for (int64_t k = 0; k < rows * cols; ++k)
        x[k * kLanes + lane] = finite ? x[k * kLanes + lane] * scale : 0.0;
  }
}

// Reflector of every lane in place, as householder() of tridiagonal.h, of matrices scaled to about
// one; returns tau.
inline Vd householder_lanes(double* x, int64_t n, int64_t stride, Vd* beta) {
  Vd tail = {};
  for (int64_t i = 1; i < n; ++i) {
    const Vd v = load(x + i * stride);
    tail += v * v;
  }
  const Vd alpha = load(x), zero = {}, one = splat(1.0);
  const Md trivial = tail <= splat(1e-200);
  const Vd norm = square_root(alpha * alpha + tail);
  const Vd b = select(trivial, alpha, select(alpha > zero, -norm, norm));
  const Vd scale = one / select(trivial, one, alpha - b);
  const Vd tau = select(trivial, zero, (b - alpha) / select(trivial, one, b));
  store(x, one);
  for (int64_t i = 1; i < n; ++i)
    store(x + i * stride, load(x + i * stride) * scale);
  *beta = b;
  return tau;
}

// Applies I - tau v v^T to kTogether vectors y + c * step, each with stride `stride`.
template <int kTogether>
inline void reflect(const double* v, double* y, int64_t n, int64_t v_stride, int64_t stride,
                    int64_t step, Vd tau) {
  Vd sum[kTogether];
  for (int c = 0; c < kTogether; ++c)
    sum[c] = Vd{};
  for (int64_t i = 0; i < n; ++i) {
    const Vd vi = load(v + i * v_stride);
    for (int c = 0; c < kTogether; ++c)
      sum[c] += vi * load(y + i * stride + c * step);
  }
  for (int c = 0; c < kTogether; ++c)
    sum[c] *= tau;
  for (int64_t i = 0; i < n; ++i) {
    const Vd vi = load(v + i * v_stride);
    for (int c = 0; c < kTogether; ++c) {
      double* p = y + i * stride + c * step;
      store(p, load(p) - sum[c] * vi);
    }
  }
}

inline void reflect_all(const double* v, double* y, int64_t n, int64_t v_stride, int64_t stride,
                        int64_t step, int64_t count, Vd tau) {
  int64_t c = 0;
  for (; c + 4 <= count; c += 4)
    reflect<4>(v, y + c * step, n, v_stride, stride, step, tau);
  for (; c < count; ++c)
    reflect<1>(v, y + c * step, n, v_stride, stride, step, tau);
}

// d (cols vectors) and e (cols - 1 vectors) of the bidiagonal of every lane; x is destroyed.
inline void bidiagonalise_lanes(double* x, int64_t rows, int64_t cols, double* d, double* e) {
  const int64_t down = kLanes, across = rows * kLanes;
  for (int64_t j = 0; j < cols; ++j) {
    double* corner = x + j * across + j * down;
    Vd beta;
    const Vd tau = householder_lanes(corner, rows - j, down, &beta);
    store(d + j * kLanes, beta);
    if (j == cols - 1) break;
    reflect_all(corner, corner + across, rows - j, down, down, across, cols - j - 1, tau);
    double* row = corner + across;
    const Vd tau_row = householder_lanes(row, cols - j - 1, across, &beta);
    store(e + j * kLanes, beta);
    reflect_all(row, row + down, cols - j - 1, across, across, down, rows - j - 1, tau_row);
  }
}

}  // namespace SK_ISA
}  // namespace spectral
