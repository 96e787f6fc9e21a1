// The memory of one update of a block of leading vectors (leading.h), and how blocks change type.
#pragma once

#include "cpu/tracking/kernels.h"
#include "cpu/tracking/leading/subspace_products.h"

namespace spectral {
namespace SK_ISA {

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

template <class T>
inline LeadingSpace<T> carve_leading(const LeadingSizes& s, Arena& arena) {
  LeadingSpace<T> space;
  space.x = arena.take(block_size(s.longest, s.ld));
  space.spare = arena.take(block_size(s.longest, s.ld));
  space.gram = arena.take(s.ld * s.ld);
  space.lower = arena.take(s.ld * s.ld);
  space.factor = arena.take(s.ld * s.ld);
  space.wide = arena.take(s.ld * s.ld);
  space.s = arena.take(s.ld);
  space.g = arena.take(s.ld);
  space.residual = arena.take(s.ld);
  space.bound = arena.take(s.ld);
  space.suffix = arena.take(s.ld);
  space.sign = arena.take(s.ld);
  space.settled = arena.take(s.ld);
  space.least = arena.take(s.ld);
  space.order = arena.take<int64_t>(s.ld);
  space.q = arena.take<T>(s.n * s.ldl);
  space.y = arena.take<T>(s.m * s.ldl);
  space.u = arena.take<T>(s.m * s.ldl);
  space.b = arena.take<T>(s.l * s.ldn);
  space.product = arena.take<T>(kRowBlock * s.ldn);
  space.edge = arena.take<T>(s.m * kEdge);
  space.packed = arena.take<T>(s.m * s.ldn);
  space.solver = carve(solver_view(s), arena);
  return space;
}

inline int64_t leading_workspace(const MatrixView& a, int64_t l) {
  Arena arena;
  a.is_double() ? (void)carve_leading<double>(leading_sizes(a, l), arena)
                : (void)carve_leading<float>(leading_sizes(a, l), arena);
  return arena.used();
}

// What one iteration found, beside the arrays of the space (sorted by value).
struct Iterated {
  double frobenius, gain, curable, error_norm;
};

template <class T>
struct Leading {
  const LeadingSizes sizes;
  const LeadingSpace<T> space;
  const LeadingJob& job;
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
  copy_widened(from, rows, l, ld, 1, x, ldx);
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

}  // namespace SK_ISA
}  // namespace spectral
