// What a product W = X V proves about the singular values of X: the quantities, with the same
// names, of the theorem in spectral_kernels/tracking/bounds.py.
#pragma once

#include "cpu/common/gemm.h"

namespace spectral {
namespace SK_ISA {

constexpr double kLeading = 1e-7;  // columns below this part of sigma_1 count by their norm alone

struct Certificate {
  double cosines;    // bound of ||C||_2 over the leading columns
  double additive;   // the same for ||W_L - Q D||_F, Q the polar factor of W_L D^-1
  double tail;       // Frobenius norm of the other columns
  double product;    // bound of ||W - X V||_F: rounding
  double drift;      // bound of ||V^T V - I||_2
  double top;        // largest column norm; NaN where the matrix is not finite
  double frobenius;  // of all of W
  double narrowing;  // relative rounding of the results

  double stretch() const { return drift < 1.0 ? 1.0 / std::sqrt(1.0 - drift) - 1.0 : HUGE_VAL; }
};

// A bound of |sigma_i - s| for the column norm s.
inline double bound_of(const Certificate& c, double s) {
  double own = c.tail + c.product;
  if (s > kLeading * c.top) {
    // 1 - sqrt(1 - c) is the larger of the two sides of sqrt(1 +- c).
    const double relative = c.cosines < 1.0 ? s * (1.0 - std::sqrt(1.0 - c.cosines)) : HUGE_VAL;
    own += relative < c.additive ? relative : c.additive;
  }
  return own + (s + own) * c.stretch() + c.narrowing * c.top;
}

// A bound of the 2-norm of the vector of all errors.
inline double error_norm(const Certificate& c) {
  const double own = c.additive + 2.0 * c.tail + c.product;
  return own + (c.frobenius + own) * c.stretch() + c.narrowing * c.frobenius;
}

// The largest of all bounds; NaN where one is: what is not known is not within a tolerance.
inline double largest_bound(const Certificate& c, const double* sigma, int64_t n) {
  double largest = 0.0;
  for (int64_t j = 0; j < n; ++j) {
    const double bound = bound_of(c, sigma[j]);
    if (std::isnan(bound)) return bound;
    largest = bound > largest ? bound : largest;
  }
  return largest;
}

// Lanes of columns j, j + 1, ... that lie right of the diagonal in row i.
template <class T>
inline typename Simd<T>::Mask right_of(int64_t i, int64_t j) {
  typename Simd<T>::Mask column;
  for (int lane = 0; lane < Simd<T>::kLanes; ++lane)
    column[lane] = static_cast<int>(j - i) + lane;
  return column > typename Simd<T>::Mask{};
}

// Sums over the entries (i, j > i) of a symmetric matrix, x_ij = g_ij scale_i scale_j:
// sum of x_ij^2, sum of x_ij^2 (weight_i + weight_j), and the largest row sum of |x| of the whole;
// each rounded up by more than float32 can lose in it.
struct OffDiagonal {
  double squares = 0.0, weighted = 0.0, largest_row = 0.0;

  // A bound of the 2-norm of the symmetric matrix with zero diagonal.
  double two_norm() const {
    const double frobenius = std::sqrt(2.0 * squares);
    return frobenius < largest_row ? frobenius : largest_row;
  }
};

// scale and weight: zero from n on; sums: ld entries.
template <class T>
inline OffDiagonal off_diagonal(const T* g, int64_t ld, int64_t n, const T* scale, const T* weight,
                                T* sums) {
  typedef typename Simd<T>::Vec Vec;
  constexpr int kStep = Simd<T>::kLanes;
  constexpr double kUp = sizeof(T) == 4 ? 1.001 : 1.0 + 1e-12;
  double squares = 0.0, weighted = 0.0;
  OffDiagonal total;
  std::memset(sums, 0, static_cast<size_t>(ld) * sizeof(T));
  for (int64_t i = 0; i < n; ++i) {
    Vec row = {}, row_squares = {}, row_weighted = {};
    for (int64_t j = (i + 1) / kStep * kStep; j < n; j += kStep) {
      const Vec x =
          select(right_of<T>(i, j), load(g + i * ld + j) * (scale[i] * load(scale + j)), Vec{});
      const Vec size = absolute(x);
      store(sums + j, load(sums + j) + size);
      row += size;
      row_squares += x * x;
      row_weighted += x * x * (weight[i] + load(weight + j));
    }
    sums[i] += horizontal_sum(row);
    squares += static_cast<double>(horizontal_sum(row_squares));
    weighted += static_cast<double>(horizontal_sum(row_weighted));
    total.largest_row = std::fmax(total.largest_row, kUp * static_cast<double>(sums[i]));
  }
  total.squares = kUp * squares;
  total.weighted = kUp * weighted;
  return total;
}

// From S = W^T W (upper tiles in g): sigma, and everything of the certificate but the drift.
// rows: the length of W's columns. scratch: 3 ld.
template <class T>
inline void measure_cosines(const T* g, int64_t ld, int64_t n, int64_t rows, double* sigma,
                            Certificate* c, T* scratch) {
  T* inverse = scratch;
  T* weight = scratch + ld;
  std::memset(scratch, 0, static_cast<size_t>(2 * ld) * sizeof(T));
  double trace = 0.0, tail = 0.0;
  c->top = 0.0;
  for (int64_t j = 0; j < n; ++j) {
    const double square = static_cast<double>(g[j * ld + j]);
    trace += square;
    sigma[j] = std::sqrt(square > 0.0 ? square : 0.0);
    c->top = std::fmax(c->top, sigma[j]);
  }
  c->frobenius = std::sqrt(trace);
  // NaN anywhere is in the trace.
  if (!std::isfinite(trace)) c->top = std::nan("");
  for (int64_t j = 0; j < n; ++j) {
    const bool leading = sigma[j] > kLeading * c->top;
    inverse[j] = leading ? static_cast<T>(1.0 / sigma[j]) : T(0);
    weight[j] = leading ? static_cast<T>(sigma[j] * sigma[j]) : T(0);
    if (!leading) tail += sigma[j] * sigma[j];
  }
  c->tail = std::sqrt(tail);
  // ||C D||_F^2 = sum over i != j of c_ij^2 sigma_j^2; every cosine is off by gamma at most.
  const OffDiagonal x = off_diagonal(g, ld, n, inverse, weight, scratch + 2 * ld);
  const double gamma = gemm_gamma<T>(rows), side = std::sqrt(static_cast<double>(n));
  c->cosines = x.two_norm() + gamma * static_cast<double>(n);
  c->additive = (std::sqrt(x.weighted) + gamma * side * c->frobenius) /
                (1.0 + std::sqrt(std::fmax(0.0, 1.0 - c->cosines)));
  // |X| |V| has columns of at most ||X||_F |v_j|. The factor is for V, which may have drifted.
  c->product = 1.5 * gemm_gamma<T>(n) * side * c->frobenius;
  // The norms themselves: gamma / 2 each.
  c->narrowing += 0.5 * gamma;
}

}  // namespace SK_ISA
}  // namespace spectral
