// The end of jacobi_shared.cu: lengths and signs of the columns of W, a unit vector for every
// column that is zero, and the output in descending order.
#pragma once

#include "cuda/jacobi_block.cuh"

namespace spectral {

// sigma_j = |w_j|, summed in float64: it is part of every sigma's error.
template <int kLanes, class T>
SK_DEVICE void column_norms(const BlockSvd<T>& s) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for_each_column<kLanes>(s.columns, [&](int j, bool present) {
    double sum = 0;
    for (int i = lane; present && i < s.rows; i += kLanes) {
      const double x = s.w[j * s.ld + i];
      sum = fma(x, x, sum);
    }
    sum = group_sum<kLanes>(sum);
    if (present && lane == 0) s.sigma()[j] = static_cast<T>(sqrt(sum));
  });
  __syncthreads();
}

template <class T>
SK_DEVICE bool is_noise(T sigma) {
  return !(sigma * sigma > kNoiseSquared<T>);
}

// x -= W (W^T x) for the columns of W of length one or zero.
template <int kLanes, class T>
SK_DEVICE void project_out(const BlockSvd<T>& s) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  for_each_column<kLanes>(s.columns, [&](int j, bool present) {
    T sum = 0;
    for (int i = lane; present && i < s.rows; i += kLanes)
      sum = fma(s.w[j * s.ld + i], s.x()[i], sum);
    sum = group_sum<kLanes>(sum);
    if (present && lane == 0) s.products()[j] = sum;
  });
  __syncthreads();
  for (int i = thread; i < s.rows; i += static_cast<int>(blockDim.x)) {
    T sum = s.x()[i];
    for (int j = 0; j < s.columns; ++j)
      sum = fma(-s.products()[j], s.w[j * s.ld + i], sum);
    s.x()[i] = sum;
  }
  __syncthreads();
}

// Row i's share of the columns there are.
template <class T>
SK_DEVICE void measure_coverage(const BlockSvd<T>& s) {
  for (int i = static_cast<int>(threadIdx.x); i < s.rows; i += static_cast<int>(blockDim.x)) {
    T sum = 0;
    for (int j = 0; j < s.columns; ++j)
      sum = fma(s.w[j * s.ld + i], s.w[j * s.ld + i], sum);
    s.covered()[i] = sum;
  }
  __syncthreads();
}

// A unit vector orthogonal to all columns into column j, from the axis that they cover least: at
// least 1 / rows of its square is left.
template <int kLanes, class T>
SK_DEVICE void complete_column(const BlockSvd<T>& s, int j) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int axis = 0;
  for (int i = 1; i < s.rows; ++i)
    if (s.covered()[i] < s.covered()[axis]) axis = i;
  for (int i = thread; i < s.rows; i += threads)
    s.x()[i] = i == axis ? T(1) : T(0);
  __syncthreads();
  // Twice is enough (Giraud, Langou & Rozloznik 2005).
  project_out<kLanes>(s);
  project_out<kLanes>(s);
  T sum = 0;
  for (int i = thread % kWarp; i < s.rows; i += kWarp)
    sum = fma(s.x()[i], s.x()[i], sum);
  const T length = sqrt(group_sum<kWarp>(sum));
  for (int i = thread; i < s.rows; i += threads) {
    const T x = s.x()[i] / length;
    s.w[j * s.ld + i] = x;
    s.covered()[i] = fma(x, x, s.covered()[i]);
  }
  __syncthreads();
}

// Columns of W of length one.
template <int kLanes, class T>
SK_DEVICE void normalise_and_complete(const BlockSvd<T>& s) {
  bool missing = false;
  for (int j = 0; j < s.columns; ++j)
    missing = missing || is_noise(s.sigma()[j]);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for_each_column<kLanes>(s.columns, [&](int j, bool present) {
    if (!present) return;
    const T factor = is_noise(s.sigma()[j]) ? T(0) : T(1) / s.sigma()[j];
    for (int i = lane; i < s.rows; i += kLanes)
      s.w[j * s.ld + i] *= factor;
  });
  __syncthreads();
  if (!missing) return;
  measure_coverage(s);
  for (int j = 0; j < s.columns; ++j)
    if (is_noise(s.sigma()[j])) complete_column<kLanes>(s, j);
}

