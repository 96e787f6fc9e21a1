// Products of a matrix with a few long vectors, stored as the rows of a count x length array
// (leading dimension a multiple of the vector length, padding zero).
//
// project:    out[c, i] = a_i . b_c            (A Q for a basis stored by rows)
// accumulate: out[c, :] = sum_i x[c, i] a_i    (Q^T A)
// Both keep a tile of sums in registers and read A once per six vectors of the basis.
#pragma once

#include "cpu/common/simd.h"

namespace spectral {
namespace SK_ISA {

constexpr bool kWide = kLanes == 8;
constexpr int kTileRows = kWide ? 4 : 2;
constexpr int kTileVectors = kWide ? 6 : 4;

template <class T>
constexpr int lanes_of() {
  return Simd<T>::kLanes;
}

template <class T, int kRows, int kCount>
inline void project_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t length, T* out,
                         int64_t ldo) {
  typename Simd<T>::Vec sum[kRows][kCount] = {};
  for (int64_t j = 0; j < length; j += lanes_of<T>()) {
    typename Simd<T>::Vec x[kRows];
    for (int r = 0; r < kRows; ++r)
      x[r] = load(a + r * lda + j);
    for (int c = 0; c < kCount; ++c) {
      const auto y = load(b + c * ldb + j);
      for (int r = 0; r < kRows; ++r)
        sum[r][c] += x[r] * y;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kCount; ++c)
      out[c * ldo + r] = horizontal_sum(sum[r][c]);
}

template <class T, int kCount>
inline void project_strip(const T* a, int64_t lda, int64_t rows, const T* b, int64_t ldb,
                          int64_t length, T* out, int64_t ldo) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows)
    project_tile<T, kTileRows, kCount>(a + i * lda, lda, b, ldb, length, out + i, ldo);
  for (; i < rows; ++i)
    project_tile<T, 1, kCount>(a + i * lda, lda, b, ldb, length, out + i, ldo);
}

// length: a multiple of the vector length.
template <class T>
inline void project(const T* a, int64_t lda, int64_t rows, const T* b, int64_t ldb, int64_t count,
                    int64_t length, T* out, int64_t ldo) {
  constexpr int64_t kBlock = 16;  // rows of A that stay in cache for all of b
  for (int64_t i = 0; i < rows; i += kBlock) {
    const int64_t here = rows - i < kBlock ? rows - i : kBlock;
    int64_t c = 0;
    for (; c + kTileVectors <= count; c += kTileVectors)
      project_strip<T, kTileVectors>(a + i * lda, lda, here, b + c * ldb, ldb, length,
                                     out + c * ldo + i, ldo);
    for (; c < count; ++c)
      project_strip<T, 1>(a + i * lda, lda, here, b + c * ldb, ldb, length, out + c * ldo + i, ldo);
  }
}

// The x[c, i] of accumulate, of any strides.
template <class T>
struct Coefficients {
  const T* x;
  int64_t stride_c, stride_i;
  Coefficients from(int64_t c, int64_t i) const {
    return {x + c * stride_c + i * stride_i, stride_c, stride_i};
  }
};

template <class T, int kCount, int kStrip>
inline void accumulate_tile(const Coefficients<T>& x, const T* a, int64_t lda, int64_t depth,
                            T* out, int64_t ldo, bool add) {
  typename Simd<T>::Vec sum[kCount][kStrip] = {};
  for (int64_t i = 0; i < depth; ++i) {
    typename Simd<T>::Vec row[kStrip];
    for (int v = 0; v < kStrip; ++v)
      row[v] = load(a + i * lda + v * lanes_of<T>());
    for (int c = 0; c < kCount; ++c)
      for (int v = 0; v < kStrip; ++v)
        sum[c][v] += x.x[c * x.stride_c + i * x.stride_i] * row[v];
  }
  // Added at the end, not carried through: rounding grows with depth + blocks, not with their
  // product.
  for (int c = 0; c < kCount; ++c)
    for (int v = 0; v < kStrip; ++v) {
      T* p = out + c * ldo + v * lanes_of<T>();
      store(p, add ? load(p) + sum[c][v] : sum[c][v]);
    }
}

// The columns [j, length) in tiles of kStrip vectors; the next j.
template <class T, int kCount, int kStrip>
inline int64_t accumulate_tiles(const Coefficients<T>& x, const T* a, int64_t lda, int64_t depth,
                                int64_t j, int64_t length, T* out, int64_t ldo, bool add) {
  for (; j + kStrip * lanes_of<T>() <= length; j += kStrip * lanes_of<T>())
    accumulate_tile<T, kCount, kStrip>(x, a + j, lda, depth, out + j, ldo, add);
  return j;
}

template <class T, int kCount>
inline void accumulate_strip(const Coefficients<T>& x, const T* a, int64_t lda, int64_t depth,
                             int64_t length, T* out, int64_t ldo, bool add) {
  int64_t j = 0;
  if constexpr (kWide) {
    j = accumulate_tiles<T, kCount, 4>(x, a, lda, depth, j, length, out, ldo, add);
    j = accumulate_tiles<T, kCount, 3>(x, a, lda, depth, j, length, out, ldo, add);
  }
  j = accumulate_tiles<T, kCount, 2>(x, a, lda, depth, j, length, out, ldo, add);
  accumulate_tiles<T, kCount, 1>(x, a, lda, depth, j, length, out, ldo, add);
}

constexpr int64_t kAccumulateBlock = 64;  // rows of A that stay in cache for all of x

// length: a multiple of the vector length.
template <class T>
inline void accumulate(const Coefficients<T>& x, int64_t count, const T* a, int64_t lda,
                       int64_t depth, int64_t length, T* out, int64_t ldo) {
  constexpr int kCount = kWide ? 6 : 4;
  for (int64_t i = 0; i < depth; i += kAccumulateBlock) {
    const int64_t here = depth - i < kAccumulateBlock ? depth - i : kAccumulateBlock;
    int64_t c = 0;
    for (; c + kCount <= count; c += kCount)
      accumulate_strip<T, kCount>(x.from(c, i), a + i * lda, lda, here, length, out + c * ldo, ldo,
                                  i > 0);
    for (; c < count; ++c)
      accumulate_strip<T, 1>(x.from(c, i), a + i * lda, lda, here, length, out + c * ldo, ldo,
                             i > 0);
  }
}

}  // namespace SK_ISA
}  // namespace spectral
