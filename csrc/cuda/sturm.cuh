// Eigenvalues of a symmetric tridiagonal T with a thread for each, by Sturm counts (Barth, Martin &
// Wilkinson 1967) and interpolation on the characteristic polynomial (Chandrupatla 1997).
//
// p_i(x) = det(T_i - x): p_i = (d_i - x) p_{i-1} - e_{i-1}^2 p_{i-2}. Its sign changes along i are
// the eigenvalues below x, for a T moved by a few eps ||T||. Without divisions a step is one fused
// multiply-add long; a power of two is taken out of p every kStride steps.
// All threads look at a grid first; each then goes on in the interval of its own eigenvalue: halved
// until that is alone, then interpolated. About 12 looks of n steps for each, 50 where values are
// equal. Shared memory: 16 bytes for each row of T and each point of the grid.
#pragma once

#include "cuda/device.cuh"
#include "include/interpolation.h"

namespace spectral {

SK_DEVICE int64_t bits_of(double x) {
#if defined(__CUDACC__)
  return __double_as_longlong(x);
#else
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

SK_DEVICE double double_from_bits(int64_t bits) {
#if defined(__CUDACC__)
  return __longlong_as_double(bits);
#else
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

// Row i: d_i and the square of e_{i-1}, side by side because they are read together. The first
// square is zero, the others at least kSquareFloor; row sums of magnitudes are at most one.
struct alignas(16) SturmRow {
  double d, square;
};

// p_n(x) = value * 2^exponent, and how many eigenvalues lie below x.
struct alignas(16) SturmLook {
  double value;
  int exponent, count;
};

struct SturmPoint {
  double x;
  SturmLook look;
};

struct SturmMatrix {
  const SturmRow* rows;
  int n;
};

struct SturmState {
  double x, p, before;
  int count;
};

SK_DEVICE void sturm_step(SturmState& s, SturmRow row) {
  const double next = fma(row.d - s.x, s.p, -(row.square * s.before));
  s.count += (bits_of(next) ^ bits_of(s.p)) < 0 ? 1 : 0;
  s.before = s.p;
  s.p = next;
}

SK_DEVICE SturmPoint look_at(const SturmMatrix& t, double x) {
  SturmState s = {x, 1.0, 0.0, 0};
  int exponent = 0, i = 0;
  for (; i + kStride <= t.n; i += kStride) {
    SK_UNROLL
    for (int k = 0; k < kStride; ++k)
      sturm_step(s, t.rows[i + k]);
    const double p = fabs(s.p), before = fabs(s.before);
    const int64_t biased = bits_of(p > before ? p : before) >> 52;
    const double scale = double_from_bits((2046 - biased) << 52);
    exponent += static_cast<int>(biased) - 1023;
    s.p *= scale;
    s.before *= scale;
  }
  for (; i < t.n; ++i)
    sturm_step(s, t.rows[i]);
  return {x, {s.p, exponent, s.count}};
}

// The eigenvalue number `index` (ascending) lies between a, the newer end, and b; c is the end that
// a took the place of.
struct Bracket {
  SturmPoint a, b, c;
};

// value * 2^(exponent - top) for exponents up to top; below -1000 a little too much.
SK_DEVICE double relative_value(const SturmPoint& point, int top) {
  const int exponent = point.look.exponent - top;
  return point.look.value *
         double_from_bits(static_cast<int64_t>((exponent < -1000 ? -1000 : exponent) + 1023) << 52);
}

SK_DEVICE double next_look(const Bracket& k, bool interpolate, double resolution) {
  const int ea = k.a.look.exponent, eb = k.b.look.exponent, ec = k.c.look.exponent;
  const int larger = ea > eb ? ea : eb, top = larger > ec ? larger : ec;
  return next_point(k.a.x, relative_value(k.a, top), k.b.x, relative_value(k.b, top), k.c.x,
                    relative_value(k.c, top), interpolate, resolution);
}

// Rounding can make counts fall where x grows: a count stays between those of its neighbours.
SK_DEVICE int between(int count, int one, int other) {
  const int low = one < other ? one : other, high = one < other ? other : one;
  return count < low ? low : count > high ? high : count;
}

// The eigenvalue inside of the bracket, which is closed to `resolution`. Zero stays zero: the root
// of half a resolution would be 2e-8.
SK_DEVICE double close_bracket(const SturmMatrix& t, Bracket k, int index, double resolution) {
  int steps = 0;
  while (fabs(k.a.x - k.b.x) > resolution) {
    const int inside = k.a.look.count - k.b.look.count;
    const bool alone = inside == 1 || inside == -1;
    SturmPoint m = look_at(t, next_look(k, alone && steps <= kPatience, resolution));
    m.look.count = between(m.look.count, k.a.look.count, k.b.look.count);
    steps = alone ? steps + 1 : 0;
    const bool a_below = k.a.look.count <= index, m_below = m.look.count <= index;
    // m takes the place of the end on its own side, and is the newer one.
    const SturmPoint left = a_below == m_below ? k.a : k.b, kept = a_below == m_below ? k.b : k.a;
    k = {m, kept, left};
  }
  const double low = k.a.x < k.b.x ? k.a.x : k.b.x;
  return low > 0.0 ? 0.5 * (k.a.x + k.b.x) : 0.0;
}

// The grid over [0, 1], a little beyond its end: rounding may have moved eigenvalues out of it.
SK_DEVICE double grid_point(int i, int points, double resolution) {
  return i == points - 1 ? 1.0 + 4.0 * resolution : i / static_cast<double>(points - 1);
}

// Point i of the grid, as the block left it.
SK_DEVICE SturmPoint grid_look(const SturmLook* grid, int i, int points, double resolution) {
  return {grid_point(i, points, resolution), grid[i]};
}

// Called by the whole block; every thread looks at its point. A barrier must follow.
SK_DEVICE void look_at_grid(const SturmMatrix& t, SturmLook* grid, double resolution) {
  const int i = static_cast<int>(threadIdx.x), points = static_cast<int>(blockDim.x);
  grid[i] = look_at(t, grid_point(i, points, resolution)).look;
  if (i == points - 1) grid[i].count = t.n;
}

// The eigenvalue number `index`, ascending; those below zero, by rounding, count as zero.
SK_DEVICE double eigenvalue(const SturmMatrix& t, const SturmLook* grid, int index,
                            double resolution) {
  const int points = static_cast<int>(blockDim.x);
  if (grid[0].count > index) return 0.0;
  int low = 0, high = points - 1;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (grid[middle].count > index)
      high = middle;
    else
      low = middle;
  }
  const int beyond = low > 0 ? low - 1 : high < points - 1 ? high + 1 : high;
  return close_bracket(
      t,
      {grid_look(grid, low, points, resolution), grid_look(grid, high, points, resolution),
       grid_look(grid, beyond, points, resolution)},
      index, resolution);
}

}  // namespace spectral
