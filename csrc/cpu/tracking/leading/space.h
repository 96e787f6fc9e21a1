// The memory of one update of a block of leading vectors (leading.h), and how blocks change type.
#pragma once

#include "cpu/tracking/kernels.h"
#include "cpu/tracking/leading/block.h"

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

}  // namespace SK_ISA
}  // namespace spectral
