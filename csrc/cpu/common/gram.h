// Gram matrix G = X^T X of the short side in float64, of a matrix of any type.
//
// For float16, bfloat16 and float32 its rounding, 1e-16 of sigma_1^2, is at most 1e-8 of sigma_1 in
// a singular value, below float32's own. X is widened kSlice rows at a time, which stay in the
// second-level cache while their product is added. Flops: rows * n^2, for one triangle.
#pragma once

#include "cpu/common/convert.h"
#include "cpu/common/gemm.h"

namespace spectral {
namespace SK_ISA {

constexpr double kEps = 2.220446049250313e-16;
constexpr int64_t kSlice = 128;  // rows of X widened at a time
constexpr int64_t kPad = 16;     // rows of every float64 buffer are a multiple of this

// Widens rows [first, first + kSlice) of X into x (ld columns, padding zero); returns their number.
inline int64_t widen_slice(const MatrixView& a, int64_t first, double* x, int64_t ld) {
  const int64_t cols = a.short_side();
  const int64_t rows = a.long_side() - first < kSlice ? a.long_side() - first : kSlice;
  with_type(a, [&](auto* p) {
    copy_widened(p + first * a.stride_long(), rows, cols, a.stride_long(), a.stride_short(), x, ld);
  });
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = cols; j < ld; ++j)
      x[i * ld + j] = 0.0;
  return rows;
}

// X without its first columns.
inline MatrixView columns_from(const MatrixView& a, int64_t first) {
  MatrixView tail = a;
  tail.data = static_cast<const char*>(a.data) + first * a.stride_short() * size_of(a.dtype);
  (a.m >= a.n ? tail.n : tail.m) -= first;
  return tail;
}

// Columns [first, last) of G = X^T X, tiles on and below the diagonal, whatever the other columns
// are done by; first starts a tile (kGramPart). slice holds kSlice * ld doubles.
inline void gram_columns(const MatrixView& a, int64_t first, int64_t last, double* g, int64_t ld,
                         double* slice) {
  const MatrixView tail = columns_from(a, first);
  for (int64_t row = 0; row < a.long_side(); row += kSlice) {
    const int64_t rows = widen_slice(tail, row, slice, ld);
    gemm({slice, ld, slice, ld, 1, g + first * (ld + 1), ld}, last - first, tail.short_side(), rows,
         {true, row > 0});
  }
}

inline void gram(const MatrixView& a, double* g, int64_t ld, double* slice) {
  gram_columns(a, 0, a.short_side(), g, ld, slice);
}

}  // namespace SK_ISA
}  // namespace spectral
