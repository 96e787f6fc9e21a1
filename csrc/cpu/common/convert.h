// Reads an element of any supported type as float or double.
#pragma once

#include <type_traits>

#include "cpu/common/matrix_view.h"
#include "cpu/common/simd.h"

namespace spectral {
namespace SK_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

inline float to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline double widen(double x) {
  return x;
}
inline double widen(float x) {
  return x;
}
inline double widen(BFloat x) {
  return to_float(static_cast<uint32_t>(x.bits) << 16);
}

inline double widen(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Moving the 15 bits into place leaves an exponent 112 too small: one exact multiplication mends
  // normal and denormal numbers alike.
  if (magnitude < 0x7c00u) {
    const float f = to_float(magnitude << 13) * 0x1p112f;
    return sign ? -f : f;
  }
  return to_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
}

// Calls f(pointer to the first element, typed) for the element type of the view.
template <class F>
inline void with_type(const MatrixView& a, F f) {
  switch (a.dtype) {
    case DType::kFloat16:
      return f(static_cast<const Half*>(a.data));
    case DType::kBFloat16:
      return f(static_cast<const BFloat*>(a.data));
    case DType::kFloat32:
      return f(static_cast<const float*>(a.data));
    case DType::kFloat64:
      return f(static_cast<const double*>(a.data));
  }
}

// dst[i * ld + j] = src[i * stride_i + j * stride_j], widened. Blocks of 16 x 16 keep both sides in
// cache whichever of them runs across the lines.
template <class Src, class Dst>
inline void copy_widened(const Src* src, int64_t rows, int64_t cols, int64_t stride_i,
                         int64_t stride_j, Dst* dst, int64_t ld) {
  if (stride_j == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      const Src* row = src + i * stride_i;
      if constexpr (std::is_same_v<Src, Dst>) {
        std::memcpy(dst + i * ld, row, static_cast<size_t>(cols) * sizeof(Dst));
      } else {
        for (int64_t j = 0; j < cols; ++j)
          dst[i * ld + j] = static_cast<Dst>(widen(row[j]));
      }
    }
    return;
  }
  constexpr int64_t kBlock = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kBlock)
    for (int64_t j0 = 0; j0 < cols; j0 += kBlock) {
      const int64_t i1 = i0 + kBlock < rows ? i0 + kBlock : rows;
      const int64_t j1 = j0 + kBlock < cols ? j0 + kBlock : cols;
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j)
          dst[i * ld + j] = static_cast<Dst>(widen(src[i * stride_i + j * stride_j]));
    }
}

// Largest |x| of a contiguous run; NaN when any entry is NaN or infinite (x - x is NaN for those).
template <class T>
inline double largest_in_run(const T* p, int64_t count) {
  typedef typename Simd<T>::Vec V;
  V largest = {}, poison = {};
  constexpr int64_t kStep = Simd<T>::kLanes;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    const V x = load(p + i), magnitude = x < T(0) ? -x : x;
    poison += x - x;
    largest = magnitude > largest ? magnitude : largest;
  }
  double best = 0.0;
  for (int64_t l = 0; l < kStep; ++l)
    best = largest[l] > best ? largest[l] : best;
  double bad = horizontal_sum(poison);
  for (; i < count; ++i) {
    const double x = std::fabs(static_cast<double>(p[i]));
    bad += x - x;
    best = x > best ? x : best;
  }
  return best + bad;
}

// Largest |a|; NaN when any entry is NaN or infinite.
inline double largest_magnitude(const MatrixView& a) {
  double largest = 0.0, bad = 0.0;
  with_type(a, [&](auto* p) {
    using T = std::remove_const_t<std::remove_reference_t<decltype(*p)>>;
    for (int64_t i = 0; i < a.m; ++i) {
      if constexpr (std::is_floating_point_v<T>) {
        if (a.stride_n == 1) {
          const double x = largest_in_run(p + i * a.stride_m, a.n);
          bad += x - x;
          largest = x > largest ? x : largest;
          continue;
        }
      }
      for (int64_t j = 0; j < a.n; ++j) {
        const double x = std::fabs(widen(p[i * a.stride_m + j * a.stride_n]));
        bad += x - x;
        largest = x > largest ? x : largest;
      }
    }
  });
  return largest + bad;
}

// A power of two 2^k with largest * 2^k in [0.5, 1), 1 for a zero matrix: scaling by it is exact.
// It and its inverse are normal numbers, for which the ends of float64's range are left near
// enough.
inline double exact_scale(double largest) {
  if (largest == 0.0) return 1.0;
  int exponent;
  std::frexp(largest, &exponent);
  constexpr int kFarthest = 1000;
  const int near = exponent < -kFarthest ? -kFarthest : exponent > kFarthest ? kFarthest : exponent;
  return std::ldexp(1.0, -near);
}

// x times a power of two, in two exact steps, because 2^149 is beyond float.
template <class T>
inline void scale_exactly(T* x, int64_t count, double scale) {
  const int exponent = std::ilogb(scale);
  const T factor = static_cast<T>(std::ldexp(1.0, exponent / 2));
  const T rest = static_cast<T>(std::ldexp(1.0, exponent - exponent / 2));
  for (int64_t i = 0; i < count && exponent != 0; ++i)
    x[i] = x[i] * factor * rest;
}

// packed (m x ld, columns from n on zero) = A times a power of two.
template <class T>
inline void copy_scaled(const MatrixView& a, double scale, T* packed, int64_t ld) {
  constexpr int64_t kBlock = 16;
  for (int64_t i0 = 0; i0 < a.m; i0 += kBlock) {
    const int64_t here = a.m - i0 < kBlock ? a.m - i0 : kBlock;
    with_type(a, [&](auto* p) {
      copy_widened(p + i0 * a.stride_m, here, a.n, a.stride_m, a.stride_n, packed + i0 * ld, ld);
    });
    for (int64_t i = i0; i < i0 + here; ++i) {
      scale_exactly(packed + i * ld, a.n, scale);
      for (int64_t j = a.n; j < ld; ++j)
        packed[i * ld + j] = 0;
    }
  }
}

}  // namespace SK_ISA
}  // namespace spectral
