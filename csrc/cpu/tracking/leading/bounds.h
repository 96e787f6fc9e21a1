// What one pass of block subspace iteration proves about the leading singular values; the theorem
// and its proof are in spectral_kernels/tracking/leading/bounds.py. A few thousand flops.
#pragma once

#include "cpu/common/simd.h"

namespace spectral {
namespace SK_ISA {

// All relative to ||A||_F but `basis`, with the letters of the theorem.
struct BlockErrors {
  double product;  // beta: U^T A from P S V^T, Frobenius norm
  double image;    // eta: (I - U U^T) A Q from zero and U^T A Q from M
  double basis;    // ||Q^T Q - I||_F
};

// The block of one matrix, values descending: s (l) singular values of U^T A, g (l) the lengths
// ||M^T p_i||, and what is left outside of the block.
struct BlockMeasures {
  int64_t l, k;
  const double *s, *g;
  double frobenius, rest;  // ||A||_F and rho >= ||(I - U U^T) A||_F
};

// The larger singular value of [s 0; r t].
inline double coupled(double s, double r, double t) {
  return 0.5 * (std::sqrt((s + t) * (s + t) + r * r) + std::sqrt((s - t) * (s - t) + r * r));
}

// residual (l): bounds of ||(I - U U^T) A v_i||; returns the most that the last half step can have
// added to one of the k values, s_i (1 - cos) for the angle between v_i and the block before.
inline double measure_residuals(const BlockMeasures& b, const BlockErrors& e, double* residual) {
  const double noise = (e.product + e.image) * b.frobenius;
  double gain = 0.0;
  for (int64_t i = 0; i < b.l; ++i) {
    const double seen = b.s[i] > 0 ? std::fmax(0.0, b.g[i] - noise) / b.s[i] : 0.0;
    const double sine_squared = std::fmax(0.0, 1.0 - seen * seen / (1.0 + e.basis));
    const double moved = b.rest * std::sqrt(sine_squared) + 2.0 * e.image * b.frobenius;
    residual[i] = e.basis < 0.75 && moved < b.rest ? moved : b.rest;
    const double cosine = b.s[i] > 0 ? std::fmin(1.0, b.g[i] / b.s[i]) : 1.0;
    if (i < b.k) gain = std::fmax(gain, b.s[i] * (1.0 - cosine));
  }
  return gain;
}

// bound (k): of |s_i - sigma_i|, from residual (l). suffix: l + 1 doubles.
inline void bound_values(const BlockMeasures& b, const BlockErrors& e, const double* residual,
                         double* suffix, double* bound) {
  suffix[b.l] = 0.0;
  for (int64_t i = b.l - 1; i >= 0; --i)
    suffix[i] = suffix[i + 1] + residual[i] * residual[i];
  for (int64_t i = 0; i < b.k; ++i) {
    double high = coupled(b.s[i], std::fmin(std::sqrt(suffix[i]), b.rest), b.rest);
    high = std::fmin(high, std::sqrt(b.s[i] * b.s[i] + b.rest * b.rest));
    // No other cut helps where what is outside of the block may be the larger one.
    for (int64_t j = i; j + 1 < b.l && b.rest < b.s[i]; ++j) {
      const double after = std::fmin(std::sqrt(suffix[j + 1]), b.rest);
      const double own = std::sqrt(std::fmax(0.0, suffix[i] - suffix[j + 1]));
      const double below = coupled(b.s[j + 1], after, b.rest);
      high = std::fmin(high, coupled(b.s[i], std::fmin(own, b.rest), below));
    }
    bound[i] = high - b.s[i] + e.product * b.frobenius;
  }
}

// The largest of those bounds above the tolerance that an iteration more could bring below it:
// `least` (k) are the bounds of a block that has settled, where only rounding is left of the angle.
inline double curable(const BlockMeasures& b, const double* bound, const double* least,
                      double tolerance) {
  double largest = 0.0;
  for (int64_t i = 0; i < b.k; ++i)
    if (least[i] <= tolerance) largest = std::fmax(largest, bound[i]);
  return largest > tolerance ? largest : 0.0;
}

}  // namespace SK_ISA
}  // namespace spectral
