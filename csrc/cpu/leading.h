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

#include "cpu/block.h"
#include "cpu/leading_bounds.h"

namespace spectral {
namespace SK_ISA {

constexpr int kWarmIterations = 3;
constexpr int kColdIterations = 16;
// The last half step may still move a value by this part of the tolerance: what the ones to come
// would add is a few times as much (measured on flat spectra, where it is most).
constexpr double kSettled = 0.1;
// A value that still moves by this part of it in the last warm iteration was not being followed.
constexpr double kUnsettled = 1.0;
// What float64 does to a factorisation, relative to ||A||_F: resolve_tail drops 1e-11.
constexpr double kFactorError = 1e-10;
// Of a gain that is left to an iteration more: less than this is no progress.
constexpr double kProgress = 0.5;

template <class T>
struct LeadingSpace {
  T *q, *y, *u, *b, *packed, *edge, *product;
  double *x, *spare, *gram, *lower, *factor, *wide;
  double *s, *g, *residual, *bound, *suffix, *sign, *settled, *least;
  int64_t* order;
  GramSvdSpace solver;
};

struct LeadingSizes {
  int64_t m, n, l, ldl, ldn, ld, longest;  // ldl, ldn of blocks in T, ld of float64 ones
};

inline LeadingSizes leading_sizes(const MatrixView& a, int64_t l) {
  const int64_t longest = a.long_side();
  return {a.m, a.n, l, round_up(l, 16), round_up(a.n, 16), leading_dimension(l), longest};
}

// A matrix of the shape of the larger factor that is ever solved.
inline MatrixView solver_view(const LeadingSizes& s) {
  return {nullptr, DType::kFloat64, 1, s.longest, s.l, 0, s.l, 1};
}

inline int64_t leading_workspace(const MatrixView& a, int64_t l) {
  const LeadingSizes s = leading_sizes(a, l);
  // Counted in doubles for either type.
  const int64_t blocks = (s.n + 2 * s.m) * s.ldl + s.l * s.ldn;
  const int64_t copies = s.m * (s.ldn + kEdge) + kRowBlock * s.ldn;
  return blocks + copies + 2 * block_size(s.longest, s.ld) + 4 * s.ld * s.ld + 9 * s.ld +
         gram_svd_workspace(solver_view(s));
}

template <class T>
inline LeadingSpace<T> carve_leading(const LeadingSizes& s, double* work) {
  LeadingSpace<T> space;
  auto take = [&work](int64_t count) {
    double* p = work;
    work += count;
    return p;
  };
  auto take_typed = [&](int64_t count) { return reinterpret_cast<T*>(take(count)); };
  space.x = take(block_size(s.longest, s.ld));
  space.spare = take(block_size(s.longest, s.ld));
  space.gram = take(s.ld * s.ld);
  space.lower = take(s.ld * s.ld);
  space.factor = take(s.ld * s.ld);
  space.wide = take(s.ld * s.ld);
  space.s = take(s.ld);
  space.g = take(s.ld);
  space.residual = take(s.ld);
  space.bound = take(s.ld);
  space.suffix = take(s.ld);
  space.sign = take(s.ld);
  space.settled = take(s.ld);
  space.least = take(s.ld);
  space.order = reinterpret_cast<int64_t*>(take(s.ld));
  space.q = take_typed(s.n * s.ldl);
  space.y = take_typed(s.m * s.ldl);
  space.u = take_typed(s.m * s.ldl);
  space.b = take_typed(s.l * s.ldn);
  space.product = take_typed(kRowBlock * s.ldn);
  space.edge = take_typed(s.m * kEdge);
  space.packed = take_typed(s.m * s.ldn);
  space.solver = carve(solver_view(s), work);
  return space;
}

// What one iteration found, beside the arrays of the space (sorted by value).
struct Iterated {
  double frobenius, gain, curable, error_norm;
};

template <class T>
struct Leading {
  const LeadingSizes sizes;
  const LeadingSpace<T> space;
  const LeadingPlan& plan;
  const RowMajor<T> a;
  const bool scaled;  // to about one; what is read in place may be out of the range of squares

