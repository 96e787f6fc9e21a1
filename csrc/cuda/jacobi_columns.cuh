// The last steps of an SVD whose columns are in registers, one for each lane of a group of kSide:
// lengths, signs, and a unit vector for every column that is zero.
#pragma once

#include "cuda/jacobi.cuh"

namespace spectral {

// In float64: the sum is part of every sigma's error.
template <class T, int kSide>
SK_DEVICE T column_norm(const T (&x)[kSide]) {
  double sum = 0;
  SK_UNROLL
  for (int i = 0; i < kSide; ++i)
    sum = fma(static_cast<double>(x[i]), static_cast<double>(x[i]), sum);
  return static_cast<T>(sqrt(sum));
}

// -1 where the entry of largest magnitude of this lane's column of U is negative, else 1.
template <class T, int kSide>
SK_DEVICE T column_sign(const T (&x)[kSide], const T (&v)[kSide], bool tall) {
  T best = 0;
  SK_UNROLL
  for (int i = 0; i < kSide; ++i) {
    const T u = tall ? x[i] : v[i];
    if (fabs(u) > fabs(best)) best = u;
  }
  return best < T(0) ? T(-1) : T(1);
}

// The axis that the orthonormal columns x of the group cover least, so that at least 1 / rows of
// its square is left after a projection.
template <class T, int kSide>
SK_DEVICE int least_covered_axis(const T (&x)[kSide], int rows) {
  int axis = 0;
  T least = 2;
  SK_UNROLL
  for (int i = 0; i < kSide; ++i) {
    const T covered = group_sum<kSide>(x[i] * x[i]);
    if (i < rows && covered < least) {
      least = covered;
      axis = i;
    }
  }
  return axis;
}

// Scales every column to length one; a column of noise becomes a unit vector orthogonal to all
// others. Every lane of a group works on a copy of that vector.
template <class T, int kSide>
SK_DEVICE void complete_columns(T (&x)[kSide], T sigma, int rows, int columns) {
  const int column = static_cast<int>(threadIdx.x) % kSide;
  bool missing = !(sigma * sigma > kNoiseSquared<T>) && column < columns;
  const T factor = missing || column >= columns ? T(0) : T(1) / sigma;
  SK_UNROLL
  for (int i = 0; i < kSide; ++i)
    x[i] = factor * x[i];
  for (int k = 0; k < columns; ++k) {
    const bool here = missing && column == k;
    if (!__any_sync(kFullWarp, here)) continue;
    const int axis = least_covered_axis(x, rows);
    T z[kSide];
    SK_UNROLL
    for (int i = 0; i < kSide; ++i)
      z[i] = i == axis ? T(1) : T(0);
    // Twice is enough (Giraud, Langou & Rozloznik 2005).
    for (int pass = 0; pass < 2; ++pass) {
      T product = 0;
      SK_UNROLL
      for (int i = 0; i < kSide; ++i)
        product = fma(x[i], z[i], product);
      SK_UNROLL
      for (int i = 0; i < kSide; ++i)
        z[i] -= group_sum<kSide>(product * x[i]);
    }
    const T length = column_norm(z);
    SK_UNROLL
    for (int i = 0; i < kSide; ++i)
      if (here) x[i] = z[i] / length;
  }
}

}  // namespace spectral
