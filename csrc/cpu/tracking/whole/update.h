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

// ||E||_F / sqrt(n) beyond which the first, the second, ... rotation will not reach a useful
// tolerance and an exact solve is cheaper (measured on random and on training trajectories of
// 128 x 128 and 512 x 128).
constexpr double kLargestRotation[kRotations] = {0.2, 0.1, 0.02};

enum class Work { kKept = 0, kRotated = 1, kSolved = kSolvedCode, kNotFinite = kNotFiniteCode };

inline Work rotated(int times) {
  return static_cast<Work>(times);
}

// Sweeps in float32, where there are any, come before those in float64 and are over by then. What
// is left holds a scaled copy of a float64 matrix.
inline int64_t track_workspace(const MatrixView& a) {
  Arena solver_and_single, all;
  carve(a, solver_and_single);
  carve(a, all);
  carve_sweep<float>(a, solver_and_single);
  carve_sweep<double>(a, all);
  if (a.is_double()) all.take(a.m * a.n);
  return all.used() > solver_and_single.used() ? all.used() : solver_and_single.used();
}

// s.v (padding zero) = v, n x n of either type.
template <class V, class T>
inline void load_basis(const V* v, int64_t ld, const SweepSpace<T>& s) {
  std::memset(s.v, 0, static_cast<size_t>(s.ld * s.ld) * sizeof(T));
  copy_widened(v, s.n, s.n, ld, 1, s.v, s.ld);
}

// The state of the job = v, in the type of the state.
template <class T>
inline void store_basis(const TrackJob& job, const T* v, int64_t n, int64_t ld) {
  if (job.single)
    copy_widened(v, n, n, ld, 1, static_cast<float*>(job.v), n);
  else
    copy_widened(v, n, n, ld, 1, static_cast<double*>(job.v), n);
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
  load_basis(f.v, f.ld, sweep);
  const double drift = measure_drift(sweep);
  *c = certify(x, sweep, drift, narrowing);
  *job.drift = drift;
  store_basis(job, f.v, f.n, f.ld);
  if (job.single) {
    // The next update starts from a copy in float32.
    const double moved = 0x1p-24 * std::sqrt(static_cast<double>(f.n));
    *job.drift += 3.0 * moved;
  }
  return true;
}

// Sweeps in T until the tolerance is met; false where an exact solve is the way.
template <class T>
inline bool sweep_until(const LongSide<T>& x, const TrackJob& job, const SweepSpace<T>& s,
                        double narrowing, Certificate* c, Work* work) {
  load_basis(static_cast<const T*>(job.v), s.n, s);
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
    const Generator generator = rotation_generator(s);
    const double side = std::sqrt(static_cast<double>(s.n));
    if (!(generator.frobenius <= kLargestRotation[rotations] * side)) return false;
    drift = rotate_basis(s, generator, drift);
  }
  *job.drift = drift;
  if (*work != Work::kKept) store_basis(job, s.v, s.n, s.ld);
  return true;
}

// Out: the type of the results. s: buffers of their own, for columns that are not orthonormal.
template <class T, class Out>
inline void write_tracked(const TrackJob& job, const TrackedFactors<T>& tracked, double unscale,
                          GramSvdSpace& s) {
  const SvdOutput& out = job.out;
  const int64_t n = tracked.n, ld = tracked.ld;
  const Certificate& c = tracked.certificate;
  int64_t* order = reinterpret_cast<int64_t*>(s.d);
  descending_order(tracked.sigma, n, order);
  // Between denormal numbers, the rounding of the result is not relative.
  const double spacing = sizeof(Out) == 8 ? 4.9406564584124654e-324 : 0x1p-149;
  for (int64_t j = 0; j < n; ++j) {
    job.bounds[j] = bound_of(c, tracked.sigma[order[j]]) * unscale + spacing;
    job.identities[j] = job.names[order[j]];
    static_cast<Out*>(out.s)[j] = static_cast<Out>(tracked.sigma[order[j]] * unscale);
  }
  job.report[1] = error_norm(c) * unscale + spacing * std::sqrt(static_cast<double>(n));
  const bool tall = job.a.m >= job.a.n;
  Out* on_long = static_cast<Out*>(tall ? out.ut : out.vh);
  Out* on_short = static_cast<Out*>(tall ? out.vh : out.ut);
  T* factor = reinterpret_cast<T*>(s.e);
  for (int64_t j = 0; j < n; ++j)
    factor[j] = T(1);
  write_vectors(tracked.v, n, n, ld, order, factor, on_short);
  if (n > 0 && !are_orthonormal(tracked, tracked.sigma[order[n - 1]])) {
    settle(tracked, order, s);
    double* ones = reinterpret_cast<double*>(s.e);
    for (int64_t j = 0; j < n; ++j) {
      order[j] = j;
      ones[j] = 1.0;
    }
    return write_vectors(s.w, tracked.rows, n, leading_dimension(n), order, ones, on_long);
  }
  for (int64_t j = 0; j < n; ++j)
    factor[j] = static_cast<T>(1.0 / tracked.sigma[order[j]]);
  write_vectors(tracked.w, tracked.rows, n, ld, order, factor, on_long);
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
                       Arena arena) {
  const MatrixView& a = job.a;
  const SweepSpace<T> sweep = carve_sweep<T>(a, arena);
  const LongSide<T> x = long_side(a, scale, sweep.x);
  TrackedFactors<T> tracked = {sweep.w,  sweep.v,     sweep.rows, sweep.n,
                               sweep.ld, sweep.sigma, sweep.g,    {}};
  Work done = Work::kSolved;
  if (!sweep_until(x, job, sweep, narrowing, &tracked.certificate, &done)) return false;
  job.report[0] = static_cast<double>(done);
  if (a.is_double())
    write_tracked<T, double>(job, tracked, 1.0 / scale, s);
  else
    write_tracked<T, float>(job, tracked, 1.0 / scale, s);
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
  Arena arena(work);
  GramSvdSpace s = carve(a, arena);
  // Half an ulp of the results.
  const double narrowing = a.is_double() ? kEps : 0x1p-24;
  if (job.warm) {
    const bool done =
        job.single ? track_warm<float>(job, product_scale<float>(largest), narrowing, s, arena)
                   : track_warm<double>(job, product_scale<double>(largest), narrowing, s, arena);
    if (done) return;
  }
  const SweepSpace<double> sweep = carve_sweep<double>(a, arena);
  const double scale = a.is_double() ? product_scale<double>(largest) : 1.0;
  const MatrixView scaled = scaled_for_solver(a, scale, arena.take(a.is_double() ? a.m * a.n : 0));
  const Factors f = {s.w,    s.v, a.long_side(), a.short_side(), leading_dimension(a.short_side()),
                     s.sigma};
  TrackedFactors<double> tracked = {sweep.w,  sweep.v,     sweep.rows, sweep.n,
                                    sweep.ld, sweep.sigma, sweep.g,    {}};
  const LongSide<double> x = long_side(scaled, 1.0, sweep.x);
  if (!solve(scaled, x, job, s, f, sweep, narrowing, &tracked.certificate))
    return fill_not_finite(job);
  job.report[0] = static_cast<double>(Work::kSolved);
  if (a.is_double())
    write_tracked<double, double>(job, tracked, 1.0 / scale, s);
  else
    write_tracked<double, float>(job, tracked, 1.0 / scale, s);
}

}  // namespace SK_ISA
}  // namespace spectral
