// C[r, j] = sum_l Q[l, r] * P[l, j]: the one matrix product of the exact solvers and the tracker.
//
// P is the vector operand (rows of length `cols`, contiguous); Q the broadcast operand, of any
// strides, so that one tile serves both the Gram matrix X^T X (Q = P = X) and X V (P = V, Q = X^T).
// A tile is 8 rows (4 without AVX-512) by two vectors, kept in registers over a chunk of l.
// Sizes are rounded up to whole tiles: the caller's buffers have the room (leading_dimension),
// zeros in it where they are read. Flops: 2 * rows * cols * depth, or half of it for the lower
// triangle.
#pragma once

#include "cpu/common/simd.h"

namespace spectral {
namespace SK_ISA {

constexpr int kGemmRows = kLanes == 8 ? 8 : 4;

// How many products are added up before they join the sum of those before: the rounding error of
// an entry is then at most gemm_gamma(depth) sum |q p| and no longer grows with the depth, for
// float32 (Higham 2002, Section 4.2, blocked summation). In float64 nobody needs that, and a chunk
// is what keeps its slice of P in the second-level cache.
template <class T>
constexpr int64_t kChunk = sizeof(T) == 4 ? 32 : 256;

template <class T>
struct GemmOperands {
  const T* p;
  int64_t ldp;
  const T* q;
  int64_t q_stride_l, q_stride_r;
  T* c;
  int64_t ldc;
};

// What is wanted of C beside the product: all of it, or only tiles that meet {j >= r}, enough of a
// symmetric result; alone, or added to what C holds.
struct GemmOptions {
  bool upper = false;
  bool accumulate = false;
};

// A multiple of the vector length with room for whole tiles, and never a multiple of 128 bytes:
// rows a power of two apart would share a few lines of the first-level cache.
template <class T = double>
inline int64_t leading_dimension(int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return round_up(n, 2 * kLine) + kLine;
}

// With u the unit roundoff, the k of gamma_k = k u / (1 - k u): a chunk, then the sum of chunks.
template <class T>
inline double gemm_gamma(int64_t depth) {
  constexpr double u = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const int64_t within = depth < kChunk<T> ? depth : kChunk<T>;
  // One more for the rounding of the product itself, where the machine has no fused multiply-add.
  const double k = static_cast<double>(1 + within + (depth + kChunk<T> - 1) / kChunk<T>) * u;
  return k / (1.0 - k);
}

template <class T>
inline void gemm_tile(const GemmOperands<T>& g, int64_t r0, int64_t j0, int64_t depth,
                      bool accumulate) {
  typedef typename Simd<T>::Vec Vec;
  constexpr int kStep = Simd<T>::kLanes;
  Vec acc[kGemmRows][2];
  for (int r = 0; r < kGemmRows; ++r)
    acc[r][0] = acc[r][1] = Vec{};
  const T* p = g.p + j0;
  const T* q = g.q + r0 * g.q_stride_r;
  for (int64_t l = 0; l < depth; ++l) {
    const Vec p0 = load(p), p1 = load(p + kStep);
    for (int r = 0; r < kGemmRows; ++r) {
      const T x = q[r * g.q_stride_r];
      acc[r][0] += x * p0;
      acc[r][1] += x * p1;
    }
    p += g.ldp;
    q += g.q_stride_l;
  }
  for (int r = 0; r < kGemmRows; ++r) {
    T* c = g.c + (r0 + r) * g.ldc + j0;
    if (accumulate) {
      acc[r][0] += load(c);
      acc[r][1] += load(c + kStep);
    }
    store(c, acc[r][0]);
    store(c + kStep, acc[r][1]);
  }
}

template <class T>
inline void gemm_typed(const GemmOperands<T>& g, int64_t rows, int64_t cols, int64_t depth,
                       GemmOptions options) {
  constexpr int kCols = 2 * Simd<T>::kLanes;
  // Chunks of the second-level cache, and those that are summed on their own within them.
  constexpr int64_t kSliceDepth = 256;
  for (int64_t s0 = 0; s0 < depth; s0 += kSliceDepth) {
    const int64_t s1 = depth < s0 + kSliceDepth ? depth : s0 + kSliceDepth;
    for (int64_t j0 = 0; j0 < cols; j0 += kCols)
      for (int64_t r0 = 0; r0 < rows; r0 += kGemmRows) {
        if (options.upper && j0 + kCols <= r0) continue;
        for (int64_t l0 = s0; l0 < s1; l0 += kChunk<T>) {
          GemmOperands<T> chunk = g;
          chunk.p += l0 * g.ldp;
          chunk.q += l0 * g.q_stride_l;
          const int64_t d = s1 - l0 < kChunk<T> ? s1 - l0 : kChunk<T>;
          gemm_tile(chunk, r0, j0, d, options.accumulate || l0 > 0);
        }
      }
  }
}

inline void gemm(const GemmOperands<double>& g, int64_t rows, int64_t cols, int64_t depth,
                 GemmOptions options = {}) {
  gemm_typed(g, rows, cols, depth, options);
}

inline void gemm(const GemmOperands<float>& g, int64_t rows, int64_t cols, int64_t depth,
                 GemmOptions options = {}) {
  gemm_typed(g, rows, cols, depth, options);
}

}  // namespace SK_ISA
}  // namespace spectral
