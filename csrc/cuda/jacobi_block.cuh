// What the block of jacobi_shared.cu has in shared memory, and how X gets there.
#pragma once

#include "cuda/jacobi.cuh"

namespace spectral {

// Columns are contiguous: element i of column j of W is w[j * ld + i]. V follows, ld_v apart; where
// ld_v is 0 it is in the output, at far_v, n apart. Addresses are computed where they are needed:
// kept, they take the registers of the columns that a thread turns.
template <class T>
struct BlockSvd {
  int rows, columns, ld, ld_v;
  bool tall, vectors;
  T *w, *far_v;
  SK_DEVICE T* v() const { return w + columns * ld; }
  SK_DEVICE T* sigma() const { return v() + columns * ld_v; }
  SK_DEVICE T* sign() const { return sigma() + columns; }
  SK_DEVICE T* products() const { return sign() + columns; }
  SK_DEVICE T* x() const { return products() + columns; }
  SK_DEVICE T* covered() const { return x() + rows; }
};

template <class T>
struct Output {
  T *s, *of_w, *of_v;
};

template <class T>
SK_DEVICE Output<T> output_of(const SvdParams& p, const SvdShape& shape, int64_t matrix) {
  T* const of_w = static_cast<T*>(shape.tall ? p.ut : p.vh);
  T* const of_v = static_cast<T*>(shape.tall ? p.vh : p.ut);
  const int64_t first = matrix * shape.columns;
  return {static_cast<T*>(p.s) + first, of_w + first * shape.rows, of_v + first * shape.columns};
}

template <class T>
SK_DEVICE BlockSvd<T> carve(const SvdParams& p, int64_t ld, int64_t ld_v, T* shared) {
  const SvdShape shape = shape_of(p);
  BlockSvd<T> s;
  s.rows = shape.rows;
  s.columns = shape.columns;
  s.tall = shape.tall;
  s.vectors = p.ut != nullptr;
  s.ld = static_cast<int>(ld);
  s.ld_v = static_cast<int>(ld_v);
  s.w = shared;
  s.far_v = s.vectors && s.ld_v == 0 ? output_of<T>(p, shape, blockIdx.x).of_v : nullptr;
  return s;
}

// f(row, column, element) for the entries of X that this thread loads: neighbouring threads take
// entries that are neighbours in memory.
template <class T, class Function>
SK_DEVICE void for_each_entry(const BlockSvd<T>& s, const SvdShape& shape, Function f) {
  const bool by_rows = shape.stride_column <= shape.stride_row;
  const int fast = by_rows ? s.columns : s.rows;
  for (int k = static_cast<int>(threadIdx.x); k < s.rows * s.columns;
       k += static_cast<int>(blockDim.x)) {
    const int a = k / fast, b = k % fast;
    if (by_rows)
      f(a, b, s.w[b * s.ld + a]);
    else
      f(b, a, s.w[a * s.ld + b]);
  }
}

// W = X 2^-e with max|a| in [0.5, 1), V = I; true, in all threads alike, where X is finite.
template <class T>
SK_DEVICE bool load_scaled(const SvdParams& p, const BlockSvd<T>& s, int& exponent) {
  const SvdShape shape = shape_of(p);
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.stride_b;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  T largest = 0;
  bool finite = true;
  for_each_entry(s, shape, [&](int i, int j, T& entry) {
    entry = load_as<T>(p.a, p.code, start + i * shape.stride_row + j * shape.stride_column);
    finite = finite && isfinite(entry);
    largest = fmax(largest, fabs(entry));
  });
  T* const v = s.ld_v != 0 ? s.v() : s.far_v;
  const int ld_v = s.ld_v != 0 ? s.ld_v : s.columns;
  for (int k = thread; s.vectors && k < s.columns * s.columns; k += threads) {
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
  for_each_entry(s, shape, [&](int, int, T& entry) { entry = scale.times(entry); });
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
