// out[i] = |sum_a U[a, i] Vh[i, a]|: the diagonal of |U^T V| without the matrix (Yunis et al. 2024,
// Eq. 3). 2 * length * count flops, every input read once, sums in float64.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace spectral {
namespace SK_ISA {

template <class T>
inline double contiguous_dot(const T* x, const T* y, int64_t length) {
  Vd even = {}, odd = {};
  int64_t a = 0;
  for (; a + 2 * kLanes <= length; a += 2 * kLanes) {
    even += load_widened(x + a) * load_widened(y + a);
    odd += load_widened(x + a + kLanes) * load_widened(y + a + kLanes);
  }
  double sum = horizontal_sum(even + odd);
  for (; a < length; ++a)
    sum += static_cast<double>(x[a]) * static_cast<double>(y[a]);
  return sum;
}

// Vectors that are not contiguous: a few of them side by side, so that rows of U are read as lines.
template <class T>
inline void strided_dots(const AlignmentPair& p, T* out) {
  constexpr int64_t kBlock = 16;
  const T* u = static_cast<const T*>(p.u);
  const T* v = static_cast<const T*>(p.v);
  for (int64_t i0 = 0; i0 < p.count; i0 += kBlock) {
    const int64_t here = p.count - i0 < kBlock ? p.count - i0 : kBlock;
    double sum[kBlock] = {};
    for (int64_t a = 0; a < p.length; ++a)
      for (int64_t i = 0; i < here; ++i)
        sum[i] += static_cast<double>(u[a * p.u_stride_row + (i0 + i) * p.u_stride_col]) *
                  static_cast<double>(v[(i0 + i) * p.v_stride_row + a * p.v_stride_col]);
    for (int64_t i = 0; i < here; ++i)
      out[i0 + i] = static_cast<T>(std::fabs(sum[i]));
  }
}

template <class T>
inline void alignment_typed(const AlignmentPair& p) {
  T* out = static_cast<T*>(p.out);
  if (p.u_stride_row != 1 || p.v_stride_col != 1) return strided_dots(p, out);
  const T* u = static_cast<const T*>(p.u);
  const T* v = static_cast<const T*>(p.v);
  for (int64_t i = 0; i < p.count; ++i)
    out[i] = static_cast<T>(
        std::fabs(contiguous_dot(u + i * p.u_stride_col, v + i * p.v_stride_row, p.length)));
}

inline void alignment(const AlignmentPair& p) {
  if (p.dtype == DType::kFloat64)
    alignment_typed<double>(p);
  else
    alignment_typed<float>(p);
}

}  // namespace SK_ISA
}  // namespace spectral
