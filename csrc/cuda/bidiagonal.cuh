// Householder bidiagonalisation U^T X V = B (Golub & Van Loan, Algorithm 5.4.2) of a matrix in
// shared memory, values only, one barrier per step.
//
// X (rows x n, rows >= n, rows <= 32 R) lies by columns. A warp owns the columns c = warp, warp +
// warps, ...; its lanes have the rows, and every warp has the vectors u, w and the next u in
// registers, computed by each warp for itself so that none waits. Step j, for each column c > j:
//   x_c -= u z_c + w v_c           the two reflectors of step j - 1
//   z_c = tau x_c . u_next,  y_c = x_jc - z_c      row j after the left reflector
//   sum += x_c y_c                 its product with that row, while x_c is in registers
// then a barrier; v = (1, scale * y), X v = scale * (sum - beta x_{j+1}) (Howell et al., ACM TOMS
// 34, 2008), w = tau_v (X v - (z . v) u), and column j + 1, its norm and the next u by every warp.
// An element is read and written once per step: 8/3 n^3 flops, 2/3 n^3 words for a square.
#pragma once

#include "cuda/householder.cuh"

namespace spectral {

// In shared memory. z and y: n each, an entry is written by the warp that owns its column.
// partial: 2 x warps x (rows + 2), two buffers because a warp may be a step ahead of another.
template <class T>
struct Bidiagonal {
  T *x, *z, *y, *partial;
  double *d, *e;  // the result: n and n - 1 entries, signed
  int rows, n, ld;
};

template <class T>
SK_DEVICE T bidiagonal_negligible() {
  // For matrices scaled to about one: what is left out is 1e-15 or 1e-100 of it.
  return sizeof(T) == 4 ? T(1e-30) : T(1e-200);
}

// What the columns of one warp add up to in one step.
template <class T, int R>
struct WarpSums {
  T product[R];  // X y, rows in lanes
  T squares;     // |y|^2 without its first entry
  T zy;          // z . y without its first entry
};

// Columns c, c + warps, ... (C of them at most) of step j.
template <class T, int R, int C>
SK_DEVICE void bidiagonal_columns(const Bidiagonal<T>& b, int j, int c, T scale, T tau,
                                  const T (&u)[R], const T (&w)[R], const T (&next)[R],
                                  WarpSums<T, R>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  T x[C][R], dots[C], zc[C], vc[C];
  SK_UNROLL
  for (int g = 0; g < C; ++g) {
    const int col = c + g * warps;
    dots[g] = T(0);
    zc[g] = col < b.n ? b.z[col] : T(0);
    vc[g] = col < b.n ? scale * b.y[col] : T(0);
  }
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    SK_UNROLL
    for (int g = 0; g < C; ++g) {
      const int col = c + g * warps;
      x[g][k] = T(0);
      // Rows above j are done; chunks of them are left out by the whole warp.
      if (k * kWarp + kWarp <= j || col >= b.n || row >= b.rows) continue;
      T* at = b.x + col * b.ld + row;
      x[g][k] = fma(-w[k], vc[g], fma(-u[k], zc[g], *at));
      *at = x[g][k];
      dots[g] = fma(x[g][k], next[k], dots[g]);
    }
  }
  const T dot = warp_sums(dots);
  // Row j of these columns comes from another lane's store, and the old z and y have been read.
  __syncwarp();
  const int mine = c + lane / (kWarp / C) * warps;
  T y = T(0);
  if (mine < b.n) {
    const T z = tau * dot;
    y = b.x[mine * b.ld + j] - z;
    if (mine > j + 1) {
      sums.squares = fma(y, y, sums.squares);
      sums.zy = fma(z, y, sums.zy);
    }
    if (lane % (kWarp / C) == 0) {
      b.z[mine] = z;
      b.y[mine] = y;
    }
  }
  SK_UNROLL
  for (int g = 0; g < C; ++g) {
    const T factor = __shfl_sync(kFullWarp, y, g * (kWarp / C));
    SK_UNROLL
    for (int k = 0; k < R; ++k)
      sums.product[k] = fma(x[g][k], factor, sums.product[k]);
  }
}

