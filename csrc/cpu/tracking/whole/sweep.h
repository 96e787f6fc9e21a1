// What every update of the tracker begins with, in float32 or float64: X (long side first) times
// the right vectors V of the last one, W = X V, and S = W^T W with what it proves.
//
// sigma_j = |w_j| and u_j = w_j / sigma_j. Flops for an n x n matrix: W 2 n^3, S n^3.
#pragma once

#include "cpu/common/gram.h"
#include "cpu/tracking/whole/certificate.h"

namespace spectral {
namespace SK_ISA {

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
inline SweepSpace<T> carve_sweep(const MatrixView& a, Arena& arena) {
  SweepSpace<T> s;
  s.n = a.short_side();
  s.ld = leading_dimension<T>(s.n);
  s.ld64 = leading_dimension(s.n);
  s.rows = a.long_side();
  s.wide = arena.take(s.ld64 * s.ld64);
  s.departure = arena.take(s.ld64 * s.ld64);
  s.sigma = arena.take(s.ld);
  const int64_t rows = round_up(s.rows, kPad);
  s.g = arena.take<T>(s.ld * s.ld);
  s.e = arena.take<T>(s.ld * s.ld);
  s.next = arena.take<T>(s.ld * s.ld);
  s.v = arena.take<T>(s.ld * s.ld);
  s.w = arena.take<T>(rows * s.ld);
  s.x = arena.take<T>(rows * s.n);
  s.scratch = arena.take<T>(4 * s.ld);
  return s;
}

// Rows [first, end) of X times `scale`, a power of two, into x (n columns); zeros up to kPad.
template <class T>
inline void copy_rows(const MatrixView& a, int64_t first, double scale, T* x) {
  const int64_t n = a.short_side(), count = a.long_side() - first;
  with_type(a, [&](auto* p) {
    copy_widened(p + first * a.stride_long(), count, n, a.stride_long(), a.stride_short(), x, n);
  });
  scale_exactly(x, count * n, scale);
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

}  // namespace SK_ISA
}  // namespace spectral
