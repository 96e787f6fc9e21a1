// One-sided Jacobi (Hestenes 1958; Golub & Van Loan, section 8.6.3): rotates pairs of columns of X,
// and of V with them, until all are orthogonal; then x_j = sigma_j u_j. Float64, to full relative
// accuracy.
//
// The same sweep runs on one matrix whose columns are vectors, and on kLanes small matrices with
// one lane each. Pairs come in rounds of a tournament: those of a round share no column, so that
// their square roots and divisions overlap.
#pragma once

#include "cpu/common/simd.h"

namespace spectral {
namespace SK_ISA {

inline double square_root(double x) {
  return std::sqrt(x);
}
inline double absolute(double x) {
  return std::fabs(x);
}
inline double select(bool mask, double yes, double no) {
  return mask ? yes : no;
}
inline bool any(bool mask) {
  return mask;
}

// (x, y) <- (x - s (y + h x), y + s (x - h y)): a rotation by c = 1 - s h, with h = s / (1 + c)
// (Rutishauser 1966). Rounding in s and h costs orthogonality only in proportion to the angle,
// which is small in late sweeps.
template <class S>
struct JacobiAngle {
  S s, h;
};

// The angle that makes columns of squared norms a, b and product d orthogonal; none where not
// active.
template <class S, class Mask>
inline JacobiAngle<S> jacobi_angle(S a, S b, S d, Mask active) {
  const S zero = S{}, one = zero + 1.0;
  const S tau = (b - a) / (2.0 * select(active, d, one));
  const S t = select(tau < 0.0, -one, one) / (absolute(tau) + square_root(one + tau * tau));
  const S c = one / square_root(one + t * t);
  const S s = select(active, c * t, zero);
  return {s, s / (one + c)};
}

// kLanes matrices: column j of x is `rows` vectors from x + j * rows * kLanes.
struct LaneColumns {
  typedef Vd Scalar;
  double* x;
  int64_t rows;
  double* at(int64_t j) const { return x + j * rows * kLanes; }
  Vd product(int64_t p, int64_t q) const {
    Vd sum = {};
    for (int64_t i = 0; i < rows; ++i)
      sum += load(at(p) + i * kLanes) * load(at(q) + i * kLanes);
    return sum;
  }
  void rotate(int64_t p, int64_t q, JacobiAngle<Vd> r) const {
    for (int64_t i = 0; i < rows; ++i) {
      const Vd a = load(at(p) + i * kLanes), b = load(at(q) + i * kLanes);
      store(at(p) + i * kLanes, a - r.s * (b + r.h * a));
      store(at(q) + i * kLanes, b + r.s * (a - r.h * b));
    }
  }
};

// One matrix: column j is `ld` doubles from x + j * ld, ld a multiple of kLanes, padding zero.
struct SoloColumns {
  typedef double Scalar;
  double* x;
  int64_t ld;
  double product(int64_t p, int64_t q) const {
    Vd sum = {};
    for (int64_t i = 0; i < ld; i += kLanes)
      sum += load(x + p * ld + i) * load(x + q * ld + i);
    return horizontal_sum(sum);
  }
  void rotate(int64_t p, int64_t q, JacobiAngle<double> r) const {
    for (int64_t i = 0; i < ld; i += kLanes) {
      const Vd a = load(x + p * ld + i), b = load(x + q * ld + i);
      store(x + p * ld + i, a - r.s * (b + r.h * a));
      store(x + q * ld + i, b + r.s * (a - r.h * b));
    }
  }
};

// V must hold the identity (or whatever is to be rotated along); true when a sweep found all pairs
// orthogonal to `tolerance`.
template <class Columns>
inline bool jacobi(const Columns& x, const Columns& v, int64_t n, double tolerance) {
  typedef typename Columns::Scalar S;
  constexpr int kMaxSweeps = 40;
  const int64_t players = n + n % 2;
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    bool moved = false;
    for (int64_t round = 0; round < players - 1; ++round)
      for (int64_t k = 0; k < players / 2; ++k) {
        // The last player stays, the others go round.
        const int64_t first = k == 0 ? players - 1 : (round + k) % (players - 1);
        const int64_t second = (round + players - 1 - k) % (players - 1);
        const int64_t p = first < second ? first : second, q = first < second ? second : first;
        if (q >= n) continue;
        // Norms afresh: updated ones drift where a column shrinks a lot.
        const S a = x.product(p, p), b = x.product(q, q), d = x.product(p, q);
        const auto active = d * d > (tolerance * tolerance) * (a * b);
        if (!any(active)) continue;
        moved = true;
        const JacobiAngle<S> angle = jacobi_angle(a, b, d, active);
        x.rotate(p, q, angle);
        v.rotate(p, q, angle);
      }
    if (!moved) return true;
  }
  return false;
}

}  // namespace SK_ISA
}  // namespace spectral
