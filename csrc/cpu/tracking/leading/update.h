// The k leading singular triplets of a matrix that changes a little from step to step: block
// subspace iteration with Rayleigh-Ritz, from the last block of l > k right vectors.
//
// One iteration: Y = A Q, U an orthonormal basis of Y (Cholesky QR in float64), B = U^T A, and
// B = P S V^T: sigma_i >= s_i (Cauchy), u = U p, and V is the next Q. A is read twice, in its own
// type; 4 m n l flops, and about 10 (m + n) l^2 in float64. Since A Q = U M exactly, what A leaves
// outside of the block vanishes on Q: that is what bounds the errors without another product
// (leading_bounds.h).
//
// An update iterates until the last half step has moved no value by more than a part of the
// tolerance. A block whose largest value is below a proved lower bound of sigma_1, or that does
// not settle, is started anew.
#pragma once

#include "cpu/tracking/leading/bounds.h"
#include "cpu/tracking/leading/output.h"

namespace spectral {
namespace SK_ISA {

// What float64 does to a factorisation, relative to ||A||_F: resolve_tail drops 1e-11.
constexpr double kFactorError = 1e-10;

// How far from orthonormal a block may be before it gets another round: float32 rounds anyway.
template <class T>
constexpr double orthonormal_enough() {
  return sizeof(T) == 4 ? 1e-7 : 1e-12;
}

// Q = the block, its last `fresh` columns replaced, orthonormal; false where it is not finite.
template <class T>
inline bool start_block(const Leading<T>& p, const T* block, const T* random, int64_t fresh,
                        int64_t random_ld) {
  const LeadingSizes& s = p.sizes;
  Block b = p.block(p.space.x, p.space.spare, s.n);
  widen_block(block, s.n, s.l, s.l, b.x, s.ld);
  for (int64_t i = 0; i < s.n; ++i)
    for (int64_t j = 0; j < fresh; ++j)
      b.x[i * s.ld + s.l - fresh + j] = random[i * random_ld + j];
  Orthonormality orthonormality;
  GramSvdSpace solver = p.space.solver;
  if (!orthonormalise(b, solver, orthonormal_enough<T>(), &orthonormality)) return false;
  narrow_block(b.x, s.n, s.l, s.ld, p.space.q, s.ldl);
  return true;
}

// gamma of sums over `depth` products as accumulate makes them (Higham 2002, section 3.1).
template <class T>
inline double accumulated_rounding(int64_t depth) {
  const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const auto blocks = static_cast<double>((depth + kAccumulateBlock - 1) / kAccumulateBlock);
  const double terms = static_cast<double>(depth < kAccumulateBlock ? depth : kAccumulateBlock);
  return 1.01 * unit * (terms + blocks + 1.0);
}

// Sorts the factors of B by value, columns of w and v with them.
inline void sort_factors(const Factors& f, int64_t* order, double* row) {
  descending_order(f.sigma, f.n, order);
  bool sorted = true;
  for (int64_t j = 0; j < f.n; ++j)
    sorted &= order[j] == j;
  if (sorted) return;
  auto permute = [&](double* x) {
    for (int64_t j = 0; j < f.n; ++j)
      row[j] = x[order[j]];
    std::memcpy(x, row, static_cast<size_t>(f.n) * sizeof(double));
  };
  for (int64_t i = 0; i < f.rows; ++i)
    permute(f.w + i * f.ld);
  for (int64_t i = 0; i < f.n; ++i)
    permute(f.v + i * f.ld);
  permute(f.sigma);
}

// Bounds of the iteration just done, from s, g and what the products may have lost.
template <class T>
inline Iterated certify_block(const Leading<T>& p, double frobenius, double basis,
                              const Orthonormality& left) {
  const LeadingSizes& s = p.sizes;
  const LeadingSpace<T>& space = p.space;
  const auto l = static_cast<double>(s.l);
  const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53, root = std::sqrt(l);
  const double solved = kFactorError + 8.0 * l * root * 0x1p-53 * left.condition;
  const BlockErrors e = {
      1.01 * root * (accumulated_rounding<T>(s.m) + unit) + left.departure + solved,
      1.01 * root * accumulated_rounding<T>(s.n) + left.departure + solved,
      basis + l * static_cast<double>(s.n) * 0x1p-52};
  double inside = 0.0;
  for (int64_t i = 0; i < s.l; ++i)
    inside += space.s[i] * space.s[i];
  const double least = std::fmax(0.0, std::sqrt(inside) - e.product * frobenius);
  const double noise = 2.0 * e.product * frobenius * frobenius;
  const double squared =
      std::fmax(0.0, frobenius * frobenius * (1.0 + 32.0 * unit) - least * least);
  BlockMeasures b = {s.l, p.job.k, space.s, space.g, frobenius, std::sqrt(squared)};
  const double tolerance = p.job.tolerance * space.s[0];
  Iterated iterated = {};
  iterated.frobenius = frobenius;
  for (bool subtracted = false;; subtracted = true) {
    iterated.gain = measure_residuals(b, e, space.residual);
    bound_values(b, e, space.residual, space.suffix, space.bound);
    // A difference of two nearly equal norms: what is left is found by subtracting the block.
    const bool enough = largest_of(space.bound, p.job.k) <= tolerance;
    if (subtracted || enough || squared > 2.0 * noise) break;
    const double rest =
        leftover(p.a, space.u, s.ldl, s.l, space.b, s.ldn, space.product) * (1.0 + 32.0 * unit) +
        frobenius * (1.01 * unit * root * (l + 4.0) + left.departure);
    b.rest = std::fmin(b.rest, rest);
  }
  if (largest_of(space.bound, p.job.k) > tolerance) {
    BlockMeasures ideal = b;
    ideal.g = space.s;
    measure_residuals(ideal, e, space.settled);
    bound_values(ideal, e, space.settled, space.suffix, space.least);
    iterated.curable = curable(b, space.bound, space.least, tolerance);
  }
  iterated.error_norm =
      std::fmin(std::sqrt(dot(space.bound, space.bound, p.job.k)), b.rest + e.product * frobenius);
  return iterated;
}

// One iteration from Q; false where A is not finite, or not scaled and out of range.
template <class T>
inline bool iterate(const Leading<T>& p, Iterated* done) {
  const LeadingSizes& s = p.sizes;
  const LeadingSpace<T>& space = p.space;
  Block right = p.block(space.x, space.spare, s.n);
  widen_block(space.q, s.n, s.l, s.ldl, right.x, s.ld);
  const double basis = departure(right);
  const double frobenius = std::sqrt(image(p.a, space.q, s.ldl, space.y));
  const bool ordinary = frobenius > 0x1p-40 && frobenius < 0x1p40;
  if (!(p.scaled ? std::isfinite(frobenius) : ordinary)) return false;
  Block left = p.block(space.x, space.spare, s.m);
  widen_block(space.y, s.m, s.l, s.ldl, left.x, s.ld);
  Orthonormality orthonormality;
  GramSvdSpace solver = space.solver;
  if (!orthonormalise(left, solver, orthonormal_enough<T>(), &orthonormality)) return false;
  // Kept for the left vectors: the other of the two is free from here on.
  if (left.x != space.x)
    std::memcpy(space.x, left.x, static_cast<size_t>(block_size(s.m, s.ld)) * sizeof(double));
  narrow_block(space.x, s.m, s.l, s.ld, space.u, s.ldl);
  coimage(p.a, space.u, s.ldl, s.l, space.b, s.ldn);
  const DType dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  const MatrixView b = {space.b, dtype, 1, s.n, s.l, 0, 1, s.ldn};
  const Factors f = p.factors();
  if (!solve_factors(b, solver, f)) return false;
  sort_factors(f, space.order, space.wide);
  std::memcpy(space.s, f.sigma, static_cast<size_t>(s.l) * sizeof(double));
  // Column i of M^T P, M = U^T A Q the factor of Y.
  gemm({f.v, s.ld, space.factor, s.ld, 1, space.wide, s.ld}, s.l, s.l, s.l);
  std::memset(space.g, 0, static_cast<size_t>(s.ld) * sizeof(double));
  for (int64_t i = 0; i < s.l; ++i)
    for (int64_t j = 0; j < s.l; ++j)
      space.g[j] += space.wide[i * s.ld + j] * space.wide[i * s.ld + j];
  for (int64_t j = 0; j < s.l; ++j)
    space.g[j] = std::sqrt(space.g[j]);
  *done = certify_block(p, frobenius, basis, orthonormality);
  // W becomes V.
  normalise_and_complete(f, kNoise * space.s[0], solver.scratch);
  return true;
}

// Iterates until the values have settled and no bound can be had below the tolerance.
template <class T>
inline bool settle(const Leading<T>& p, Iterated* done) {
  const LeadingSizes& s = p.sizes;
  const LeadingJob& job = p.job;
  const T* start = static_cast<const T*>(job.start);
  bool anew = !job.warm;
  if (anew ? !start_block(p, start, start, 0, s.l)
           : !start_block(p, static_cast<const T*>(job.block), static_cast<const T*>(job.fresh),
                          job.fresh_columns, job.fresh_columns))
    return false;
  double before = HUGE_VAL;
  for (int count = 1;; ++count) {
    if (!iterate(p, done)) return false;
    const double least = done->frobenius / std::sqrt(static_cast<double>(s.m < s.n ? s.m : s.n));
    // sigma_1 >= ||A||_F / sqrt(r), whatever A is.
    const bool lost = !anew && p.space.s[0] < 0.5 * least;
    const double moved = done->gain, allowed = job.tolerance * p.space.s[0];
    const bool settled = moved <= kSettled * allowed;
    const bool helps = done->curable > 0 && done->curable < kProgress * before;
    before = done->curable;
    anew = anew || lost || (count == kWarmIterations && moved > kUnsettled * allowed);
    job.report[0] = anew ? kSolvedCode : count;
    job.report[1] = count;
    if ((settled && !helps && !lost) || count >= (anew ? kColdIterations : kWarmIterations))
      return true;
    if (lost) {
      if (!start_block(p, start, start, 0, s.l)) return false;
    } else {
      narrow_block(p.factors().w, s.n, s.l, s.ld, p.space.q, s.ldl);
    }
  }
}

template <class T>
inline bool leading_typed(const LeadingJob& job, double* work) {
  const MatrixView& a = job.a;
  const LeadingSizes s = leading_sizes(a, job.l);
  Arena arena(work);
  const LeadingSpace<T> space = carve_leading<T>(s, arena);
  Iterated iterated = {};
  // In place where rows are contiguous and of this type, unless that turns out to be out of range.
  if (sizeof(T) == static_cast<size_t>(size_of(a.dtype)) && a.stride_n == 1) {
    const T* rows = static_cast<const T*>(a.data);
    const Leading<T> p = {s, space, job, with_edge(rows, s.m, s.n, a.stride_m, space.edge), false};
    if (settle(p, &iterated)) {
      write_leading(p, iterated, 1.0);
      return true;
    }
  }
  const double largest = largest_magnitude(a);
  if (!std::isfinite(largest)) return false;
  const double scale = exact_scale(largest);
  copy_scaled(a, scale, space.packed, s.ldn);
  const Leading<T> p = {s, space, job, {space.packed, s.m, s.n, s.ldn, s.ldn, nullptr}, true};
  if (!settle(p, &iterated)) return false;
  write_leading(p, iterated, 1.0 / scale);
  return true;
}

inline void leading(const LeadingJob& job, double* work) {
  const MatrixView& a = job.a;
  if (a.is_double() ? leading_typed<double>(job, work) : leading_typed<float>(job, work)) return;
  fill_not_a_number(job.out, a.is_double(), a.m, a.n, job.k);
  fill(job.bounds, job.k, std::nan(""));
  fill(job.residuals, job.k, std::nan(""));
  fill(job.report, kLeadingFields, std::nan(""));
  job.report[0] = kNotFiniteCode;
}

}  // namespace SK_ISA
}  // namespace spectral
