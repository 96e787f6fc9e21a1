// One warm-started update of a whole SVD: X = A (long side first) has moved a little since V, its
// right vectors, were last right. Everything is a matrix product, in float64.
//
//     W = X V, S = W^T W = D (I + C) D, D = diag(sigma)        sigma_j = |w_j|, u_j = w_j / sigma_j
//     t_ij: Jacobi's tangent for the pair (i, j) of S          all pairs at once
//     R = I + E + E^2 / 2, E skew from t, rows of E kept below kLargestRow
//     V <- V R, then V <- V (I - F / 2), F = V^T V - I         a Newton-Schulz step
//
// The bounds decide: none of this where the last V still satisfies the tolerance, one rotation,
// two, or an exact solve. They are proved, with the same names, in
// spectral_kernels/tracking/bounds.py. Flops for n x n: W 2 n^3, S and F n^3 each; a rotation 9 n^3
// more.
#pragma once

#include "cpu/svd.h"

namespace spectral {
namespace SK_ISA {

constexpr double kLargestRow = 0.6;  // sum over j of |E_ij|: I + E + E^2 / 2 stays near orthogonal
constexpr double kDriftKept = 1e-7;  // of V from orthonormal, after a rotation
constexpr double kLeading = 1e-7;    // columns below this part of sigma_1 count by their norm alone

// ||E||_F beyond which the first, or the second, rotation will not reach a useful tolerance and an
// exact solve is cheaper (measured on random and on training trajectories of 128 x 128 and 512 x
// 128).
constexpr double kLargestRotation[2] = {1.1, 0.25};

enum class Work { kKept = 0, kRotated = 1, kRotatedTwice = 2, kSolved = 3, kNotFinite = -1 };

struct Certificate {
  double cosines;   // bound of ||C||_2 over the leading columns
  double additive;  // the same for ||W - Q D||_2, Q the polar factor of W D^-1
  double tail;      // Frobenius norm of the other columns
  double drift;     // bound of ||V^T V - I||_2
  double top;       // largest sigma
};

// Lanes of columns j, j + 1, ... that lie right of the diagonal in row i.
inline Md right_of(int64_t i, int64_t j) {
  Md column;
  for (int lane = 0; lane < kLanes; ++lane)
    column[lane] = j + lane;
  return column > (Md{} + i);
}

// Sums over the entries (i, j > i) of a symmetric matrix, x_ij = g_ij scale_i scale_j:
// sum of x_ij^2, sum of x_ij^2 (weight_i + weight_j), and the largest row sum of |x| of the whole.
struct OffDiagonal {
  double squares = 0.0, weighted = 0.0, largest_row = 0.0;
};

// scale and weight: zero from n on; sums: ld entries.
inline OffDiagonal off_diagonal(const double* g, int64_t ld, int64_t n, const double* scale,
                                const double* weight, double* sums) {
  Vd squares = {}, weighted = {};
  OffDiagonal total;
  std::memset(sums, 0, static_cast<size_t>(ld) * sizeof(double));
  for (int64_t i = 0; i < n; ++i) {
    Vd row = {};
    for (int64_t j = (i + 1) / kLanes * kLanes; j < n; j += kLanes) {
      const Vd x =
          select(right_of(i, j), load(g + i * ld + j) * (scale[i] * load(scale + j)), Vd{});
      const Vd size = absolute(x);
      store(sums + j, load(sums + j) + size);
      row += size;
      squares += x * x;
      weighted += x * x * (weight[i] + load(weight + j));
    }
    sums[i] += horizontal_sum(row);
    total.largest_row = sums[i] > total.largest_row ? sums[i] : total.largest_row;
  }
  total.squares = horizontal_sum(squares);
  total.weighted = horizontal_sum(weighted);
  return total;
}

// A bound of the 2-norm of the symmetric matrix with zero diagonal.
inline double two_norm(const OffDiagonal& x) {
  const double frobenius = std::sqrt(2.0 * x.squares);
  return frobenius < x.largest_row ? frobenius : x.largest_row;
}

// From S in s.g: sigma, and everything the bounds need but the drift. scratch: 3 ld.
inline void measure_cosines(GramSvdSpace& s, const Factors& f, Certificate* c, double* scratch) {
  double* inverse = scratch;
  double* weight = scratch + f.ld;
  std::memset(scratch, 0, static_cast<size_t>(2 * f.ld) * sizeof(double));
  for (int64_t j = 0; j < f.n; ++j)
    f.sigma[j] = std::sqrt(s.g[j * f.ld + j] > 0 ? s.g[j * f.ld + j] : 0.0);
  // NaN anywhere is in the trace.
  c->top = std::isfinite(trace(s.g, f.ld, f.n)) ? largest_of(f.sigma, f.n) : std::nan("");
  double tail = 0.0;
  for (int64_t j = 0; j < f.n; ++j) {
    const bool leading = f.sigma[j] > kLeading * c->top;
    inverse[j] = leading ? 1.0 / f.sigma[j] : 0.0;
    weight[j] = leading ? f.sigma[j] * f.sigma[j] : 0.0;
    if (!leading) tail += f.sigma[j] * f.sigma[j];
  }
  c->tail = std::sqrt(tail);
  // ||C D||_F^2 = sum over i != j of c_ij^2 sigma_j^2.
  const OffDiagonal x = off_diagonal(s.g, f.ld, f.n, inverse, weight, scratch + 2 * f.ld);
  c->cosines = two_norm(x);
  c->additive = std::sqrt(x.weighted) / (1.0 + std::sqrt(std::fmax(0.0, 1.0 - c->cosines)));
}

// F = V^T V - I over the tiles of the upper triangle into s.product; its bound. scratch: 2 ld.
inline double measure_drift(GramSvdSpace& s, const Factors& f, double* scratch) {
  gemm({f.v, f.ld, f.v, f.ld, 1, s.product, f.ld}, f.n, f.n, f.n, {true, false});
  double diagonal = 0.0;
  double* ones = scratch;
  std::memset(scratch, 0, static_cast<size_t>(f.ld) * sizeof(double));
  for (int64_t j = 0; j < f.n; ++j) {
    s.product[j * f.ld + j] -= 1.0;
    diagonal = std::fmax(diagonal, std::fabs(s.product[j * f.ld + j]));
    ones[j] = 1.0;
  }
  return diagonal + two_norm(off_diagonal(s.product, f.ld, f.n, ones, ones, scratch + f.ld));
}

inline double bound_of(const Certificate& c, double sigma, double rounding) {
  double own = c.tail;
  if (sigma > kLeading * c.top) {
    // 1 - sqrt(1 - c) is the larger of the two sides of sqrt(1 +- c).
    const double relative = c.cosines < 1.0 ? sigma * (1.0 - std::sqrt(1.0 - c.cosines)) : HUGE_VAL;
    own += relative < c.additive ? relative : c.additive;
  }
  const double stretch = c.drift < 1.0 ? 1.0 / std::sqrt(1.0 - c.drift) - 1.0 : HUGE_VAL;
  return own + (sigma + own) * stretch + rounding * c.top;
}

// NaN when any bound is: what is not known is not within a tolerance.
inline double largest_bound(const Certificate& c, const Factors& f, double rounding) {
  double largest = 0.0;
  for (int64_t j = 0; j < f.n; ++j) {
    const double bound = bound_of(c, f.sigma[j], rounding);
    if (std::isnan(bound)) return bound;
    largest = bound > largest ? bound : largest;
  }
  return largest;
}

inline Certificate certify(const MatrixView& x, GramSvdSpace& s, const Factors& f) {
  Certificate c = {};
  multiply_rows(x, f.v, f.w, f.ld, s.scratch);
  gemm({f.w, f.ld, f.w, f.ld, 1, s.g, f.ld}, f.n, f.n, x.long_side(), {true, false});
  measure_cosines(s, f, &c, s.scratch);
  return c;
}

// E into s.q (full, skew, padding zero) from S in s.g; returns ||E||_F. scratch: 2 ld.
inline double rotation_generator(GramSvdSpace& s, const Factors& f, double* scratch) {
  const int64_t n = f.n, ld = f.ld;
  double* e = s.q;
  double* squares = scratch;  // of the sigmas
  double* scale = scratch + ld;
  std::memset(e, 0, static_cast<size_t>(ld * ld) * sizeof(double));
  std::memset(scratch, 0, static_cast<size_t>(2 * ld) * sizeof(double));
  for (int64_t j = 0; j < n; ++j)
    squares[j] = s.g[j * ld + j];
  for (int64_t i = 0; i < n; ++i) {
    Vd sum = {};
    for (int64_t j = (i + 1) / kLanes * kLanes; j < n; j += kLanes) {
      const Vd off = select(right_of(i, j), load(s.g + i * ld + j), Vd{});
      const Vd half = 0.5 * (load(squares + j) - squares[i]);
      // sign(tau) / (|tau| + sqrt(1 + tau^2)) with tau = half / off, free of the division by off.
      const Vd size = absolute(half) + square_root(half * half + off * off);
      const Vd t = select(size > Vd{}, select(half < Vd{}, -off, off) / size, Vd{});
      store(e + i * ld + j, t);
      store(scale + j, load(scale + j) + absolute(t));
      sum += absolute(t);
    }
    scale[i] += horizontal_sum(sum);
  }
  for (int64_t j = 0; j < n; ++j)
    scale[j] = scale[j] > kLargestRow ? kLargestRow / scale[j] : 1.0;
  double squares_of_e = 0.0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i + 1; j < n; ++j) {
      e[i * ld + j] *= scale[i] < scale[j] ? scale[i] : scale[j];
      e[j * ld + i] = -e[i * ld + j];
      squares_of_e += 2.0 * e[i * ld + j] * e[i * ld + j];
    }
  return std::sqrt(squares_of_e);
}

// V <- V (I - F / 2); the drift after it, which the one before it proves.
inline double newton_schulz(GramSvdSpace& s, const Factors& f) {
  const int64_t n = f.n, ld = f.ld;
  const double drift = measure_drift(s, f, s.scratch);
  double* half = s.product;
  double* next = s.eigenvectors;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j)
      half[i * ld + j] = half[j * ld + i] = -0.5 * half[i * ld + j];
  std::memcpy(next, f.v, static_cast<size_t>(ld * n) * sizeof(double));
  gemm({half, ld, f.v, 1, ld, next, ld}, n, n, n, {false, true});
  std::memcpy(f.v, next, static_cast<size_t>(ld * n) * sizeof(double));
  // (I - F/2) (I + F) (I - F/2) = I - 3/4 F^2 + 1/4 F^3; then what rounding adds.
  return drift * drift * (0.75 + 0.25 * drift) + 8.0 * kEps * static_cast<double>(n);
}

