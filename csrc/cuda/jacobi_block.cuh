// What the block of jacobi_shared.cu has in shared memory, and how X gets there.
#pragma once

#include "cuda/jacobi.cuh"
#include "cuda/svd_jobs.cuh"

namespace spectral {

// Columns are contiguous: element i of column j of W is w[j * ld + i]. V follows, ld_v apart; where
// ld_v is 0 it is in the output, at far_v, n apart. Addresses are computed where they are needed:
// kept, they take the registers of the columns that a thread turns.
template <class T>
struct BlockSvd {
  int rows, columns, ld, ld_v;
  bool tall;
  T *w, *far_v;
  SK_DEVICE T* v() const { return w + columns * ld; }
  SK_DEVICE T* sigma() const { return v() + columns * ld_v; }
  SK_DEVICE T* sign() const { return sigma() + columns; }
  SK_DEVICE T* products() const { return sign() + columns; }
  SK_DEVICE T* x() const { return products() + columns; }
  SK_DEVICE T* covered() const { return x() + rows; }
};

template <class T>
SK_DEVICE BlockSvd<T> carve(const SvdMatrix<T>& a, int64_t ld, int64_t ld_v, T* shared) {
  return {a.rows, a.columns, static_cast<int>(ld), static_cast<int>(ld_v), a.tall, shared, a.of_v};
}

// f(row, column, element) for the entries of X that this thread loads: neighbouring threads take
// entries that are neighbours in memory.
template <class T, class Function>
SK_DEVICE void for_each_entry(const BlockSvd<T>& s, const SvdMatrix<T>& a, Function f) {
  const bool by_rows = a.stride_column <= a.stride_row;
  const int fast = by_rows ? s.columns : s.rows;
  for (int k = static_cast<int>(threadIdx.x); k < s.rows * s.columns;
       k += static_cast<int>(blockDim.x)) {
    const int slow = k / fast, quick = k % fast;
    if (by_rows)
      f(slow, quick, s.w[quick * s.ld + slow]);
    else
      f(quick, slow, s.w[slow * s.ld + quick]);
  }
}

// W = X 2^-e with max|a| in [0.5, 1), V = I; true, in all threads alike, where X is finite.
template <class T>
SK_DEVICE bool load_scaled(const SvdMatrix<T>& a, const BlockSvd<T>& s, int& exponent) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  T largest = 0;
  bool finite = true;
  for_each_entry(s, a, [&](int i, int j, T& entry) {
    entry = a.entry(i, j);
    finite = finite && isfinite(entry);
    largest = fmax(largest, fabs(entry));
  });
  T* const v = s.ld_v != 0 ? s.v() : s.far_v;
  const int ld_v = s.ld_v != 0 ? s.ld_v : s.columns;
  for (int k = thread; k < s.columns * s.columns; k += threads) {
    const int j = k / s.columns, i = k % s.columns;
    v[static_cast<int64_t>(j) * ld_v + i] = i == j ? T(1) : T(0);
  }
  // There is room: a block has no more warps than pairs of columns.
  largest = group_max<kWarp>(largest);
  if (thread % kWarp == 0) s.sigma()[thread / kWarp] = largest;
  if (__syncthreads_or(!finite)) return false;
  for (int k = 0; k < threads / kWarp; ++k)
    largest = fmax(largest, s.sigma()[k]);
  exponent = binary_exponent(largest);
  const PowerOfTwo<T> scale(-exponent);
  // Every thread scales what it loaded itself.
  for_each_entry(s, a, [&](int, int, T& entry) { entry = scale.times(entry); });
  __syncthreads();
  return true;
}

// f(j) for every column j, in turns by groups of kLanes lanes; `present` is false for the lanes
// without a column, which go along for the sake of the shuffles.
template <int kLanes, class Function>
SK_DEVICE void for_each_column(int columns, Function f) {
  const int thread = static_cast<int>(threadIdx.x), groups = static_cast<int>(blockDim.x) / kLanes;
  for (int first = 0; first < columns; first += groups) {
    const int j = first + thread / kLanes;
    f(j, j < columns);
  }
}

}  // namespace spectral
