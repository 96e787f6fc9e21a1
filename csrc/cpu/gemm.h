// C[r, j] = sum_l Q[l, r] * P[l, j] in float64: the one matrix product of the exact solvers.
//
// P is the vector operand (rows of length `cols`, contiguous); Q the broadcast operand, of any
// strides, so that one tile serves both the Gram matrix X^T X (Q = P = X) and X V (P = V, Q = X^T).
// A tile is 8 rows (4 without AVX-512) by two vectors, kept in registers over the whole of l.
// Sizes are rounded up to whole tiles: the caller's buffers have the room (leading_dimension),
// zeros in it where they are read. Flops: 2 * rows * cols * depth, or half of it for the lower
// triangle.
#pragma once

#include "cpu/simd.h"

namespace spectral {
namespace SK_ISA {

constexpr int kGemmRows = kLanes == 8 ? 8 : 4;
constexpr int kGemmCols = 2 * kLanes;

struct GemmOperands {
  const double* p;
  int64_t ldp;
  const double* q;
  int64_t q_stride_l, q_stride_r;
  double* c;
  int64_t ldc;
};

inline void gemm_tile(const GemmOperands& g, int64_t r0, int64_t j0, int64_t depth,
                      bool accumulate) {
  Vd acc[kGemmRows][2];
  for (int r = 0; r < kGemmRows; ++r)
    acc[r][0] = acc[r][1] = Vd{};
  const double* p = g.p + j0;
  const double* q = g.q + r0 * g.q_stride_r;
  for (int64_t l = 0; l < depth; ++l) {
    const Vd p0 = load(p), p1 = load(p + kLanes);
    for (int r = 0; r < kGemmRows; ++r) {
      const double x = q[r * g.q_stride_r];
      acc[r][0] += x * p0;
      acc[r][1] += x * p1;
    }
    p += g.ldp;
    q += g.q_stride_l;
  }
  for (int r = 0; r < kGemmRows; ++r) {
    double* c = g.c + (r0 + r) * g.ldc + j0;
    if (accumulate) {
      acc[r][0] += load(c);
      acc[r][1] += load(c + kLanes);
    }
    store(c, acc[r][0]);
    store(c + kLanes, acc[r][1]);
  }
}

// What is wanted of C beside the product: all of it, or only tiles that meet {j >= r}, enough of a
// symmetric result; alone, or added to what C holds.
struct GemmOptions {
  bool upper = false;
  bool accumulate = false;
};

// A multiple of the vector length with room for whole tiles, and never a multiple of 128 bytes:
// rows a power of two apart would share a few lines of the first-level cache.
inline int64_t leading_dimension(int64_t n) {
  return round_up(n, 16) + 8;
}

inline void gemm(const GemmOperands& g, int64_t rows, int64_t cols, int64_t depth,
                 GemmOptions options = {}) {
  // Slices of l that keep the slice of P in the second-level cache.
  constexpr int64_t kDepth = 256;
  for (int64_t l0 = 0; l0 < depth; l0 += kDepth) {
    GemmOperands slice = g;
    slice.p += l0 * g.ldp;
    slice.q += l0 * g.q_stride_l;
    const int64_t d = depth - l0 < kDepth ? depth - l0 : kDepth;
    for (int64_t j0 = 0; j0 < cols; j0 += kGemmCols)
      for (int64_t r0 = 0; r0 < rows; r0 += kGemmRows)
        if (!options.upper || j0 + kGemmCols > r0)
          gemm_tile(slice, r0, j0, d, options.accumulate || l0 > 0);
  }
}

}  // namespace SK_ISA
}  // namespace spectral