// V <- V R, R from E in s.q, and the Newton-Schulz step; the drift after it, which the one before
// it proves.
inline double rotate_basis(GramSvdSpace& s, const Factors& f) {
  const int64_t n = f.n, ld = f.ld;
  double* e = s.q;
  double* next = s.eigenvectors;
  // E^2 is symmetric: half the tiles, then R = I + E + E^2 / 2 over E.
  gemm({e, ld, e, 1, ld, next, ld}, n, n, n, {true, false});
  for (int64_t i = 0; i < n; ++i) {
    e[i * ld + i] = 1.0 + 0.5 * next[i * ld + i];
    for (int64_t j = i + 1; j < n; ++j) {
      e[i * ld + j] += 0.5 * next[i * ld + j];
      e[j * ld + i] += 0.5 * next[i * ld + j];
    }
  }
  gemm({e, ld, f.v, 1, ld, next, ld}, n, n, n);
  std::memcpy(f.v, next, static_cast<size_t>(ld * n) * sizeof(double));
  double drift = newton_schulz(s, f);
  // After a large E one step leaves V short of orthonormal; it squares the drift each time.
  if (drift > kDriftKept) drift = newton_schulz(s, f);
  return drift;
}

// -1 where a vector points away from the old one it is nearest to. old: (n, n) contiguous; sign: 2
// ld.
inline void nearest_signs(GramSvdSpace& s, const Factors& f, const double* old, double* sign) {
  double* wide = s.q;
  std::memset(wide, 0, static_cast<size_t>(f.ld * f.ld) * sizeof(double));
  for (int64_t i = 0; i < f.n; ++i)
    for (int64_t j = 0; j < f.n; ++j)
      wide[i * f.ld + j] = old[i * f.n + j];
  // product[r, j] = old_r . new_j
  gemm({f.v, f.ld, wide, f.ld, 1, s.product, f.ld}, f.n, f.n, f.n);
  column_signs(s.product, f.n, f.ld, sign + f.ld, sign);
}