// All later columns of the warp; the sums go to its row of the buffer of this step.
template <class T, int R, int C>
SK_DEVICE void bidiagonal_pass(const Bidiagonal<T>& b, int j, T scale, T tau, const T (&u)[R],
                               const T (&w)[R], const T (&next)[R], T* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  WarpSums<T, R> sums = {};
  const int later = j + 1 > warp ? (j + 1 - warp + warps - 1) / warps : 0;
  for (int c = warp + later * warps; c < b.n; c += C * warps)
    bidiagonal_columns<T, R, C>(b, j, c, scale, tau, u, w, next, sums);
  T* out = partial + warp * (b.rows + 2);
  SK_UNROLL
  for (int k = 0; k < R; ++k)
    if (lane + k * kWarp < b.rows) out[lane + k * kWarp] = sums.product[k];
  // Each group of 32 / C lanes has summed its own columns.
  for (int distance = kWarp / 2; distance >= kWarp / C; distance /= 2) {
    sums.squares += __shfl_xor_sync(kFullWarp, sums.squares, distance);
    sums.zy += __shfl_xor_sync(kFullWarp, sums.zy, distance);
  }
  if (lane == 0) {
    out[b.rows] = sums.squares;
    out[b.rows + 1] = sums.zy;
  }
}

// The right reflector of step j from the sums of all warps; u and w become this step's, and column
// j + 1, as both reflectors leave it, comes back in `column`.
template <class T, int R>
SK_DEVICE Reflector<T> bidiagonal_right(const Bidiagonal<T>& b, int j, const T* partial,
                                        const T (&next)[R], T (&u)[R], T (&w)[R], T (&column)[R]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp, stride = b.rows + 2;
  T squares = T(0), zy = T(0);
  for (int i = 0; i < warps; ++i) {
    squares += partial[i * stride + b.rows];
    zy += partial[i * stride + b.rows + 1];
  }
  const T alpha = b.y[j + 1], z = b.z[j + 1];
  const Reflector<T> h = reflector(alpha, squares, bidiagonal_negligible<T>());
  const T zv = h.scale * (fma(z, alpha, zy) - h.beta * z);
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    const bool live = row > j && row < b.rows;
    const T x = live ? b.x[(j + 1) * b.ld + row] : T(0);
    T sum = T(0);
    for (int i = 0; i < warps && live; ++i)
      sum += partial[i * stride + row];
    u[k] = live ? next[k] : T(0);
    w[k] = h.tau * (h.scale * (sum - h.beta * x) - zv * u[k]);
    column[k] = fma(-u[k], z, x) - w[k];
  }
  return h;
}

// Called by the whole block after a barrier behind the stores into x. The caller puts one behind
// the call before it reads d and e.
template <class T, int R, int C>
SK_DEVICE void bidiagonalise(const Bidiagonal<T>& b) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  T u[R] = {}, w[R] = {}, next[R], column[R], scale = T(0);
  for (int c = warp + lane * warps; c < b.n; c += warps * kWarp)
    b.z[c] = b.y[c] = T(0);
  __syncwarp();
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    column[k] = row < b.rows ? b.x[row] : T(0);
  }
  for (int j = 0;; ++j) {
    const Reflector<T> left = reflect(column, j, bidiagonal_negligible<T>(), next);
    if (threadIdx.x == 0) b.d[j] = static_cast<double>(left.beta);
    if (j == b.n - 1) return;
    T* partial = b.partial + (j % 2) * warps * (b.rows + 2);
    bidiagonal_pass<T, R, C>(b, j, scale, left.tau, u, w, next, partial);
    __syncthreads();
    const Reflector<T> right = bidiagonal_right<T, R>(b, j, partial, next, u, w, column);
    scale = right.scale;
    if (threadIdx.x == 0) b.e[j] = static_cast<double>(right.beta);
  }
}

}  // namespace spectral