  Block block(double* x, double* spare, int64_t rows) const {
    return {x, spare, rows, sizes.l, sizes.ld, space.gram, space.lower, space.factor, space.wide};
  }
  // The values and vectors of B^T = W P^T, W = V S by columns.
  Factors factors() const {
    return {space.solver.w, space.solver.v, sizes.n, sizes.l, sizes.ld, space.solver.sigma};
  }
};

// x (float64, padding zero) = rows x l entries of type T with leading dimension ld.
template <class T>
inline void widen_block(const T* from, int64_t rows, int64_t l, int64_t ld, double* x,
                        int64_t ldx) {
  std::memset(x, 0, static_cast<size_t>(block_size(rows, ldx)) * sizeof(double));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < l; ++j)
      x[i * ldx + j] = from[i * ld + j];
}

template <class T>
inline void narrow_block(const double* x, int64_t rows, int64_t l, int64_t ldx, T* to, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < l; ++j)
      to[i * ld + j] = static_cast<T>(x[i * ldx + j]);
    for (int64_t j = l; j < ld; ++j)
      to[i * ld + j] = T(0);
  }
}

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
  Orthonormality told;
  GramSvdSpace solver = p.space.solver;
  if (!orthonormalise(b, solver, orthonormal_enough<T>(), &told)) return false;
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
  BlockMeasures b = {s.l, p.plan.k, space.s, space.g, frobenius, std::sqrt(squared)};
  const double tolerance = p.plan.tolerance * space.s[0];
  Iterated found = {};
  found.frobenius = frobenius;
  for (bool subtracted = false;; subtracted = true) {
    found.gain = measure_residuals(b, e, space.residual);
    bound_values(b, e, space.residual, space.suffix, space.bound);
    // A difference of two nearly equal norms: what is left is found by subtracting the block.
    const bool enough = largest_of(space.bound, p.plan.k) <= tolerance;
    if (subtracted || enough || squared > 2.0 * noise) break;
    const double rest =
        leftover(p.a, space.u, s.ldl, s.l, space.b, s.ldn, space.product) * (1.0 + 32.0 * unit) +
        frobenius * (1.01 * unit * root * (l + 4.0) + left.departure);
    b.rest = std::fmin(b.rest, rest);
  }
  if (largest_of(space.bound, p.plan.k) > tolerance) {
    BlockMeasures ideal = b;
    ideal.g = space.s;
    measure_residuals(ideal, e, space.settled);
    bound_values(ideal, e, space.settled, space.suffix, space.least);
    found.curable = curable(b, space.bound, space.least, tolerance);
  }
  found.error_norm =
      std::fmin(std::sqrt(dot(space.bound, space.bound, p.plan.k)), b.rest + e.product * frobenius);
  return found;
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
  Orthonormality told;
  GramSvdSpace solver = space.solver;
  if (!orthonormalise(left, solver, orthonormal_enough<T>(), &told)) return false;
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
  *done = certify_block(p, frobenius, basis, told);
  // W becomes V.
  normalise_and_complete(f, kNoise * space.s[0], solver.scratch);
  return true;
}

// Iterates until the values have settled and no bound can be had below the tolerance.
template <class T>
inline bool settle(const Leading<T>& p, Iterated* done) {
  const LeadingSizes& s = p.sizes;
  const LeadingPlan& plan = p.plan;
  const T* start = static_cast<const T*>(plan.start);
  bool anew = !plan.warm;
  if (anew ? !start_block(p, start, start, 0, s.l)
           : !start_block(p, static_cast<const T*>(plan.block), static_cast<const T*>(plan.fresh),
                          plan.fresh_columns, plan.fresh_columns))
    return false;
  double before = HUGE_VAL;
  for (int count = 1;; ++count) {
    if (!iterate(p, done)) return false;
    const double least = done->frobenius / std::sqrt(static_cast<double>(s.m < s.n ? s.m : s.n));
    // sigma_1 >= ||A||_F / sqrt(r), whatever A is.
    const bool lost = !anew && p.space.s[0] < 0.5 * least;
    const double moved = done->gain, allowed = plan.tolerance * p.space.s[0];
    const bool settled = moved <= kSettled * allowed;
    const bool helps = done->curable > 0 && done->curable < kProgress * before;
    before = done->curable;
    anew = anew || lost || (count == kWarmIterations && moved > kUnsettled * allowed);
    plan.report[0] = anew ? 0.0 : count;
    plan.report[1] = count;
    if ((settled && !helps && !lost) || count >= (anew ? kColdIterations : kWarmIterations))
      return true;
    if (lost) {
      if (!start_block(p, start, start, 0, s.l)) return false;
    } else {
      narrow_block(p.factors().w, s.n, s.l, s.ld, p.space.q, s.ldl);
    }
  }
}

// Which old vector a new one is: that with |cos|^2 > 1/2, of which there can be but one; a number
// never used before where there is none. sign (l): towards the nearest old one.
template <class T>
inline void recognise(const Leading<T>& p) {
  const LeadingSizes& s = p.sizes;
  const Factors f = p.factors();
  const LeadingPlan& plan = p.plan;
  int64_t* next = plan.identities + s.l;
  if (!plan.warm) *next = 0;
  double* overlap = p.space.wide;
  if (plan.warm) {
    // overlap[j, i]: old vector j with the new one i.
    widen_block(static_cast<const T*>(plan.block), s.n, s.l, s.l, p.space.spare, s.ld);
    gemm({f.w, f.ld, p.space.spare, s.ld, 1, overlap, s.ld}, s.l, s.l, s.n);
  }
  int64_t* numbers = p.space.order;
  for (int64_t i = 0; i < s.l; ++i) {
    int64_t nearest = 0;
    double best = 0.0;
    for (int64_t j = 0; j < s.l && plan.warm; ++j)
      if (std::fabs(overlap[j * s.ld + i]) > std::fabs(best)) {
        best = overlap[j * s.ld + i];
        nearest = j;
      }
    numbers[i] = best * best > 0.5 ? plan.identities[nearest] : (*next)++;
    p.space.sign[i] = best < 0 ? -1.0 : 1.0;
  }
  std::memcpy(plan.identities, numbers, static_cast<size_t>(s.l) * sizeof(int64_t));
}

