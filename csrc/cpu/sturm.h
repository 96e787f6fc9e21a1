// All eigenvalues of one positive semidefinite tridiagonal T: Sturm counts at many points at a time
// (Barth, Martin & Wilkinson 1967); an interval with a single eigenvalue is closed in by inverse
// quadratic interpolation that never leaves it (Chandrupatla 1997).
//
// p_i(x) = det(T_i - x) of the leading blocks: p_i = (d_i - x) p_{i-1} - e_{i-1}^2 p_{i-2}. Its
// sign changes along i are the eigenvalues below x, for a T moved by a few eps ||T||; p_n is what
// interpolation runs on. Each lane takes a point of its own, so one matrix fills the vectors, where
// dqds (qd.h) has one chain for each matrix. Without divisions a step is six operations; a power
// of two is taken out of p every kStride steps. About 9 n points, so 9 n^2 steps in lanes.
#pragma once

#include "cpu/simd.h"

namespace spectral {
namespace SK_ISA {

// Vectors side by side hide the latency of the recurrence: as many as the registers hold.
constexpr int kSturmVectors = kLanes == 8 ? 5 : 3;
constexpr int kSturmPoints = kSturmVectors * kLanes;
// Between two scalings p grows by 3^kStride at most, and shrinks by kSquareFloor^(kStride / 2).
constexpr int kStride = 16;
constexpr double kSquareFloor = 1e-36;
// The width at which an interval counts as one number, for ||T|| = 1.
constexpr double kResolution = 1e-15;
// Steps of interpolation before an interval is only halved: twice what the slowest of a thousand
// took.
constexpr double kPatience = 25.0;

// d has n entries, squares the n numbers 0, e_0^2, ..., e_{n-2}^2, each of the latter at least
// kSquareFloor; T's row sums of magnitudes are at most one.
struct SturmMatrix {
  const double* d;
  const double* squares;
  int64_t n;
};

// Points in lanes: p_n(x) = value * 2^exponent, and how many eigenvalues lie below x.
struct SturmPoints {
  double x[kSturmPoints], value[kSturmPoints];
  int64_t exponent[kSturmPoints], count[kSturmPoints];
};

struct SturmPoint {
  double x, value;
  int64_t exponent, count;
};

// Eigenvalues between the ends a, the newer one, and b. c is the end that a took the place of.
struct Bracket {
  SturmPoint a, b, c;
  double steps;  // since it held one eigenvalue

  bool single() const { return std::abs(a.count - b.count) == 1; }
};

typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));

struct SturmState {
  Vd x[kSturmVectors], p[kSturmVectors], before[kSturmVectors];
  Bits changes[kSturmVectors], exponent[kSturmVectors];
};

inline void sturm_step(SturmState& s, double d, double square) {
  for (int v = 0; v < kSturmVectors; ++v) {
    const Vd next = (d - s.x[v]) * s.p[v] - square * s.before[v];
    s.changes[v] += (reinterpret_cast<Bits>(next) ^ reinterpret_cast<Bits>(s.p[v])) >> 63;
    s.before[v] = s.p[v];
    s.p[v] = next;
  }
}

inline void take_out_exponent(SturmState& s) {
  for (int v = 0; v < kSturmVectors; ++v) {
    const Vd size = maximum(absolute(s.p[v]), absolute(s.before[v]));
    const Bits biased = reinterpret_cast<Bits>(size) >> 52;
    const Vd scale = reinterpret_cast<Vd>((2046 - biased) << 52);
    s.exponent[v] += biased - 1023;
    s.p[v] *= scale;
    s.before[v] *= scale;
  }
}

inline void evaluate(const SturmMatrix& t, SturmPoints* points) {
  SturmState s;
  for (int v = 0; v < kSturmVectors; ++v) {
    s.x[v] = load(points->x + v * kLanes);
    s.p[v] = splat(1.0);
    s.before[v] = Vd{};
    s.changes[v] = s.exponent[v] = Bits{};
  }
  int64_t i = 0;
  for (; i + kStride <= t.n; i += kStride) {
    for (int k = 0; k < kStride; ++k)
      sturm_step(s, t.d[i + k], t.squares[i + k]);
    take_out_exponent(s);
  }
  for (; i < t.n; ++i)
    sturm_step(s, t.d[i], t.squares[i]);
  for (int v = 0; v < kSturmVectors; ++v) {
    store(points->value + v * kLanes, s.p[v]);
    std::memcpy(points->exponent + v * kLanes, &s.exponent[v], sizeof(Bits));
    std::memcpy(points->count + v * kLanes, &s.changes[v], sizeof(Bits));
  }
}

// value * 2^(exponent - top), zero where that is tiny.
inline double scaled_value(const SturmPoint& point, int64_t top) {
  const int64_t exponent = point.exponent - top;
  if (exponent < -1000) return 0.0;
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof(power));
  return point.value * power;
}

