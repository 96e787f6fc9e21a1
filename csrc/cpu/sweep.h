// The sweep of the tracker, in float32 or float64: X (long side first) times the right vectors V of
// the last update, and the rotation of V that makes the columns of X V orthogonal again.
//
//     W = X V, S = W^T W                   sigma_j = |w_j|, u_j = w_j / sigma_j
//     t_ij: Jacobi's tangent for (i, j)    all pairs at once, from S
//     R = I + E + E^2 / 2                  E skew from t, rows of E kept below kLargestRow
//     V <- V R                             R^T R = I + E^4 / 4
//     V <- V (I - F / 2), F = V^T V - I    a Newton-Schulz step, when E^4 and rounding have added
//                                          up to more than kDriftKept
//
// Flops for an n x n matrix: W 2 n^3, S n^3, a rotation 3 n^3 and a Newton-Schulz step 3 n^3.
#pragma once

#include "cpu/certificate.h"
#include "cpu/convert.h"
#include "cpu/reduce.h"

namespace spectral {
namespace SK_ISA {

constexpr double kLargestRow = 0.6;  // sum over j of |E_ij|: I + E + E^2 / 2 stays near orthogonal

// ||V^T V - I||_2 beyond which V is made orthonormal anew. It stretches sigma by half of it.
template <class T>
constexpr double kDriftKept = sizeof(T) == 4 ? 2e-4 : 1e-9;

// X as the broadcast operand of a product: whole tiles of rows in place where that is possible, and
// a copy of the others.
template <class T>
struct LongSide {
  const T* rows;
  int64_t stride_row, stride_col;
  int64_t in_place;  // a multiple of kGemmRows; from there on `rest` has the rows, ld n
  const T* rest;
  int64_t count;
};

// Buffers of ld x ld (g: S; e: E and R; next, v) and of rows x ld (w), all padded with zeros.
template <class T>
struct SweepSpace {
  T *g, *e, *next, *v, *w, *x, *scratch;
  double *wide, *departure, *sigma;  // ld64 x ld64, ld64 x ld64, ld
  int64_t rows, n, ld, ld64;
};

template <class T>
inline int64_t sweep_workspace(const MatrixView& a) {
  const int64_t n = a.short_side(), ld = leading_dimension<T>(n), ld64 = leading_dimension(n);
  const int64_t rows = round_up(a.long_side(), kPad);
  const int64_t own = 4 * ld * ld + rows * ld + rows * n + 4 * ld;
  return (own * static_cast<int64_t>(sizeof(T)) + 7) / 8 + 64 + 2 * ld64 * ld64 + ld;
}

template <class T>
inline SweepSpace<T> carve_sweep(const MatrixView& a, double* work) {
  SweepSpace<T> s;
  s.n = a.short_side();
  s.ld = leading_dimension<T>(s.n);
  s.ld64 = leading_dimension(s.n);
  s.rows = a.long_side();
  s.wide = work;
  s.departure = s.wide + s.ld64 * s.ld64;
  s.sigma = s.departure + s.ld64 * s.ld64;
  const int64_t rows = round_up(s.rows, kPad);
  T* next = reinterpret_cast<T*>(s.sigma + round_up(s.ld, 8));
  auto take = [&next](int64_t count) {
    T* p = next;
    next += count;
    return p;
  };
  s.g = take(s.ld * s.ld);
  s.e = take(s.ld * s.ld);
  s.next = take(s.ld * s.ld);
  s.v = take(s.ld * s.ld);
  s.w = take(rows * s.ld);
  s.x = take(rows * s.n);
  s.scratch = take(4 * s.ld);
  return s;
}

// Rows [first, end) of X times `scale`, a power of two, into x (n columns); zeros up to kPad.
template <class T>
inline void copy_rows(const MatrixView& a, int64_t first, double scale, T* x) {
  const int64_t n = a.short_side(), count = a.long_side() - first;
  with_type(a, [&](auto* p) {
    copy_widened(p + first * a.stride_long(), count, n, a.stride_long(), a.stride_short(), x, n);
  });
  // In two exact steps, because 2^149 is beyond float.
  const int exponent = std::ilogb(scale);
  const T factor = static_cast<T>(std::ldexp(1.0, exponent / 2));
  const T other = static_cast<T>(std::ldexp(1.0, exponent - exponent / 2));
  if (exponent != 0)
    for (int64_t i = 0; i < count * n; ++i)
      x[i] = x[i] * factor * other;
  const int64_t padded = round_up(count, kGemmRows);
  std::memset(x + count * n, 0, static_cast<size_t>((padded - count) * n) * sizeof(T));
}

// The power of two that brings entries of this size near one: their squares then neither overflow
// nor underflow in T. One where they are near enough as they are.
template <class T>
inline double product_scale(double largest) {
  constexpr double kFar = sizeof(T) == 4 ? 0x1p20 : 0x1p200;
  return largest < kFar && largest * kFar > 1.0 ? 1.0 : exact_scale(largest);
}

template <class T>
inline LongSide<T> long_side(const MatrixView& a, double scale, T* copy) {
  LongSide<T> x = {nullptr, a.stride_long(), a.stride_short(), 0, copy, a.long_side()};
  if (static_cast<size_t>(size_of(a.dtype)) == sizeof(T) && scale == 1.0) {
    x.rows = static_cast<const T*>(a.data);
    x.in_place = a.long_side() / kGemmRows * kGemmRows;
  }
  if (x.in_place < x.count) copy_rows(a, x.in_place, scale, copy);
  return x;
}

// W = X V.
template <class T>
inline void multiply(const LongSide<T>& x, const SweepSpace<T>& s) {
  gemm({s.v, s.ld, x.rows, x.stride_col, x.stride_row, s.w, s.ld}, x.in_place, s.n, s.n);
  gemm({s.v, s.ld, x.rest, 1, s.n, s.w + x.in_place * s.ld, s.ld}, x.count - x.in_place, s.n, s.n);
}

// W, S, sigma and the certificate that they make.
template <class T>
inline Certificate certify(const LongSide<T>& x, const SweepSpace<T>& s, double drift,
                           double narrowing) {
  Certificate c = {};
  c.drift = drift;
  c.narrowing = narrowing;
  multiply(x, s);
  gemm({s.w, s.ld, s.w, s.ld, 1, s.g, s.ld}, s.n, s.n, s.rows, {true, false});
  measure_cosines(s.g, s.ld, s.n, s.rows, s.sigma, &c, s.scratch);
  return c;
}

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
  Generator found = {0.0, 0.0};
  T* scale = squares;
  for (int64_t j = 0; j < ld; ++j) {
    found.two_norm = std::fmax(found.two_norm, static_cast<double>(sums[j]));
    scale[j] = sums[j] > T(kLargestRow) ? T(kLargestRow) / sums[j] : T(1);
  }
  // A bound after the scaling too, rounded up.
  found.two_norm = 1.001 * std::fmin(found.two_norm, kLargestRow);
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
  found.frobenius = 1.001 * std::sqrt(2.0 * static_cast<double>(horizontal_sum(total)));
  for (int64_t i0 = 0; i0 < n; i0 += 16)
    for (int64_t i = i0; i < n; ++i)
      for (int64_t j = i0; j < i && j < i0 + 16; ++j)
        s.e[i * ld + j] = -s.e[j * ld + i];
  return found;
}

// V <- V R with R from E in s.e; what that adds to the drift at most.
template <class T>
inline double rotate(const SweepSpace<T>& s, const Generator& found, double drift) {
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
  const double e = found.frobenius, g = e + 0.5 * e * e;
  const double additions = 1.0 + static_cast<double>((n + kChunk<T> - 1) / kChunk<T>);
  const double rounding = 0.5 * gamma * e * e + 2.0 * u * g + gamma * side * g + additions * u * side;
  const double grown = (1.0 + drift) * (1.0 + 0.25 * std::pow(found.two_norm, 4.0));
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
inline double rotate_basis(const SweepSpace<T>& s, const Generator& found, double drift) {
  drift = rotate(s, found, drift);
  // After a large E one step leaves V short of orthonormal; it squares the drift each time.
  for (int step = 0; step < 3 && drift > kDriftKept<T>; ++step)
    drift = newton_schulz(s, measure_drift(s));
  return drift;
}

}  // namespace SK_ISA
}  // namespace spectral