inline int64_t track_workspace(const MatrixView& a) {
  return gram_svd_workspace(a) + (a.is_double() ? a.m * a.n : 0) +
         2 * leading_dimension(a.short_side());
}

// float64 input, scaled to about one by a power of two; others are squared in float64 as they are.
inline MatrixView scaled_copy(const MatrixView& a, double* copy, double* unscale) {
  *unscale = 1.0;
  if (!a.is_double()) return a;
  const double largest = largest_magnitude(a);
  if (!std::isfinite(largest)) {
    *unscale = std::nan("");
    return a;
  }
  const double scale = exact_scale(largest);
  copy_widened(static_cast<const double*>(a.data), a.m, a.n, a.stride_m, a.stride_n, copy, a.n);
  for (int64_t i = 0; i < a.m * a.n; ++i)
    copy[i] *= scale;
  *unscale = 1.0 / scale;
  return {copy, a.dtype, 1, a.m, a.n, 0, a.n, 1};
}

inline void load_basis(const TrackPlan& plan, const Factors& f) {
  std::memset(f.v, 0, static_cast<size_t>(f.ld * f.ld) * sizeof(double));
  for (int64_t i = 0; i < f.n; ++i)
    for (int64_t j = 0; j < f.n; ++j)
      f.v[i * f.ld + j] = plan.v[i * f.n + j];
}

