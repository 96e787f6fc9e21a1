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

// Columns c, c + warps, ... (C of them at most) of step j.
template <int R, int C>
SK_DEVICE void tridiagonal_columns(const Tridiagonal& t, int j, int c, const double (&u)[R],
                                   const double (&w)[R], const double (&v)[R], double* y) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  double dots[C], uc[C], wc[C];
  SK_UNROLL
  for (int i = 0; i < C; ++i) {
    const int col = c + i * warps;
    dots[i] = 0.0;
    uc[i] = col < t.n ? t.u[col] : 0.0;
    wc[i] = col < t.n ? t.w[col] : 0.0;
  }
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    SK_UNROLL
    for (int i = 0; i < C; ++i) {
      const int col = c + i * warps;
      // Rows up to j are done; chunks of them are left out by the whole warp.
      if (k * kWarp + kWarp <= j || col >= t.n || row >= t.n) continue;
      double* at = t.g + col * t.ld + row;
      const double g = fma(-w[k], uc[i], fma(-u[k], wc[i], *at));
      *at = g;
      dots[i] = fma(g, v[k], dots[i]);
    }
  }
  const double dot = warp_sums(dots);
  const int mine = c + lane / (kWarp / C) * warps;
  if (mine < t.n && lane % (kWarp / C) == 0) y[mine] = dot;
}

template <int R, int C>
SK_DEVICE void tridiagonal_pass(const Tridiagonal& t, int j, const double (&u)[R],
                                const double (&w)[R], const double (&v)[R], double* y) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  // Entries of u and w for the columns of this warp, from the lanes that have those rows.
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    if (row >= t.n || row % warps != warp) continue;
    t.u[row] = u[k];
    t.w[row] = w[k];
  }
  __syncwarp();
  const int later = j + 1 > warp ? (j + 1 - warp + warps - 1) / warps : 0;
  for (int c = warp + later * warps; c < t.n; c += C * warps)
    tridiagonal_columns<R, C>(t, j, c, u, w, v, y);
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
