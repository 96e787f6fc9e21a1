// The rotation of the tracker's vectors that makes the columns of W = X V orthogonal again.
//
//     t_ij: Jacobi's tangent for (i, j)    all pairs at once, from S = W^T W
//     R = I + E + E^2 / 2                  E skew from t, rows of E kept below kLargestRow
//     V <- V R                             R^T R = I + E^4 / 4
//     V <- V (I - F / 2), F = V^T V - I    a Newton-Schulz step, when E^4 and rounding have added
//                                          up to more than kDriftKept
//
// Flops for an n x n matrix: a rotation 3 n^3, a Newton-Schulz step 3 n^3.
#pragma once

#include "cpu/tracking/whole/sweep.h"

namespace spectral {
namespace SK_ISA {

constexpr double kLargestRow = 0.6;  // sum over j of |E_ij|: I + E + E^2 / 2 stays near orthogonal

// ||V^T V - I||_2 beyond which V is made orthonormal anew. It stretches sigma by half of it.
template <class T>
constexpr double kDriftKept = sizeof(T) == 4 ? 2e-4 : 1e-9;

struct Generator {
  double frobenius, two_norm;  // of E; the latter a bound
};

// E into s.e (full, skew, padding zero) from S in s.g.
template <class T>
inline Generator rotation_generator(const SweepSpace<T>& s) {
  typedef typename Simd<T>::Vec Vec;
  constexpr int kStep = Simd<T>::kLanes;
  const int64_t n = s.n, ld = s.ld;
  T* squares = s.scratch;  // of the sigmas
  T* sums = s.scratch + ld;
  // Equal values with a cosine of rounding would turn by 45 degrees for nothing.
  const T noise = static_cast<T>(0.25 * gemm_gamma<T>(s.rows));
  std::memset(s.scratch, 0, static_cast<size_t>(2 * ld) * sizeof(T));
  std::memset(s.e, 0, static_cast<size_t>(ld * ld) * sizeof(T));
  for (int64_t j = 0; j < n; ++j)
    squares[j] = s.g[j * ld + j] > T(0) ? s.g[j * ld + j] : T(0);
  for (int64_t i = 0; i < n; ++i) {
    Vec sum = {};
    const T least = noise * noise * squares[i];
    for (int64_t j = (i + 1) / kStep * kStep; j < n; j += kStep) {
      const Vec other = load(squares + j);
      Vec off = select(right_of<T>(i, j), load(s.g + i * ld + j), Vec{});
      off = select(off * off > least * other, off, Vec{});
      const Vec half = T(0.5) * (other - squares[i]);
      // sign(tau) / (|tau| + sqrt(1 + tau^2)) with tau = half / off, free of the division by off.
      const Vec size = absolute(half) + square_root(half * half + off * off);
      const Vec t = select(size > Vec{}, select(half < Vec{}, -off, off) / size, Vec{});
      store(s.e + i * ld + j, t);
      store(sums + j, load(sums + j) + absolute(t));
      sum += absolute(t);
    }
    sums[i] += horizontal_sum(sum);
  }
  Generator generator = {0.0, 0.0};
  T* scale = squares;
  for (int64_t j = 0; j < ld; ++j) {
    generator.two_norm = std::fmax(generator.two_norm, static_cast<double>(sums[j]));
    scale[j] = sums[j] > T(kLargestRow) ? T(kLargestRow) / sums[j] : T(1);
  }
  // A bound after the scaling too, rounded up.
  generator.two_norm = 1.001 * std::fmin(generator.two_norm, kLargestRow);
  Vec total = {};
  for (int64_t i = 0; i < n; ++i) {
    const Vec own = splat(scale[i]);
    for (int64_t j = (i + 1) / kStep * kStep; j < n; j += kStep) {
      const Vec other = load(scale + j);
      const Vec t = load(s.e + i * ld + j) * select(own < other, own, other);
      const Vec upper = select(right_of<T>(i, j), t, load(s.e + i * ld + j));
      store(s.e + i * ld + j, upper);
      total += select(right_of<T>(i, j), t * t, Vec{});
    }
  }
  generator.frobenius = 1.001 * std::sqrt(2.0 * static_cast<double>(horizontal_sum(total)));
  for (int64_t i0 = 0; i0 < n; i0 += 16)
    for (int64_t i = i0; i < n; ++i)
      for (int64_t j = i0; j < i && j < i0 + 16; ++j)
        s.e[i * ld + j] = -s.e[j * ld + i];
  return generator;
}

// V <- V R with R from E in s.e; what that adds to the drift at most.
template <class T>
inline double rotate(const SweepSpace<T>& s, const Generator& generator, double drift) {
  const int64_t n = s.n, ld = s.ld;
  // E^2 is symmetric: half the tiles, then G = E + E^2 / 2 over E.
  gemm({s.e, ld, s.e, 1, ld, s.next, ld}, n, n, n, {true, false});
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j) {
      const T half = T(0.5) * s.next[i * ld + j];
      s.e[i * ld + j] += half;
      if (j > i) s.e[j * ld + i] += half;
    }
  std::memcpy(s.next, s.v, static_cast<size_t>(ld * ld) * sizeof(T));
  gemm({s.e, ld, s.v, 1, ld, s.next, ld}, n, n, n, {false, true});
  std::memcpy(s.v, s.next, static_cast<size_t>(ld * ld) * sizeof(T));
  // R^T R = I + E^4 / 4; then rounding: of G, of the product V G, of every addition to V.
  constexpr double u = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const double side = std::sqrt(static_cast<double>(n)), gamma = gemm_gamma<T>(n);
  const double e = generator.frobenius, g = e + 0.5 * e * e;
  const double additions = 1.0 + static_cast<double>((n + kChunk<T> - 1) / kChunk<T>);
  const double rounding =
      0.5 * gamma * e * e + 2.0 * u * g + gamma * side * g + additions * u * side;
  const double grown = (1.0 + drift) * (1.0 + 0.25 * std::pow(generator.two_norm, 4.0));
  return grown - 1.0 + 2.2 * rounding;
}

// F = V^T V - I in float64 into s.departure (upper tiles), and a bound of its 2-norm.
template <class T>
inline double measure_drift(const SweepSpace<T>& s) {
  const int64_t n = s.n, ld = s.ld64;
  std::memset(s.wide, 0, static_cast<size_t>(ld * ld) * sizeof(double));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      s.wide[i * ld + j] = static_cast<double>(s.v[i * s.ld + j]);
  gemm({s.wide, ld, s.wide, ld, 1, s.departure, ld}, n, n, n, {true, false});
  double diagonal = 0.0;
  // wide has done its work: three rows of it for the sums.
  double* ones = s.wide;
  std::memset(ones, 0, static_cast<size_t>(2 * ld) * sizeof(double));
  for (int64_t j = 0; j < n; ++j) {
    s.departure[j * ld + j] -= 1.0;
    diagonal = std::fmax(diagonal, std::fabs(s.departure[j * ld + j]));
    ones[j] = 1.0;
  }
  const OffDiagonal off = off_diagonal(s.departure, ld, n, ones, ones, s.wide + ld);
  return diagonal + off.two_norm() + gemm_gamma<double>(n) * static_cast<double>(n);
}

// V <- V (I - F / 2) from a measured drift f; what is left of it.
template <class T>
inline double newton_schulz(const SweepSpace<T>& s, double f) {
  const int64_t n = s.n, ld = s.ld;
  std::memset(s.e, 0, static_cast<size_t>(ld * ld) * sizeof(T));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j)
      s.e[i * ld + j] = s.e[j * ld + i] = static_cast<T>(-0.5 * s.departure[i * s.ld64 + j]);
  std::memcpy(s.next, s.v, static_cast<size_t>(ld * ld) * sizeof(T));
  gemm({s.e, ld, s.v, 1, ld, s.next, ld}, n, n, n, {false, true});
  std::memcpy(s.v, s.next, static_cast<size_t>(ld * ld) * sizeof(T));
  // (I - F/2) (I + F) (I - F/2) = I - 3/4 F^2 + 1/4 F^3; then rounding as in `rotate`.
  constexpr double u = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const double side = std::sqrt(static_cast<double>(n));
  const double additions = 1.0 + static_cast<double>((n + kChunk<T> - 1) / kChunk<T>);
  const double rounding = (gemm_gamma<T>(n) + u) * side * side * f + additions * u * side;
  return f * f * (0.75 + 0.25 * f) + 2.2 * rounding;
}

// The rotation from E in s.e, and V made orthonormal again where it is needed.
template <class T>
inline double rotate_basis(const SweepSpace<T>& s, const Generator& generator, double drift) {
  drift = rotate(s, generator, drift);
  // After a large E one step leaves V short of orthonormal; it squares the drift each time.
  for (int step = 0; step < 3 && drift > kDriftKept<T>; ++step)
    drift = newton_schulz(s, measure_drift(s));
  return drift;
}

}  // namespace SK_ISA
}  // namespace spectral
