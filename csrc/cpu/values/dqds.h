// Eigenvalues of many positive tridiagonal matrices B^T B at once: the differential qd algorithm
// with shifts (dqds; Fernando & Parlett 1994), one matrix per lane, with shifts that cannot fail.
//
// A step of dqds is a chain add, divide, multiply, subtract of some 25 cycles that no single matrix
// can shorten. Lanes of a vector (and two vectors side by side) walk it together, each on its own
// active block [low, high] with its own shift. State per matrix: q_i = b_ii^2 and e_i = b_i,i+1^2.
//
// The shift is Laguerre's lower bound for the smallest eigenvalue of the block,
//     n / (t1 + sqrt((n - 1) (n t2 - t1^2))),  t1 = tr (B^T B)^-1,  t2 = tr (B^T B)^-2,
// cubically convergent from below (Wilkinson, The Algebraic Eigenvalue Problem, 1965,
// section 7.26). Both traces come from recurrences with positive terms only, run along the same
// loop:
//     g_1 = 1, h_1 = 0,  c_i = g_i / q_i,  f_i = e_i / q_i,
//     g_{i+1} = 1 + f_i g_i,  h_{i+1} = f_i (h_i + 2 g_i c_i),
//     t1 = sum c_i,  t2 = sum (h_i + g_i c_i) / q_i
// (g = -dq/ds and h = dg/ds for the factorisation of B^T B - s I at s = 0). So the bound has a
// small relative error, a step never has to be repeated, and no lane waits for another's failure.
#pragma once

#include "cpu/common/simd.h"
#include "cpu/values/kernels.h"

namespace spectral {
namespace SK_ISA {

// One lane's place in its matrix. Blocks above `low` wait with the shift they had when split off.
struct QdLane {
  int64_t low = 0, high = -1;
  // Sum of the shifts so far, and what rounding lost of it: a matrix takes hundreds of them.
  double sigma = 0.0, lost = 0.0;

