// Householder bidiagonalisation U^T X V = B (Golub & Van Loan, Algorithm 5.4.2) of a matrix in
// shared memory, values only, one barrier per step.
//
// X (rows x n, rows >= n, rows <= 32 R) lies by columns. A warp owns the columns c = warp, warp +
// warps, ...; its lanes have the rows, and every warp has the vectors u, w and the next u in
// registers, computed by each warp for itself so that none waits. Step j, for each column c > j:
//   x_c -= u z_c + w y_c           the two reflectors of step j - 1
//   z_c = tau x_c . u_next,  y_c = x_jc - z_c      row j after the left reflector
//   sum += x_c y_c                 its product with that row, while x_c is in registers
// then a barrier; v = (1, scale * y), X v = scale * (sum - beta x_{j+1}) (Howell et al., ACM TOMS
// 34, 2008), w = tau_v (X v - (z . v) u), column j + 1 from it, its norm and the next u by every
// warp; w takes over the scale of y.
// An element is read and written once per step: 8/3 n^3 flops, 2/3 n^3 words for a square.
#pragma once

#include "cuda/householder.cuh"

namespace spectral {

// What a column keeps from one step to the next, read together.
template <class T>
struct alignas(2 * sizeof(T)) ColumnFactors {
  T z, y;
};

// In shared memory. factors: n, an entry is written by the warp that owns its column. partial: 2 x
// warps x (rows + 2), two buffers because a warp may be a step ahead of another.
template <class T>
struct Bidiagonal {
  ColumnFactors<T>* factors;
  T *x, *partial;
  double *d, *e;  // the result: n and n - 1 entries, signed
  int rows, n, ld;
};

// For matrices scaled to about one: what is left out is 1e-15 or 1e-100 of it.
template <class T>
constexpr T kNegligible = sizeof(T) == 4 ? T(1e-30) : T(1e-200);

// What the columns of one warp add up to in one step.
template <class T, int R>
struct WarpSums {
  T product[R];  // X y, rows in lanes
  T squares;     // |y|^2 without its first entry
  T zy;          // z . y without its first entry
};

// `count` columns c, c + warps, ..., C at most, of step j. Lanes without a row of their own and
// columns past the last compute along with another's numbers, and store nothing. Everything is
// loaded before anything is stored: the compiler may not exchange the two.
template <class T, int R, int C>
SK_DEVICE void bidiagonal_columns(const Bidiagonal<T>& b, int j, int c, int count, T tau,
                                  const T (&u)[R], const T (&w)[R], const T (&next)[R],
                                  WarpSums<T, R>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warps = warps_of_block();
  // Rows above j are done: where there are many, those that every lane has are left out.
  const auto done = [=](int k) { return R > 4 && k * kWarp + kWarp <= j; };
  T x[C][R], dots[C];
  SK_UNROLL
  for (int g = 0; g < C; ++g) {
    const T* column = b.x + (g < count ? c + g * warps : c) * b.ld;
    SK_UNROLL
    for (int k = 0; k < R; ++k) {
      x[g][k] = T(0);
      if (!done(k)) x[g][k] = column[row_or_first(lane + k * kWarp, b.rows)];
    }
  }
  // Another's numbers are read as they were.
  __syncwarp();
  SK_UNROLL
  for (int g = 0; g < C; ++g) {
    const ColumnFactors<T> f = b.factors[g < count ? c + g * warps : c];
    dots[g] = T(0);
    SK_UNROLL
    for (int k = 0; k < R; ++k) {
      if (done(k)) continue;
      x[g][k] = fma(-w[k], f.y, fma(-u[k], f.z, x[g][k]));
      dots[g] = fma(x[g][k], next[k], dots[g]);
    }
  }
  SK_UNROLL
  for (int g = 0; g < C; ++g) {
    T* column = b.x + (c + g * warps) * b.ld;
    SK_UNROLL
    for (int k = 0; k < R; ++k)
      if (!done(k) && g < count && lane + k * kWarp < b.rows) column[lane + k * kWarp] = x[g][k];
  }
  const T dot = warp_sums(dots);
  // Row j of these columns comes from another lane's store, and the old factors have been read.
  __syncwarp();
  const int group = lane / (kWarp / C), mine = c + group * warps;
  T y = T(0);
  if (group < count) {
    const T z = tau * dot;
    y = b.x[mine * b.ld + j] - z;
    if (mine > j + 1) {
      sums.squares = fma(y, y, sums.squares);
      sums.zy = fma(z, y, sums.zy);
    }
    if (lane % (kWarp / C) == 0) b.factors[mine] = {z, y};
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
SK_DEVICE void bidiagonal_pass(const Bidiagonal<T>& b, int j, T tau, const T (&u)[R],
                               const T (&w)[R], const T (&next)[R], T* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warps = warps_of_block();
  WarpSums<T, R> sums = {};
  int c = first_column(j + 1);
  for (int left = columns_left(c, b.n); left > 0; left -= C, c += C * warps)
    bidiagonal_columns<T, R, C>(b, j, c, left, tau, u, w, next, sums);
  T* out = partial + warp_of_block() * (b.rows + 2);
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

// The sums of all warps.
template <class T, int R>
SK_DEVICE WarpSums<T, R> bidiagonal_sums(const Bidiagonal<T>& b, const T* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warps = warps_of_block();
  WarpSums<T, R> sums = {};
  for (int i = 0; i < warps; ++i, partial += b.rows + 2) {
    SK_UNROLL
    for (int k = 0; k < R; ++k)
      sums.product[k] += partial[row_or_first(lane + k * kWarp, b.rows)];
    sums.squares += partial[b.rows];
    sums.zy += partial[b.rows + 1];
  }
  return sums;
}

// The right reflector of step j; u and w become this step's, and column j + 1, as both reflectors
// leave it, comes back in `column`. Returns e_j.
template <class T, int R>
SK_DEVICE T bidiagonal_right(const Bidiagonal<T>& b, int j, const WarpSums<T, R>& sums,
                             const T (&next)[R], T (&u)[R], T (&w)[R], T (&column)[R]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const ColumnFactors<T> f = b.factors[j + 1];
  const Reflector<T> h = reflector(f.y, sums.squares, kNegligible<T>);
  const T zv = h.scale * (fma(f.z, f.y, sums.zy) - h.beta * f.z);
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    const bool live = row > j && row < b.rows;
    const T x = live ? b.x[(j + 1) * b.ld + row] : T(0);
    u[k] = live ? next[k] : T(0);
    const T v = h.scale * (sums.product[k] - h.beta * x) - zv * u[k];
    const T whole = live ? h.tau * v : T(0);
    column[k] = fma(-u[k], f.z, x) - whole;
    w[k] = h.scale * whole;
  }
  return h.beta;
}

// Called by the whole block after a barrier behind the stores into x. The caller puts one behind
// the call before it reads d and e.
template <class T, int R, int C>
SK_DEVICE void bidiagonalise(const Bidiagonal<T>& b) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = warp_of_block(), warps = warps_of_block();
  T u[R] = {}, w[R] = {}, next[R], column[R];
  for (int c = warp + lane * warps; c < b.n; c += warps * kWarp)
    b.factors[c] = {T(0), T(0)};
  __syncwarp();
  SK_UNROLL
  for (int k = 0; k < R; ++k)
    column[k] = lane + k * kWarp < b.rows ? b.x[lane + k * kWarp] : T(0);
  for (int j = 0;; ++j) {
    const Reflector<T> left = reflect(column, j, kNegligible<T>, next);
    if (threadIdx.x == 0) b.d[j] = static_cast<double>(left.beta);
    if (j == b.n - 1) return;
    T* partial = b.partial + (j % 2) * warps * (b.rows + 2);
    bidiagonal_pass<T, R, C>(b, j, left.tau, u, w, next, partial);
    __syncthreads();
    const WarpSums<T, R> sums = bidiagonal_sums<T, R>(b, partial);
    const T beta = bidiagonal_right(b, j, sums, next, u, w, column);
    if (threadIdx.x == 0) b.e[j] = static_cast<double>(beta);
  }
}

}  // namespace spectral
