// All eigenvalues of one positive semidefinite tridiagonal T by Sturm counts: intervals are halved
// until they hold one eigenvalue, which inverse quadratic interpolation on p_n then closes in
// without leaving its interval (Chandrupatla 1997).
//
// Each interval goes its own way, whatever others are looked into at the same time. About 10 n
// points of n steps in lanes, where dqds (qd.h) takes fewer steps but has one chain of divisions
// for each matrix.
#pragma once

#include "cpu/values/sturm.h"

namespace spectral {
namespace SK_ISA {

// The width at which an interval counts as one number, for ||T|| = 1.
constexpr double kResolution = 1e-15;

struct SturmPoint {
  double x, value;
  int64_t exponent, count;
};

// Eigenvalues between the ends a, the newer one, and b. c is the end that a took the place of.
struct Bracket {
  SturmPoint a, b, c;
  double steps;  // since it held one eigenvalue

  bool single() const { return a.count - b.count == 1 || b.count - a.count == 1; }
};

// The brackets of a pass, a field at a time: ends x, values f there and exponents.
struct BracketLanes {
  double xa[kSturmPoints], xb[kSturmPoints], xc[kSturmPoints];
  double fa[kSturmPoints], fb[kSturmPoints], fc[kSturmPoints];
  int64_t ea[kSturmPoints], eb[kSturmPoints], ec[kSturmPoints];
  int64_t halve[kSturmPoints];  // all bits set where nothing else will do

  void put(int lane, const Bracket& k) {
    xa[lane] = k.a.x, fa[lane] = k.a.value, ea[lane] = k.a.exponent;
    xb[lane] = k.b.x, fb[lane] = k.b.value, eb[lane] = k.b.exponent;
    xc[lane] = k.c.x, fc[lane] = k.c.value, ec[lane] = k.c.exponent;
    halve[lane] = !k.single() || k.steps > kPatience ? -1 : 0;
  }
};

inline Md load_mask(const int64_t* p) {
  Md m;
  std::memcpy(&m, p, sizeof(m));
  return m;
}

// value * 2^exponent for exponents up to zero; below -1000 a little too much.
inline Vd scaled_value(Vd value, Md exponent) {
  const Md kept = exponent < -1000 ? exponent * 0 - 1000 : exponent;
  return value * reinterpret_cast<Vd>((kept + 1023) << 52);
}

// Where to look next, in the vector of lanes from `lane` on.
inline Vd next_points(const BracketLanes& k, int lane) {
  const Md ea = load_mask(k.ea + lane), eb = load_mask(k.eb + lane), ec = load_mask(k.ec + lane);
  const Md larger = ea > eb ? ea : eb, top = larger > ec ? larger : ec;
  const Vd fa = scaled_value(load(k.fa + lane), ea - top);
  const Vd fb = scaled_value(load(k.fb + lane), eb - top);
  const Vd fc = scaled_value(load(k.fc + lane), ec - top);
  const Vd xa = load(k.xa + lane), xb = load(k.xb + lane), xc = load(k.xc + lane);
  return next_point(xa, fa, xb, fb, xc, fc, ~load_mask(k.halve + lane), kResolution);
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

// Eigenvalues of T, ascending, each within a few eps of one. work: n + 1 Brackets.
inline void sturm_eigenvalues(const SturmMatrix& t, double* eigenvalues, double* work) {
  BracketStack todo = {reinterpret_cast<Bracket*>(work), 0, eigenvalues};
  start(t, todo);
  SturmPoints points = {};
  BracketLanes lanes = {};
  Bracket taken[kSturmPoints];
  while (todo.size > 0) {
    const int count = todo.size < kSturmPoints ? static_cast<int>(todo.size) : kSturmPoints;
    todo.size -= count;
    for (int i = 0; i < count; ++i) {
      taken[i] = todo.brackets[todo.size + i];
      lanes.put(i, taken[i]);
    }
    for (int i = 0; i < kSturmPoints; i += kLanes)
      store(points.x + i, next_points(lanes, i));
    evaluate(t, &points);
    for (int i = 0; i < count; ++i)
      split(todo, taken[i], point_at(points, i));
  }
}

}  // namespace SK_ISA
}  // namespace spectral
