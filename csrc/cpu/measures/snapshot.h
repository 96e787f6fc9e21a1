// One parameter read once: a contiguous copy in the precision of the solvers, and on the way its
// largest magnitude, Frobenius norm and whether it is finite.
#pragma once

#include "cpu/common/convert.h"
#include "cpu/measures/kernels.h"

namespace spectral {
namespace SK_ISA {

template <class T>
inline void copy_contiguous(const MatrixView& a, T* packed) {
  with_type(a, [&](auto* p) { copy_widened(p, a.m, a.n, a.stride_m, a.stride_n, packed, a.n); });
}

// The second pass over what is in cache already. Squares of float32 cannot overflow a double;
// float64 is scaled by a power of two first.
template <class T>
inline void measure(const T* packed, int64_t count, double* stats) {
  const MatrixView flat = {
      packed, sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32, 1, 1, count, 0, count, 1};
  const double largest = largest_magnitude(flat);
  const double scale = sizeof(T) == 8 && std::isfinite(largest) ? exact_scale(largest) : 1.0;
  Vd sum = {};
  double rest = 0.0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vd x = load_widened(packed + i) * scale;
    sum += x * x;
  }
  for (; i < count; ++i)
    rest += (packed[i] * scale) * (packed[i] * scale);
  const bool finite = std::isfinite(largest);
  stats[0] = largest;
  stats[1] = finite ? std::sqrt(horizontal_sum(sum) + rest) / scale : std::nan("");
  stats[2] = finite ? 1.0 : 0.0;
}

inline void snapshot(const MatrixView& a, void* packed, double* stats) {
  if (a.is_double()) {
    copy_contiguous(a, static_cast<double*>(packed));
    measure(static_cast<const double*>(packed), a.m * a.n, stats);
  } else {
    copy_contiguous(a, static_cast<float*>(packed));
    measure(static_cast<const float*>(packed), a.m * a.n, stats);
  }
}

}  // namespace SK_ISA
}  // namespace spectral
