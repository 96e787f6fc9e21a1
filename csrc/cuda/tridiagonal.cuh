// Householder reduction of a symmetric matrix in shared memory to tridiagonal form, Q^T G Q = T
// (Golub & Van Loan, Algorithm 8.3.1), values only, float64, one barrier per step.
//
// G (n x n, n <= 32 R, both triangles) lies by columns. A warp owns the columns c = warp, warp +
// warps, ...; its lanes have the rows, and every warp has v and w in registers, computed by each
// warp for itself so that none waits. Step j, for each column c > j:
//   g_c -= u w_c + w u_c      the reflector u of step j - 1, w = tau y - tau^2 (y . u) u / 2
//   y_c = g_c . v             the reflector v of column j
// then a barrier; all of y, the new w, column j + 1, its norm and the next v by every warp. An
// element is read and written once per step: 2 n^3 flops, 2/3 n^3 words.
#pragma once

#include "cuda/householder.cuh"

namespace spectral {

// In shared memory. u and w: n each, an entry is written by the warp that owns its column. y: 2 x
// n, two buffers because a warp may be a step ahead of another.
struct Tridiagonal {
  double *g, *u, *w, *y;
  double *d, *e;  // the result: n and n - 1 entries
  int n, ld;
  double negligible;  // squares not above it count as zero
};

// `count` columns c, c + warps, ..., C at most, of step j; loads and stores as in bidiagonal.cuh.
template <int R, int C>
SK_DEVICE void tridiagonal_columns(const Tridiagonal& t, int j, int c, int count,
                                   const double (&u)[R], const double (&w)[R], const double (&v)[R],
                                   double* y) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warps = warps_of_block();
  const auto done = [=](int k) { return R > 4 && k * kWarp + kWarp <= j; };
  double g[C][R], dots[C];
  SK_UNROLL
  for (int i = 0; i < C; ++i) {
    const double* column = t.g + (i < count ? c + i * warps : c) * t.ld;
    SK_UNROLL
    for (int k = 0; k < R; ++k) {
      g[i][k] = 0.0;
      if (!done(k)) g[i][k] = column[row_or_first(lane + k * kWarp, t.n)];
    }
  }
  __syncwarp();
  SK_UNROLL
  for (int i = 0; i < C; ++i) {
    const int col = i < count ? c + i * warps : c;
    const double uc = t.u[col], wc = t.w[col];
    dots[i] = 0.0;
    SK_UNROLL
    for (int k = 0; k < R; ++k) {
      if (done(k)) continue;
      g[i][k] = fma(-w[k], uc, fma(-u[k], wc, g[i][k]));
      dots[i] = fma(g[i][k], v[k], dots[i]);
    }
  }
  SK_UNROLL
  for (int i = 0; i < C; ++i) {
    double* column = t.g + (c + i * warps) * t.ld;
    SK_UNROLL
    for (int k = 0; k < R; ++k)
      if (!done(k) && i < count && lane + k * kWarp < t.n) column[lane + k * kWarp] = g[i][k];
  }
  const double dot = warp_sums(dots);
  const int group = lane / (kWarp / C);
  if (group < count && lane % (kWarp / C) == 0) y[c + group * warps] = dot;
}

template <int R, int C>
SK_DEVICE void tridiagonal_pass(const Tridiagonal& t, int j, const double (&u)[R],
                                const double (&w)[R], const double (&v)[R], double* y) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = warp_of_block(), warps = warps_of_block();
  // Entries of u and w for the columns of this warp, from the lanes that have those rows.
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    if (row >= t.n || row % warps != warp) continue;
    t.u[row] = u[k];
    t.w[row] = w[k];
  }
  __syncwarp();
  int c = first_column(j + 1);
  for (int left = columns_left(c, t.n); left > 0; left -= C, c += C * warps)
    tridiagonal_columns<R, C>(t, j, c, left, u, w, v, y);
}

// From y, w of this step, and column j + 1 as the reflector leaves it, in `column`.
template <int R>
SK_DEVICE void tridiagonal_update(const Tridiagonal& t, int j, double tau, const double* y,
                                  const double (&u)[R], double (&w)[R], double (&column)[R]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  double product = 0.0;
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    w[k] = row > j && row < t.n ? tau * y[row] : 0.0;
    product = fma(w[k], u[k], product);
  }
  const double half = 0.5 * tau * warp_sum(product);
  SK_UNROLL
  for (int k = 0; k < R; ++k)
    w[k] = fma(-half, u[k], w[k]);
  const double first = entry(w, j + 1);
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    const double g = row > j && row < t.n ? t.g[(j + 1) * t.ld + row] : 0.0;
    // Entry j + 1 of u is one.
    column[k] = fma(-u[k], first, g) - w[k];
  }
}

// Called by the whole block after a barrier behind the stores into g. The caller puts one behind
// the call before it reads d and e.
template <int R, int C>
SK_DEVICE void tridiagonalise(const Tridiagonal& t) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  double u[R] = {}, w[R] = {}, v[R], column[R];
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    column[k] = row < t.n ? t.g[row] : 0.0;
  }
  for (int j = 0;; ++j) {
    const double diagonal = entry(column, j);
    if (threadIdx.x == 0) t.d[j] = diagonal;
    if (j == t.n - 1) return;
    const Reflector<double> h = reflect(column, j + 1, t.negligible, v);
    if (threadIdx.x == 0) t.e[j] = h.beta;
    double* y = t.y + j % 2 * t.n;
    tridiagonal_pass<R, C>(t, j, u, w, v, y);
    __syncthreads();
    SK_UNROLL
    for (int k = 0; k < R; ++k)
      u[k] = v[k];
    tridiagonal_update<R>(t, j, h.tau, y, u, w, column);
  }
}

}  // namespace spectral