// Vectors and values of the last iteration to the caller, the block to its state. A zero matrix has
// no vectors of its own, and leaves the state as it is.
template <class T>
inline void write_leading(const Leading<T>& p, const Iterated& found, double unscale,
                          const SvdOutput& out) {
  const LeadingSizes& s = p.sizes;
  const LeadingSpace<T>& space = p.space;
  const LeadingPlan& plan = p.plan;
  const Factors f = p.factors();
  const bool zero = found.frobenius == 0.0;
  fill(space.sign, s.ld, 1.0);
  if (!zero || !plan.warm) recognise(p);
  // u = U p.
  gemm({f.v, f.ld, space.x, 1, s.ld, space.spare, s.ld}, round_up(s.m, kGemmRows), s.l, s.l);
  // The rule of svd at first: the largest entry of every u is positive.
  if (!plan.warm) column_signs(space.spare, s.m, s.ld, space.suffix, space.sign);
  for (int64_t j = 0; j < s.l; ++j)
    space.order[j] = j;
  write_rows(space.spare, s.m, plan.k, s.ld, space.order, space.sign, static_cast<T*>(out.ut));
  write_rows(f.w, s.n, plan.k, f.ld, space.order, space.sign, static_cast<T*>(out.vh));
  for (int64_t i = 0; i < s.n; ++i)
    for (int64_t j = 0; j < s.l; ++j)
      f.w[i * f.ld + j] *= space.sign[j];
  if (!zero) narrow_block(f.w, s.n, s.l, f.ld, static_cast<T*>(plan.block), s.l);

  // Between denormal numbers, the rounding of the result is not relative.
  const double spacing = sizeof(T) == 8 ? 4.9406564584124654e-324 : 0x1p-149;
  const double narrowing = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
  const auto k = static_cast<double>(plan.k);
  for (int64_t j = 0; j < plan.k; ++j) {
    static_cast<T*>(out.s)[j] = static_cast<T>(space.s[j] * unscale);
    plan.bounds[j] = (space.bound[j] + narrowing * space.s[j]) * unscale + spacing;
    plan.residuals[j] = (space.residual[j] + 3.0 * narrowing * found.frobenius) * unscale + spacing;
  }
  plan.report[2] = zero;
  plan.report[3] =
      (found.error_norm + narrowing * std::sqrt(k) * space.s[0]) * unscale + std::sqrt(k) * spacing;
}

template <class T>
inline bool leading_typed(const MatrixView& a, const LeadingPlan& plan, const SvdOutput& out,
                          double* work) {
  const LeadingSizes s = leading_sizes(a, plan.l);
  const LeadingSpace<T> space = carve_leading<T>(s, work);
  Iterated found = {};
  // In place where rows are contiguous and of this type, unless that turns out to be out of range.
  if (sizeof(T) == static_cast<size_t>(size_of(a.dtype)) && a.stride_n == 1) {
    const T* rows = static_cast<const T*>(a.data);
    const Leading<T> p = {s, space, plan, with_edge(rows, s.m, s.n, a.stride_m, space.edge), false};
    if (settle(p, &found)) {
      write_leading(p, found, 1.0, out);
      return true;
    }
  }
  const double largest = largest_magnitude(a);
  if (!std::isfinite(largest)) return false;
  const double scale = exact_scale(largest);
  copy_scaled(a, scale, space.packed, s.ldn);
  const Leading<T> p = {s, space, plan, {space.packed, s.m, s.n, s.ldn, s.ldn, nullptr}, true};
  if (!settle(p, &found)) return false;
  write_leading(p, found, 1.0 / scale, out);
  return true;
}

inline void leading(const MatrixView& a, const LeadingPlan& plan, const SvdOutput& out,
                    double* work) {
  const bool done = a.is_double() ? leading_typed<double>(a, plan, out, work)
                                  : leading_typed<float>(a, plan, out, work);
  if (done) return;
  fill_not_a_number(out, a.is_double(), a.m, a.n, plan.k);
  fill(plan.bounds, plan.k, std::nan(""));
  fill(plan.residuals, plan.k, std::nan(""));
  fill(plan.report, kLeadingFields, std::nan(""));
  plan.report[0] = -1.0;
}

}  // namespace SK_ISA
}  // namespace spectral