  void add_shift(double shift) {
    const double y = shift - lost, sum = sigma + y;
    lost = (sum - sigma) - y;
    sigma = sum;
  }
};

constexpr double kTiny = 1e-60;

template <int kVectors>
struct QdLanes {
  static constexpr int kCount = kVectors * kLanes;
  double* q;  // [i * kCount + lane]
  double* e;
  double* mark;  // the shift of the block that ends at i, negative where none ends
  double drop[kCount], shift[kCount], low[kCount], high[kCount];
  double t1[kCount], t2[kCount], split[kCount];
  double upper_t1[kCount], upper_t2[kCount];  // traces of the block above the split
};

// a / b, correctly rounded but for the rarest cases. A plain a * inverse is an ulp off, always to
// the same side for the same a and b: where q_i+1 is what q_i was, the large eigenvalues would
// drift by an ulp in each of hundreds of passes.
inline Vd quotient(Vd a, Vd b, Vd inverse) {
#if defined(__FMA__)
  const Vd t = a * inverse;
  const Vd residual = a - t * b;
  return t + residual * inverse;
#else
  (void)inverse;
  return a / b;
#endif
}

// What a pass carries along for one vector of lanes.
struct QdCarry {
  Vd d, g, h, t1, t2, q;
  Vd shift, drop, low, high;
  Vd split, upper_t1, upper_t2;
};

inline void note_split(QdCarry& c, Md cut, Vd here) {
  // Two splits in one pass: the block above the second is not whole, so it gets no shift yet.
  const Md whole = c.split < c.low;
  c.upper_t1 = select(cut, select(whole, c.t1, splat(HUGE_VAL)), c.upper_t1);
  c.upper_t2 = select(cut, select(whole, c.t2, splat(HUGE_VAL)), c.upper_t2);
  c.split = select(cut, here, c.split);
  c.g = select(cut, splat(1.0), c.g);
  c.h = select(cut, Vd{}, c.h);
  c.t1 = select(cut, Vd{}, c.t1);
  c.t2 = select(cut, Vd{}, c.t2);
}

// Index i of a pass. kEdge: some lane's block may start or end here, so every effect is masked;
// away from the edges all lanes (those without work hold harmless numbers) do the same.
template <bool kEdge>
inline void qd_step(QdCarry& c, double* qp, double* ep, Vd next, double at) {
  const Vd one = splat(1.0), here = splat(at), e = load(ep);
  Md inside = {}, inner = {};
  if constexpr (kEdge) {
    inside = (here >= c.low) & (here <= c.high);
    inner = inside & (here < c.high);
    c.d = select(here == c.low, c.q - c.shift, c.d);
  }
  // Rounding alone can bring d to zero or below: the shift is a lower bound.
  c.d = maximum(c.d, splat(kTiny));
  const Vd q_new = c.d + (kEdge ? select(inner, e, Vd{}) : e);
  const Vd inverse = one / q_new;
  const Vd t = quotient(next, q_new, inverse);
  const Vd e_new = e * t;
  c.d = c.d * t - c.shift;
  store(qp, kEdge ? select(inside, q_new, c.q) : q_new);
  store(ep, kEdge ? select(inner, e_new, e) : e_new);
  const Vd trace = c.g * inverse, f = e_new * inverse;
  const Vd t1 = c.t1 + trace, t2 = c.t2 + inverse * (c.h + c.g * trace);
  const Vd h = f * (c.h + 2.0 * c.g * trace), g = one + f * c.g;
  c.t1 = kEdge ? select(inside, t1, c.t1) : t1;
  c.t2 = kEdge ? select(inside, t2, c.t2) : t2;
  c.h = kEdge ? select(inner, h, c.h) : h;
  c.g = kEdge ? select(inner, g, c.g) : g;
  c.q = next;
  Md cut = e_new <= c.drop;
  if constexpr (kEdge) cut &= inner;
  if (any(cut)) note_split(c, cut, here);
}

// Indices [first, last] for all vectors of lanes, side by side.
template <bool kEdge, int kVectors>
inline void qd_run(QdLanes<kVectors>& s, QdCarry* carry, int64_t first, int64_t last) {
  constexpr int kCount = kVectors * kLanes;
  for (int64_t i = first; i <= last; ++i)
    for (int v = 0; v < kVectors; ++v) {
      double* qp = s.q + i * kCount + v * kLanes;
      qd_step<kEdge>(carry[v], qp, s.e + i * kCount + v * kLanes, load(qp + kCount),
                     static_cast<double>(i));
    }
}

// Where the blocks of the lanes lie: they cover [first, last] together and [from, to] all of them.
struct QdSpan {
  int64_t first, last, from, to;
};

// One transformation of every lane's block; leaves the last split, and t1, t2 on both sides of it.
template <int kVectors>
inline void qd_pass(QdLanes<kVectors>& s, QdSpan span) {
  constexpr int kCount = kVectors * kLanes;
  QdCarry carry[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    QdCarry& c = carry[v];
    c.d = c.g = splat(1.0);
    c.h = c.t1 = c.t2 = c.upper_t1 = c.upper_t2 = Vd{};
    c.q = load(s.q + span.first * kCount + v * kLanes);
    c.shift = load(s.shift + v * kLanes);
    c.drop = load(s.drop + v * kLanes);
    c.low = load(s.low + v * kLanes);
    c.high = load(s.high + v * kLanes);
    c.split = c.low - 1.0;
  }
  if (span.from < span.to) {
    qd_run<true>(s, carry, span.first, span.from);
    qd_run<false>(s, carry, span.from + 1, span.to - 1);
    qd_run<true>(s, carry, span.to, span.last);
  } else {
    qd_run<true>(s, carry, span.first, span.last);
  }
  for (int v = 0; v < kVectors; ++v) {
    store(s.t1 + v * kLanes, carry[v].t1);
    store(s.t2 + v * kLanes, carry[v].t2);
    store(s.split + v * kLanes, carry[v].split);
    store(s.upper_t1 + v * kLanes, carry[v].upper_t1);
    store(s.upper_t2 + v * kLanes, carry[v].upper_t2);
  }
}

// n t2 - t1^2 is n^2 times the variance of the 1 / lambda: for a cluster it is all cancellation.
// What rounding may have taken from it is put back, or the bound would be the harmonic mean, above
// the smallest eigenvalue. The traces err by a few n eps.
inline double laguerre_bound(int64_t n, double t1, double t2) {
  const double count = static_cast<double>(n);
  const double margin = 4e-15 * count;
  const double spread = std::fmax(0.0, count * t2 - t1 * t1) + margin * count * t2;
  const double bound = count / (t1 + std::sqrt((count - 1) * spread));
  return bound > 0 && bound < 1e300 ? bound * (1.0 - margin) : 0.0;
}

// Both eigenvalues of [[q1, .], [., q2 + e]] with off-diagonal squared q1 e, no cancellation.
inline void two_by_two(double q1, double e, double q2, double* large, double* small) {
  const double gap = std::sqrt((q1 - q2) * (q1 - q2) + e * (2.0 * (q1 + q2) + e));
  *large = 0.5 * (q1 + q2 + e + gap);
  *small = q1 * q2 / *large;
}

// Takes finished blocks of one or two off the bottom of a lane; false when the matrix is done.
template <int kVectors>
inline bool take_finished(QdLanes<kVectors>& s, int lane, QdLane& place, double* eigenvalues) {
  constexpr int kCount = kVectors * kLanes;
  while (place.high - place.low <= 1) {
    double* q = s.q + place.low * kCount + lane;
    if (place.high == place.low) {
      eigenvalues[place.low] = (q[0] - place.lost) + place.sigma;
    } else {
      double large, small;
      two_by_two(q[0], s.e[place.low * kCount + lane], q[kCount], &large, &small);
      eigenvalues[place.low] = (large - place.lost) + place.sigma;
      eigenvalues[place.high] = (small - place.lost) + place.sigma;
    }
    if (place.low == 0) return false;
    place.high = place.low - 1;
    place.sigma = s.mark[place.high * kCount + lane];
    place.lost = 0.0;
    place.low = place.high;
    while (place.low > 0 && s.mark[(place.low - 1) * kCount + lane] < 0)
      --place.low;
    s.shift[lane] = 0.0;
  }
  return true;
}

template <int kVectors>
inline void load_lane(QdLanes<kVectors>& s, int lane, const QdProblem* p, int64_t rows) {
  constexpr int kCount = kVectors * kLanes;
  const int64_t n = p ? p->n : 0;
  // Convergence is at the bottom: a matrix that grows downwards is turned round (B -> its flip,
  // which has the same singular values).
  const bool flip = n > 1 && 1.5 * p->q[0] < p->q[n - 1];
  for (int64_t i = 0; i < rows; ++i) {
    s.q[i * kCount + lane] = i < n ? p->q[flip ? n - 1 - i : i] : 1.0;
    s.e[i * kCount + lane] = i < n - 1 ? p->e[flip ? n - 2 - i : i] : 0.0;
    s.mark[i * kCount + lane] = -1.0;
  }
  s.drop[lane] = p ? p->drop : -1.0;  // no e is below zero: no splits without a matrix
  s.shift[lane] = 0.0;
}

// Two vectors side by side hide the latency of the chain, when there are matrices to fill them.
inline int64_t qd_workspace(int64_t longest, int count) {
  return 3 * (longest + 1) * (count > kLanes ? 2 : 1) * kLanes;
}

// Where the blocks of this pass lie, for all lanes and for each.
template <int kVectors>
inline QdSpan place_blocks(QdLanes<kVectors>& s, const QdLane* place, const bool* active,
                           int64_t longest) {
  QdSpan span = {longest, 0, 0, longest};
  for (int lane = 0; lane < kVectors * kLanes; ++lane) {
    const QdLane& at = place[lane];
    s.low[lane] = active[lane] ? static_cast<double>(at.low) : HUGE_VAL;
    s.high[lane] = active[lane] ? static_cast<double>(at.high) : -HUGE_VAL;
    if (!active[lane]) continue;
    span.first = at.low < span.first ? at.low : span.first;
    span.last = at.high > span.last ? at.high : span.last;
    span.from = at.low > span.from ? at.low : span.from;
    span.to = at.high < span.to ? at.high : span.to;
  }
  return span;
}

// Notes what a pass did to a lane and chooses its next shift; false when the matrix is done.
template <int kVectors>
inline bool advance(QdLanes<kVectors>& s, int lane, QdLane& at, double* eigenvalues) {
  at.add_shift(s.shift[lane]);
  const int64_t low = at.low, split = static_cast<int64_t>(s.split[lane]);
  if (split >= low) {
    s.mark[split * kVectors * kLanes + lane] = at.sigma;
    at.low = split + 1;
  }
  s.shift[lane] = laguerre_bound(at.high - at.low + 1, s.t1[lane], s.t2[lane]);
  const bool going_on = take_finished(s, lane, at, eigenvalues);
  if (going_on && split >= low && at.high == split)
    s.shift[lane] = laguerre_bound(split - low + 1, s.upper_t1[lane], s.upper_t2[lane]);
  return going_on;
}

// Solves up to kVectors * kLanes problems.
template <int kVectors>
inline void qd_eigenvalues(QdProblem* problems, int count, double* work) {
  constexpr int kCount = kVectors * kLanes;
  int64_t longest = 1;
  for (int k = 0; k < count; ++k)
    longest = problems[k].n > longest ? problems[k].n : longest;
  const int64_t rows = longest + 1;
  QdLanes<kVectors> s;
  s.q = work;
  s.e = s.q + rows * kCount;
  s.mark = s.e + rows * kCount;
  QdLane place[kCount];
  bool active[kCount];
  int remaining = 0;
  for (int lane = 0; lane < kCount; ++lane) {
    QdProblem* p = lane < count ? problems + lane : nullptr;
    load_lane(s, lane, p, rows);
    active[lane] = false;
    if (!p || p->n == 0) continue;
    place[lane].high = p->n - 1;
    p->converged = false;
    active[lane] = take_finished(s, lane, place[lane], p->q);
    p->converged = !active[lane];
    remaining += active[lane];
  }
  for (int64_t pass = 0; remaining > 0 && pass < 40 * longest + 100; ++pass) {
    qd_pass(s, place_blocks(s, place, active, longest));
    for (int lane = 0; lane < kCount; ++lane) {
      if (!active[lane] || advance(s, lane, place[lane], problems[lane].q)) continue;
      // Numbers that no pass can grow or shrink.
      load_lane(s, lane, nullptr, rows);
      active[lane] = false;
      problems[lane].converged = true;
      --remaining;
    }
  }
}

inline void qd(QdProblem* problems, int count, double* work) {
  if (count > kLanes)
    qd_eigenvalues<2>(problems, count, work);
  else
    qd_eigenvalues<1>(problems, count, work);
}

}  // namespace SK_ISA
}  // namespace spectral