inline void store_basis(const TrackPlan& plan, const Factors& f) {
  for (int64_t i = 0; i < f.n; ++i)
    for (int64_t j = 0; j < f.n; ++j)
      plan.v[i * f.n + j] = f.v[i * f.ld + j];
}

// Solves from scratch, keeps the old signs where there are any, and certifies the result.
inline bool solve_and_certify(const MatrixView& x, const TrackPlan& plan, GramSvdSpace& s,
                              const Factors& f, Certificate* c) {
  if (!solve_factors(x, s, f)) return false;
  double* sign = s.scratch;
  if (plan.warm)
    nearest_signs(s, f, plan.v, sign);
  else
    // The rule of svd: the largest entry of every u is positive.
    column_signs(x.m >= x.n ? f.w : f.v, x.m >= x.n ? f.rows : f.n, f.ld, sign + f.ld, sign);
  for (int64_t i = 0; i < f.n; ++i)
    for (int64_t j = 0; j < f.n; ++j)
      f.v[i * f.ld + j] *= sign[j];
  *c = certify(x, s, f);
  c->drift = measure_drift(s, f, s.scratch);
  return true;
}

inline bool track_typed(const MatrixView& x, const TrackPlan& plan, GramSvdSpace& s,
                        const Factors& f, double rounding, Certificate* c, Work* work) {
  *work = Work::kSolved;
  if (!plan.warm) return solve_and_certify(x, plan, s, f, c);
  load_basis(plan, f);
  double drift = measure_drift(s, f, s.scratch);
  for (int rotations = 0;; ++rotations) {
    *c = certify(x, s, f);
    c->drift = drift;
    // A matrix, or a state, that is not finite: the solver tells which.
    if (!std::isfinite(c->top)) return solve_and_certify(x, plan, s, f, c);
    if (largest_bound(*c, f, rounding) <= plan.tolerance * c->top) {
      *work = static_cast<Work>(rotations);
      return true;
    }
    const bool hopeful = rotations < 2 && drift < 1.0 &&
                         rotation_generator(s, f, s.scratch) <= kLargestRotation[rotations];
    if (!hopeful) return solve_and_certify(x, plan, s, f, c);
    drift = rotate_basis(s, f);
  }
}

template <class T>
inline void write_tracked(const MatrixView& a, const Factors& f, const Certificate& c,
                          double unscale, double rounding, const TrackPlan& plan,
                          const SvdOutput& out, double* work) {
  double* sign = work;
  int64_t* order = reinterpret_cast<int64_t*>(work + f.ld);
  descending_order(f.sigma, f.n, order);
  // Between denormal numbers, the rounding of the result is not relative.
  const double spacing = sizeof(T) == 8 ? 4.9406564584124654e-324 : 0x1p-149;
  for (int64_t j = 0; j < f.n; ++j)
    plan.bounds[j] = bound_of(c, f.sigma[order[j]], rounding) * unscale + spacing;
  normalise_and_complete(f, kNoise * c.top, work);
  for (int64_t j = 0; j < f.ld; ++j)
    sign[j] = 1.0;
  write_svd<T>(a, f, unscale, sign, out, order);
}

inline void track(const MatrixView& a, const TrackPlan& plan, const SvdOutput& out, double* work) {
  const int64_t n = a.short_side(), ld = leading_dimension(n);
  GramSvdSpace s = carve(a, work);
  const Factors f = {s.w, s.v, a.long_side(), n, ld, s.sigma};
  // Narrowing to the output's type, and the products here: n gamma_M for the cosines, n gamma_n for
  // the drift and for W (bounds.py), with room.
  const double rounding = (a.is_double() ? kEps : 0x1p-23) +
                          kEps * static_cast<double>(n) * static_cast<double>(64 + a.long_side());
  double unscale;
  const MatrixView x = scaled_copy(a, work + gram_svd_workspace(a), &unscale);
  Certificate c = {};
  Work done = Work::kNotFinite;
  if (std::isnan(unscale) || !track_typed(x, plan, s, f, rounding, &c, &done)) {
    fill_not_a_number(out, a.is_double(), a.m, a.n, n);
    fill(plan.bounds, n, std::nan(""));
    fill(plan.report, kTrackFields, std::nan(""));
    plan.report[0] = static_cast<double>(Work::kNotFinite);
    return;
  }
  store_basis(plan, f);
  plan.report[0] = static_cast<double>(done);
  plan.report[1] = c.cosines;
  plan.report[2] = c.drift;
  plan.report[3] = rounding;
  if (a.is_double())
    write_tracked<double>(a, f, c, unscale, rounding, plan, out, s.scratch);
  else
    write_tracked<float>(a, f, c, unscale, rounding, plan, out, s.scratch);
}

}  // namespace SK_ISA
}  // namespace spectral
