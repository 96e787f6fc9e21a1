// Which vector is which: numbers that the tracker's vectors keep, and the directions they point in.
#pragma once

#include "cpu/tracking/kernels.h"
#include "cpu/vectors/gram_svd.h"

namespace spectral {
namespace SK_ISA {

inline double old_entry(const TrackJob& job, int64_t k) {
  return job.single ? static_cast<double>(static_cast<const float*>(job.v)[k])
                    : static_cast<const double*>(job.v)[k];
}

// Turns every new vector towards the old one it resembles most, and gives it that one's name where
// more than half of it lies along it; no second one can then claim it.
inline void follow(const TrackJob& job, GramSvdSpace& s, const Factors& f) {
  const int64_t n = f.n, ld = f.ld;
  double* old = s.q;
  std::memset(old, 0, static_cast<size_t>(ld * ld) * sizeof(double));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      old[i * ld + j] = old_entry(job, i * n + j);
  // product[r, j] = old_r . new_j
  gemm({f.v, ld, old, ld, 1, s.product, ld}, n, n, n);
  int64_t* names = reinterpret_cast<int64_t*>(s.scratch);
  for (int64_t j = 0; j < n; ++j) {
    int64_t best = 0;
    for (int64_t r = 1; r < n; ++r)
      if (std::fabs(s.product[r * ld + j]) > std::fabs(s.product[best * ld + j])) best = r;
    const double cosine = s.product[best * ld + j];
    names[j] = cosine * cosine > 0.5 ? job.names[best] : job.names[n]++;
    if (cosine < 0)
      for (int64_t i = 0; i < n; ++i)
        f.v[i * ld + j] = -f.v[i * ld + j];
  }
  std::memcpy(job.names, names, static_cast<size_t>(n) * sizeof(int64_t));
}

// The rule of svd for signs: the largest entry of every u is positive. Names in order of sigma.
inline void start(const MatrixView& a, const TrackJob& job, GramSvdSpace& s, const Factors& f) {
  double* sign = s.scratch;
  column_signs(a.m >= a.n ? f.w : f.v, a.m >= a.n ? f.rows : f.n, f.ld, sign + f.ld, sign);
  for (int64_t i = 0; i < f.n; ++i)
    for (int64_t j = 0; j < f.n; ++j)
      f.v[i * f.ld + j] *= sign[j];
  int64_t* order = reinterpret_cast<int64_t*>(s.scratch);
  descending_order(f.sigma, f.n, order);
  for (int64_t i = 0; i <= f.n; ++i)
    job.names[i < f.n ? order[i] : i] = i;
}

}  // namespace SK_ISA
}  // namespace spectral
