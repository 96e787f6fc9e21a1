// Householder reflectors of columns whose rows lie in the lanes of a warp: lane l holds rows
// l, l + 32, ... in an array indexed by compile-time constants only.
#pragma once

#include "cuda/device.cuh"

namespace spectral {

// (I - tau v v^T) x = beta e_1 with v = (1, scale * tail of x); tau = scale = 0 where there is
// nothing to reflect.
template <class T>
struct Reflector {
  T beta, scale, tau;
};

// `tail` is the sum of squares of x without its first entry alpha. One that is not above
// `negligible` counts as zero: squares near underflow would give a v and a tau that do not belong
// together, and so no reflector at all.
template <class T>
SK_DEVICE Reflector<T> reflector(T alpha, T tail, T negligible) {
  if (!(tail > negligible)) return {alpha, T(0), T(0)};
  const T norm = sqrt(alpha * alpha + tail);
  const T beta = alpha > T(0) ? -norm : norm;
  return {beta, T(1) / (alpha - beta), (beta - alpha) / beta};
}

// A lane past the last row reads the first instead of asking whether to read.
SK_DEVICE int row_or_first(int row, int rows) {
  return row < rows ? row : 0;
}

// Entry `row` of a vector in lanes, to every lane.
template <class T, int R>
SK_DEVICE T entry(const T (&x)[R], int row) {
  T mine = T(0);
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    // Read in any case: a choice between addresses would put x into memory.
    const T here = x[k];
    mine = row / kWarp == k ? here : mine;
  }
  return __shfl_sync(kFullWarp, mine, row % kWarp);
}

// The reflector of rows `first` and below of x; v has zeros above and one at `first`.
template <class T, int R>
SK_DEVICE Reflector<T> reflect(const T (&x)[R], int first, T negligible, T (&v)[R]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  T tail = T(0);
  SK_UNROLL
  for (int k = 0; k < R; ++k)
    tail += lane + k * kWarp > first ? x[k] * x[k] : T(0);
  tail = warp_sum(tail);
  const Reflector<T> h = reflector(entry(x, first), tail, negligible);
  SK_UNROLL
  for (int k = 0; k < R; ++k) {
    const int row = lane + k * kWarp;
    v[k] = row > first ? h.scale * x[k] : row == first ? T(1) : T(0);
  }
  return h;
}

SK_DEVICE int warp_of_block() {
  return static_cast<int>(threadIdx.x) / kWarp;
}
SK_DEVICE int warps_of_block() {
  return static_cast<int>(blockDim.x) / kWarp;
}

// A warp owns the columns warp, warp + warps, ...: the first of them from `from` on.
SK_DEVICE int first_column(int from) {
  const int warp = warp_of_block(), warps = warps_of_block();
  return from > warp ? warp + (from - warp + warps - 1) / warps * warps : warp;
}

// How many of the n columns are left to it from column c on.
SK_DEVICE int columns_left(int c, int n) {
  return c < n ? (n - 1 - c) / warps_of_block() + 1 : 0;
}

// C sums over the lanes at once: lane l gets the sum number l / (32 / C). C - 1 exchanges share the
// work of the first log2 C levels, where C sums one after another take C log2 C.
template <class T, int C>
SK_DEVICE T warp_sums(T (&sums)[C]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int distance = kWarp / 2;
  SK_UNROLL
  for (int half = C / 2; half > 0; half /= 2) {
    const bool upper = (lane & distance) != 0;
    SK_UNROLL
    for (int c = 0; c < half; ++c) {
      const T keep = upper ? sums[c + half] : sums[c], give = upper ? sums[c] : sums[c + half];
      sums[c] = keep + __shfl_xor_sync(kFullWarp, give, distance);
    }
    distance /= 2;
  }
  T sum = sums[0];
  for (; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(kFullWarp, sum, distance);
  return sum;
}

}  // namespace spectral
