// out[i] = |sum_a U[a, i] Vh[i, a]|: the diagonal of |U^T V| without the matrix (Yunis et al. 2024,
// Eq. 3). 2 * length * count flops, every input read once, sums in float64.
//
// Where clusters are given, cosine[i] = ||U_C^T V_C||_F / sqrt(|C|) for the cluster C of i as well,
// the diagonal entry where i is alone: 2 * length * |C|^2 flops for each. The root is taken here,
// since that of a torch tensor wakes the threads of its vector library.
#pragma once

#include "cpu/common/simd.h"
#include "cpu/measures/kernels.h"

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
inline void strided_dots(const AlignmentJob& p, T* out) {
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

// Sum of the squared inner products of `size` columns of U with as many of V. Tiles of kTile x
// kTile products, so that a load serves kTile of them; columns past the end are the last one, not
// counted.
template <int kTile, class T>
inline double squared_products(const T* u, int64_t u_step, const T* v, int64_t v_step, int64_t size,
                               int64_t length) {
  double total = 0.0;
  for (int64_t i = 0; i < size; i += kTile)
    for (int64_t j = 0; j < size; j += kTile) {
      const T* left[kTile];
      const T* right[kTile];
      for (int a = 0; a < kTile; ++a) {
        left[a] = u + (i + a < size ? i + a : size - 1) * u_step;
        right[a] = v + (j + a < size ? j + a : size - 1) * v_step;
      }
      Vd sum[kTile][kTile] = {};
      int64_t at = 0;
      for (; at + kLanes <= length; at += kLanes)
        for (int a = 0; a < kTile; ++a) {
          const Vd x = load_widened(left[a] + at);
          for (int b = 0; b < kTile; ++b)
            sum[a][b] += x * load_widened(right[b] + at);
        }
      for (int a = 0; a < kTile && i + a < size; ++a)
        for (int b = 0; b < kTile && j + b < size; ++b) {
          double dot = horizontal_sum(sum[a][b]);
          for (int64_t rest = at; rest < length; ++rest)
            dot += static_cast<double>(left[a][rest]) * static_cast<double>(right[b][rest]);
          total += dot * dot;
        }
    }
  return total;
}

template <class T>
inline double strided_squared_products(const AlignmentJob& p, int64_t start, int64_t stop) {
  const T* u = static_cast<const T*>(p.u);
  const T* v = static_cast<const T*>(p.v);
  double total = 0.0;
  for (int64_t i = start; i < stop; ++i)
    for (int64_t j = start; j < stop; ++j) {
      double dot = 0.0;
      for (int64_t a = 0; a < p.length; ++a)
        dot += static_cast<double>(u[a * p.u_stride_row + i * p.u_stride_col]) *
               static_cast<double>(v[j * p.v_stride_row + a * p.v_stride_col]);
      total += dot * dot;
    }
  return total;
}

template <class T>
inline double cluster_cosine(const AlignmentJob& p, int64_t start, int64_t stop) {
  const int64_t size = stop - start;
  if (size == 1) return static_cast<double>(static_cast<const T*>(p.out)[start]);
  double total;
  if (p.u_stride_row != 1 || p.v_stride_col != 1) {
    total = strided_squared_products<T>(p, start, stop);
  } else {
    const T* u = static_cast<const T*>(p.u) + start * p.u_stride_col;
    const T* v = static_cast<const T*>(p.v) + start * p.v_stride_row;
    total = size < 4 ? squared_products<2>(u, p.u_stride_col, v, p.v_stride_row, size, p.length)
                     : squared_products<4>(u, p.u_stride_col, v, p.v_stride_row, size, p.length);
  }
  return std::sqrt(total / static_cast<double>(size));
}

// Reads the diagonal, which is written first.
template <class T>
inline void cluster_cosines(const AlignmentJob& p) {
  T* cosine = static_cast<T*>(p.cosine);
  for (int64_t start = 0, stop; start < p.count; start = stop) {
    stop = start + 1;
    while (stop < p.count && p.first[stop] == p.first[start])
      ++stop;
    const T value = static_cast<T>(cluster_cosine<T>(p, start, stop));
    for (int64_t i = start; i < stop; ++i)
      cosine[i] = value;
  }
}

template <class T>
inline void diagonal_typed(const AlignmentJob& p) {
  T* out = static_cast<T*>(p.out);
  if (p.u_stride_row != 1 || p.v_stride_col != 1) return strided_dots(p, out);
  const T* u = static_cast<const T*>(p.u);
  const T* v = static_cast<const T*>(p.v);
  for (int64_t i = 0; i < p.count; ++i)
    out[i] = static_cast<T>(
        std::fabs(contiguous_dot(u + i * p.u_stride_col, v + i * p.v_stride_row, p.length)));
}

template <class T>
inline void alignment_typed(const AlignmentJob& p) {
  diagonal_typed<T>(p);
  if (p.cosine) cluster_cosines<T>(p);
}

inline void alignment(const AlignmentJob& p) {
  if (p.dtype == DType::kFloat64)
    alignment_typed<double>(p);
  else
    alignment_typed<float>(p);
}

}  // namespace SK_ISA
}  // namespace spectral
