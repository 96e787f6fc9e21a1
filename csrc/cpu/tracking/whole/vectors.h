// The vectors on the long side that a tracked update returns: the columns of W = X V over their
// norms where these are orthonormal as they are, ||C||_F <= kCosinesKept for their cosines C.
//
// The tolerance allows more. A vector V_j of a small value that is off by delta puts delta sigma_1
// into w_j, along the largest u, whatever sigma_j is: after a collapse of the rank the columns of
// tiny values all lie along the few large ones. They are made orthogonal to the larger ones, in
// order, which changes A v_j - sigma_j u_j by no more than the bounds allow, sigma_j times the
// cosines; what has no direction of its own gets one that the others leave free. Then
// ||U^T U - I||_2 is below 0.03. Flops: 4 rows n for a column of the tail and a pass; none
// elsewhere.
#pragma once

#include "cpu/tracking/whole/sweep.h"

namespace spectral {
namespace SK_ISA {

// Where an update ended: the factors W and V of X, in T, and what they are worth.
template <class T>
struct TrackedFactors {
  const T *w, *v;
  int64_t rows, n, ld;
  const double* sigma;
  const T* g;  // W^T W, upper tiles
  Certificate certificate;
};

// What is smaller than rounding has no direction of its own.
template <class T>
inline double noise_of(const TrackedFactors<T>& tracked) {
  return (sizeof(T) == 4 ? 0x1p-22 : kNoise) * tracked.certificate.top;
}

// Whether all columns are, from what the certificate has; least: the smallest norm.
template <class T>
inline bool are_orthonormal(const TrackedFactors<T>& tracked, double least) {
  const Certificate& c = tracked.certificate;
  return c.cosines <= kCosinesKept && least > noise_of(tracked) && least > kLeading * c.top;
}

// How many columns are, of those in order.
template <class T>
inline int64_t count_orthonormal(const TrackedFactors<T>& tracked, const int64_t* order) {
  const double noise = noise_of(tracked);
  double squares = 0.0;
  for (int64_t j = 0; j < tracked.n; ++j) {
    const double own = tracked.sigma[order[j]];
    if (!(own > noise)) return j;
    for (int64_t i = 0; i < j; ++i) {
      const int64_t row = order[i] < order[j] ? order[i] : order[j];
      const int64_t column = order[i] < order[j] ? order[j] : order[i];
      const double product = static_cast<double>(tracked.g[row * tracked.ld + column]);
      const double cosine = product / own / tracked.sigma[order[i]];
      squares += 2.0 * cosine * cosine;
    }
    if (squares > kCosinesKept * kCosinesKept) return j;
  }
  return tracked.n;
}

// Orthonormal columns, in order, in s.w.
template <class T>
inline void settle(const TrackedFactors<T>& tracked, const int64_t* order, GramSvdSpace& s) {
  const int64_t n = tracked.n, good = count_orthonormal(tracked, order);
  const Factors f = {s.w, s.v, tracked.rows, n, leading_dimension(n), s.sigma};
  std::memset(f.w, 0, static_cast<size_t>(round_up(f.rows, kPad) * f.ld) * sizeof(double));
  for (int64_t j = 0; j < n; ++j)
    f.sigma[j] = tracked.sigma[order[j]];
  for (int64_t i = 0; i < f.rows; ++i)
    for (int64_t j = 0; j < good; ++j)
      f.w[i * f.ld + j] = static_cast<double>(tracked.w[i * tracked.ld + order[j]]) / f.sigma[j];
  double* x = s.tail;
  const double noise = noise_of(tracked);
  for (int64_t j = good; j < n; ++j) {
    if (!(f.sigma[j] > noise)) continue;
    for (int64_t i = 0; i < f.rows; ++i)
      x[i] = static_cast<double>(tracked.w[i * tracked.ld + order[j]]) / f.sigma[j];
    if (!orthogonalise(f, x, s.product)) continue;
    for (int64_t i = 0; i < f.rows; ++i)
      f.w[i * f.ld + j] = x[i];
  }
  complete_columns(f, s.scratch);
}

}  // namespace SK_ISA
}  // namespace spectral