// sign[j] = -1 where the entry of largest magnitude of column j of U is negative, else 1.
template <int kLanes, class T>
SK_DEVICE void column_signs(const BlockSvd<T>& s, const T* u, int ld, int rows) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for_each_column<kLanes>(s.columns, [&](int j, bool present) {
    T best = 0;
    for (int i = lane; present && i < rows; i += kLanes) {
      const T x = u[static_cast<int64_t>(j) * ld + i];
      if (fabs(x) > fabs(best)) best = x;
    }
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      const T other = __shfl_xor_sync(kFullWarp, best, distance);
      if (fabs(other) > fabs(best)) best = other;
    }
    if (present && lane == 0) s.sign()[j] = best < T(0) ? T(-1) : T(1);
  });
  __syncthreads();
}

// The place of column j in descending order; equal ones in the order of their columns.
template <class T>
SK_DEVICE int rank_of(const BlockSvd<T>& s, int j) {
  int rank = 0;
  for (int k = 0; k < s.columns; ++k)
    rank += s.sigma()[k] > s.sigma()[j] || (s.sigma()[k] == s.sigma()[j] && k < j);
  return rank;
}

// Row rank_of(j) of `out` is sign[j] times column j of x; a warp for each.
template <class T>
SK_DEVICE void store_columns(const BlockSvd<T>& s, const T* x, int ld, int rows, T* out) {
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kWarp;
  for (int j = thread / kWarp; j < s.columns; j += warps) {
    T* const row = out + static_cast<int64_t>(rank_of(s, j)) * rows;
    for (int i = thread % kWarp; i < rows; i += kWarp)
      row[i] = s.sign()[j] * x[j * ld + i];
  }
}

template <class T>
SK_DEVICE void fill(T* x, int64_t count, T value) {
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x)
    x[k] = value;
}

template <class T>
SK_DEVICE void store_not_a_number(const SvdMatrix<T>& a, const BlockSvd<T>& s) {
  const T nan = not_a_number<T>();
  fill(a.s, s.columns, nan);
  fill(a.of_w, static_cast<int64_t>(s.columns) * s.rows, nan);
  fill(a.of_v, static_cast<int64_t>(s.columns) * s.columns, nan);
}

template <class T>
SK_DEVICE void store_values(const SvdMatrix<T>& a, const BlockSvd<T>& s, int exponent) {
  for (int j = static_cast<int>(threadIdx.x); j < s.columns; j += static_cast<int>(blockDim.x))
    a.s[rank_of(s, j)] = ldexp(s.sigma()[j], exponent);
}

template <int kLanes, class T>
SK_DEVICE void store_vectors(const SvdMatrix<T>& a, const BlockSvd<T>& s) {
  const T* v = s.ld_v != 0 ? s.v() : s.far_v;
  int ld_v = s.ld_v != 0 ? s.ld_v : s.columns;
  if (s.tall)
    column_signs<kLanes>(s, s.w, s.ld, s.rows);
  else
    column_signs<kLanes>(s, v, ld_v, s.columns);
  store_columns(s, s.w, s.ld, s.rows, a.of_w);
  if (s.ld_v == 0) {
    // V lies where its rows are to be put in order: W, which is written, makes room for a copy.
    __syncthreads();
    for (int k = static_cast<int>(threadIdx.x); k < s.columns * s.columns;
         k += static_cast<int>(blockDim.x))
      s.w[k] = v[k];
    v = s.w;
    __syncthreads();
  }
  store_columns(s, v, ld_v, s.columns, a.of_v);
}

}  // namespace spectral
