// One warm-started update of a whole SVD: A has moved a little since V, its right vectors, were
// last right (its left ones where A is wide).
//
// The bounds decide: nothing but two products where the last V still satisfies the tolerance, a
// rotation or more where it does not, an exact solve beyond that. They are proved in
// spectral_kernels/tracking/bounds.py.
#pragma once

#include "cpu/tracking/whole/identities.h"
#include "cpu/tracking/whole/rotation.h"
#include "cpu/tracking/whole/vectors.h"

namespace spectral {
namespace SK_ISA {

constexpr int kRotations = 3;

// ||E||_F / sqrt(n) beyond which the first, the second, ... rotation will not reach a useful
// tolerance and an exact solve is cheaper (measured on random and on training trajectories of
// 128 x 128 and 512 x 128).
constexpr double kLargestRotation[kRotations] = {0.2, 0.1, 0.02};

enum class Work { kKept = 0, kRotated = 1, kSolved = kRotations + 1, kNotFinite = -1 };

inline Work rotated(int times) {
  return static_cast<Work>(times);
}

inline int64_t track_workspace(const MatrixView& a) {
  const int64_t single = a.is_double() ? 0 : sweep_workspace<float>(a);
  const int64_t both = sweep_workspace<double>(a) > single ? sweep_workspace<double>(a) : single;
  return gram_svd_workspace(a) + both + (a.is_double() ? a.m * a.n : 0);
}

template <class T>
inline void load_basis(const TrackJob& job, const SweepSpace<T>& s) {
  const T* v = static_cast<const T*>(job.v);
  std::memset(s.v, 0, static_cast<size_t>(s.ld * s.ld) * sizeof(T));
  for (int64_t i = 0; i < s.n; ++i)
    std::memcpy(s.v + i * s.ld, v + i * s.n, static_cast<size_t>(s.n) * sizeof(T));
}

template <class T>
inline void store_basis(const TrackJob& job, const double* v, int64_t n, int64_t ld) {
  T* out = static_cast<T*>(job.v);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      out[i * n + j] = static_cast<T>(v[i * ld + j]);
}

// From scratch in float64; false where the matrix is not finite.
inline bool solve(const MatrixView& a, const LongSide<double>& x, const TrackJob& job,
                  GramSvdSpace& s, const Factors& f, const SweepSpace<double>& sweep,
                  double narrowing, Certificate* c) {
  if (!solve_factors(a, s, f)) return false;
  if (job.warm)
    follow(job, s, f);
  else
    start(a, job, s, f);
  std::memset(sweep.v, 0, static_cast<size_t>(sweep.ld * sweep.ld) * sizeof(double));
  for (int64_t i = 0; i < f.n; ++i)
    std::memcpy(sweep.v + i * sweep.ld, f.v + i * f.ld, static_cast<size_t>(f.n) * sizeof(double));
  const double drift = measure_drift(sweep);
  *c = certify(x, sweep, drift, narrowing);
  *job.drift = drift;
  if (job.single) {
    // The copy in float32 that the next update starts from.
    store_basis<float>(job, f.v, f.n, f.ld);
    const double moved = 0x1p-24 * std::sqrt(static_cast<double>(f.n));
    *job.drift += 3.0 * moved;
  } else {
    store_basis<double>(job, f.v, f.n, f.ld);
  }
  return true;
}

// Sweeps in T until the tolerance is met; false where an exact solve is the way.
template <class T>
inline bool sweep_until(const LongSide<T>& x, const TrackJob& job, const SweepSpace<T>& s,
                        double narrowing, Certificate* c, Work* work) {
  load_basis(job, s);
  double drift = *job.drift;
  for (int rotations = 0;; ++rotations) {
    *c = certify(x, s, drift, narrowing);
    // A matrix, or a state, that is not finite: the solver tells which.
    if (!std::isfinite(c->top)) return false;
    if (largest_bound(*c, s.sigma, s.n) <= job.tolerance * c->top) {
      *work = rotated(rotations);
      break;
    }
    if (rotations == kRotations) return false;
    const Generator found = rotation_generator(s);
    const double side = std::sqrt(static_cast<double>(s.n));
    if (!(found.frobenius <= kLargestRotation[rotations] * side)) return false;
    drift = rotate_basis(s, found, drift);
  }
  *job.drift = drift;
  if (*work != Work::kKept)
    for (int64_t i = 0; i < s.n; ++i)
      std::memcpy(static_cast<T*>(job.v) + i * s.n, s.v + i * s.ld,
                  static_cast<size_t>(s.n) * sizeof(T));
  return true;
}

// Out: the type of the results. s: buffers of their own, for columns that are not orthonormal.
template <class T, class Out>
inline void write_tracked(const TrackJob& job, const Found<T>& found, double unscale,
                          GramSvdSpace& s) {
  const SvdOutput& out = job.out;
  const int64_t n = found.n, ld = found.ld;
  const Certificate& c = found.certificate;
  int64_t* order = reinterpret_cast<int64_t*>(s.d);
  descending_order(found.sigma, n, order);
  // Between denormal numbers, the rounding of the result is not relative.
  const double spacing = sizeof(Out) == 8 ? 4.9406564584124654e-324 : 0x1p-149;
  for (int64_t j = 0; j < n; ++j) {
    job.bounds[j] = bound_of(c, found.sigma[order[j]]) * unscale + spacing;
    job.identities[j] = job.names[order[j]];
    static_cast<Out*>(out.s)[j] = static_cast<Out>(found.sigma[order[j]] * unscale);
  }
  job.report[1] = error_norm(c) * unscale + spacing * std::sqrt(static_cast<double>(n));
  const bool tall = job.a.m >= job.a.n;
  Out* on_long = static_cast<Out*>(tall ? out.ut : out.vh);
  Out* on_short = static_cast<Out*>(tall ? out.vh : out.ut);
  T* factor = reinterpret_cast<T*>(s.e);
  for (int64_t j = 0; j < n; ++j)
    factor[j] = T(1);
  write_vectors(found.v, n, n, ld, order, factor, on_short);
  if (n > 0 && !are_orthonormal(found, found.sigma[order[n - 1]])) {
    settle(found, order, s);
    double* ones = reinterpret_cast<double*>(s.e);
    for (int64_t j = 0; j < n; ++j) {
      order[j] = j;
      ones[j] = 1.0;
    }
    return write_vectors(s.w, found.rows, n, leading_dimension(n), order, ones, on_long);
  }
  for (int64_t j = 0; j < n; ++j)
    factor[j] = static_cast<T>(1.0 / found.sigma[order[j]]);
  write_vectors(found.w, found.rows, n, ld, order, factor, on_long);
}

inline void fill_not_finite(const TrackJob& job) {
  const int64_t n = job.a.short_side();
  fill_not_a_number(job.out, job.a.is_double(), job.a.m, job.a.n, n);
  fill(job.bounds, n, std::nan(""));
  fill(job.identities, n, int64_t{-1});
  job.report[0] = static_cast<double>(Work::kNotFinite);
  job.report[1] = std::nan("");
}

template <class T>
inline bool track_warm(const TrackJob& job, double scale, double narrowing, GramSvdSpace& s,
                       double* work) {
  const MatrixView& a = job.a;
  const SweepSpace<T> sweep = carve_sweep<T>(a, work);
  const LongSide<T> x = long_side(a, scale, sweep.x);
  Found<T> found = {sweep.w, sweep.v, sweep.rows, sweep.n, sweep.ld, sweep.sigma, sweep.g, {}};
  Work done = Work::kSolved;
  if (!sweep_until(x, job, sweep, narrowing, &found.certificate, &done)) return false;
  job.report[0] = static_cast<double>(done);
  if (a.is_double())
    write_tracked<T, double>(job, found, 1.0 / scale, s);
  else
    write_tracked<T, float>(job, found, 1.0 / scale, s);
  return true;
}

// The matrix as the solver takes it: float64 input scaled to about one, others as they are, since
// their squares fit float64.
inline MatrixView scaled_for_solver(const MatrixView& a, double scale, double* copy) {
  if (!a.is_double() || scale == 1.0) return a;
  copy_widened(static_cast<const double*>(a.data), a.m, a.n, a.stride_m, a.stride_n, copy, a.n);
  for (int64_t i = 0; i < a.m * a.n; ++i)
    copy[i] *= scale;
  return {copy, a.dtype, 1, a.m, a.n, 0, a.n, 1};
}

inline void track(const TrackJob& job, double* work) {
  const MatrixView& a = job.a;
  const double largest = largest_magnitude(a);
  if (!std::isfinite(largest)) return fill_not_finite(job);
  GramSvdSpace s = carve(a, work);
  double* sweep_work = work + gram_svd_workspace(a);
  // Half an ulp of the results.
  const double narrowing = a.is_double() ? kEps : 0x1p-24;
  if (job.warm) {
    const bool done =
        job.single
            ? track_warm<float>(job, product_scale<float>(largest), narrowing, s, sweep_work)
            : track_warm<double>(job, product_scale<double>(largest), narrowing, s, sweep_work);
    if (done) return;
  }
  const SweepSpace<double> sweep = carve_sweep<double>(a, sweep_work);
  const double scale = a.is_double() ? product_scale<double>(largest) : 1.0;
  const MatrixView scaled = scaled_for_solver(a, scale, sweep_work + sweep_workspace<double>(a));
  const Factors f = {s.w,    s.v, a.long_side(), a.short_side(), leading_dimension(a.short_side()),
                     s.sigma};
  Found<double> found = {sweep.w, sweep.v, sweep.rows, sweep.n, sweep.ld, sweep.sigma, sweep.g, {}};
  const LongSide<double> x = long_side(scaled, 1.0, sweep.x);
  if (!solve(scaled, x, job, s, f, sweep, narrowing, &found.certificate))
    return fill_not_finite(job);
  job.report[0] = static_cast<double>(Work::kSolved);
  if (a.is_double())
    write_tracked<double, double>(job, found, 1.0 / scale, s);
  else
    write_tracked<double, float>(job, found, 1.0 / scale, s);
}

}  // namespace SK_ISA
}  // namespace spectral