// Where to look next, as a share of the way from a to b.
inline double next_share(const Bracket& k) {
  if (!k.single() || k.steps > kPatience) return 0.5;
  int64_t top = k.a.exponent > k.b.exponent ? k.a.exponent : k.b.exponent;
  top = top > k.c.exponent ? top : k.c.exponent;
  const double fa = scaled_value(k.a, top), fb = scaled_value(k.b, top);
  const double fc = scaled_value(k.c, top);
  const double ab = k.b.x - k.a.x, cb = k.b.x - k.c.x, p = fb - fa, q = fc - fb, r = fc - fa;
  // Only where the inverse of the quadratic is monotone (Chandrupatla's test, without its
  // quotients); written so that NaN halves as well.
  const double share_kept = std::fabs(ab), whole = std::fabs(cb), square = q * q;
  if (!(p * p * whole < square * share_kept && r * r * whole < square * (whole - share_kept)))
    return 0.5;
  const double share = fa * ((cb - ab) * fb * p + fc * r * ab) / -(p * q * r * ab);
  // Never quite at an end: from a good end the next look is across the eigenvalue, which closes it.
  const double margin = 0.5 * kResolution / share_kept;
  return std::fmin(std::fmax(share, margin), 1.0 - margin);
}

// What is left to do, as a stack, and where finished eigenvalues go, ascending.
struct BracketStack {
  Bracket* brackets;
  int64_t size;
  double* eigenvalues;
};

inline void push(BracketStack& todo, const SturmPoint& a, const SturmPoint& b, const SturmPoint& c,
                 double steps) {
  if (a.count == b.count) return;
  if (std::fabs(a.x - b.x) > kResolution) {
    todo.brackets[todo.size++] = {a, b, c, steps};
    return;
  }
  const int64_t first = a.count < b.count ? a.count : b.count;
  const int64_t last = a.count < b.count ? b.count : a.count;
  // Zero stays zero: the root of half a resolution would be 2e-8.
  const double low = a.x < b.x ? a.x : b.x;
  for (int64_t i = first; i < last; ++i)
    todo.eigenvalues[i] = low > 0 ? 0.5 * (a.x + b.x) : 0.0;
}

inline SturmPoint point_at(const SturmPoints& points, int lane) {
  return {points.x[lane], points.value[lane], points.exponent[lane], points.count[lane]};
}

// Rounding can make counts fall where x grows: a count stays between those of its neighbours.
inline int64_t between(int64_t count, int64_t low, int64_t high) {
  return count < low ? low : count > high ? high : count;
}

// Both halves of a bracket that has been looked into at m.
inline void split(BracketStack& todo, const Bracket& k, SturmPoint m) {
  const bool rising = k.a.count < k.b.count;
  m.count =
      rising ? between(m.count, k.a.count, k.b.count) : between(m.count, k.b.count, k.a.count);
  const double steps = k.single() ? k.steps + 1.0 : 0.0;
  push(todo, m, k.a, k.b, steps);
  push(todo, m, k.b, k.a, steps);
}

// A grid over [0, 1]: rounding may have left eigenvalues below, which count as zero.
inline void start(const SturmMatrix& t, BracketStack& todo) {
  SturmPoints points;
  for (int i = 0; i < kSturmPoints; ++i)
    points.x[i] = i / static_cast<double>(kSturmPoints - 1);
  points.x[kSturmPoints - 1] += kResolution;
  evaluate(t, &points);
  points.count[kSturmPoints - 1] = t.n;
  for (int64_t i = 0; i < points.count[0]; ++i)
    todo.eigenvalues[i] = 0.0;
  for (int i = 1; i < kSturmPoints; ++i) {
    points.count[i] = between(points.count[i], points.count[i - 1], t.n);
    const int beyond = i > 1 ? i - 2 : i + 1;
    push(todo, point_at(points, i - 1), point_at(points, i), point_at(points, beyond), 0.0);
  }
}

inline int64_t sturm_workspace(int64_t n) {
  return (n + 1) * static_cast<int64_t>(sizeof(Bracket) / sizeof(double));
}

// Eigenvalues of T, ascending, each within a few eps of one.
inline void sturm_eigenvalues(const SturmMatrix& t, double* eigenvalues, double* work) {
  BracketStack todo = {reinterpret_cast<Bracket*>(work), 0, eigenvalues};
  start(t, todo);
  SturmPoints points = {};
  Bracket taken[kSturmPoints];
  while (todo.size > 0) {
    const int count = todo.size < kSturmPoints ? static_cast<int>(todo.size) : kSturmPoints;
    todo.size -= count;
    for (int i = 0; i < count; ++i) {
      taken[i] = todo.brackets[todo.size + i];
      points.x[i] = taken[i].a.x + next_share(taken[i]) * (taken[i].b.x - taken[i].a.x);
    }
    evaluate(t, &points);
    for (int i = 0; i < count; ++i)
      split(todo, taken[i], point_at(points, i));
  }
}

}  // namespace SK_ISA
}  // namespace spectral
