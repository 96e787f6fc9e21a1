// Blocks of l vectors of one length, side by side: row i of an array holds entry i of every vector,
// so that lanes run over the vectors. The products with A of block subspace iteration in the type
// of A, each reading A once, and orthonormal bases in float64.
//
// image:      Y = A Q    (m x l), 2 m n l flops
// coimage:    B = U^T A  (l x n), the same
// leftover:   ||A - U B||_F, the same
#pragma once

#include "cpu/common/cholesky.h"
#include "cpu/common/skinny_products.h"
#include "cpu/vectors/gram_svd.h"

namespace spectral {
namespace SK_ISA {

// A with contiguous rows, read in place. The last n - whole columns come from a copy padded to a
// whole vector, because products run over vectors.
template <class T>
struct RowMajor {
  const T* rows;
  int64_t m, n, ld;
  int64_t whole;
  const T* edge;  // (m, kEdge)
};

constexpr int64_t kEdge = 16;
constexpr int64_t kRowBlock = 48;  // rows of A that stay in cache: the tiles take six at a time

template <class T>
inline RowMajor<T> with_edge(const T* rows, int64_t m, int64_t n, int64_t ld, T* edge) {
  const int64_t whole = n / kEdge * kEdge, rest = n - whole;
  if (rest > 0)
    for (int64_t i = 0; i < m; ++i) {
      std::memset(edge + i * kEdge, 0, kEdge * sizeof(T));
      std::memcpy(edge + i * kEdge, rows + i * ld + whole, static_cast<size_t>(rest) * sizeof(T));
    }
  return {rows, m, n, ld, whole, edge};
}

// Sum of squares of a run in float64, the type of norms that mass is told from: what k values leave
// of ||A||_F^2 can be a millionth of it.
template <class T>
inline double squares_of(const T* x, int64_t n) {
  constexpr int64_t kRun = 4 * kLanes;
  Vd sum[4] = {};
  double total = 0.0;
  int64_t j = 0;
  for (; j + kRun <= n; j += kRun)
    for (int v = 0; v < 4; ++v) {
      const Vd y = load_widened(x + j + v * kLanes);
      sum[v] += y * y;
    }
  for (; j < n; ++j)
    total += static_cast<double>(x[j]) * static_cast<double>(x[j]);
  return total + horizontal_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// y (m x ld) = A q, q (n x ld); returns ||A||_F^2, from the same read.
template <class T>
inline double image(const RowMajor<T>& a, const T* q, int64_t ld, T* y) {
  double squares = 0.0;
  for (int64_t i = 0; i < a.m; i += kRowBlock) {
    const int64_t here = a.m - i < kRowBlock ? a.m - i : kRowBlock;
    for (int64_t r = i; r < i + here; ++r)
      squares += squares_of(a.rows + r * a.ld, a.n);
    accumulate<T>({a.rows + i * a.ld, a.ld, 1}, here, q, ld, a.n, ld, y + i * ld, ld);
  }
  return squares;
}

// b (l x ldb) = u^T A, u (m x ld); columns from n on are zero.
template <class T>
inline void coimage(const RowMajor<T>& a, const T* u, int64_t ld, int64_t l, T* b, int64_t ldb) {
  accumulate<T>({u, 1, ld}, l, a.rows, a.ld, a.m, a.whole, b, ldb);
  if (a.whole < a.n) accumulate<T>({u, 1, ld}, l, a.edge, kEdge, a.m, kEdge, b + a.whole, ldb);
}

// ||A - u b||_F. product: kRowBlock * ldb.
template <class T>
inline double leftover(const RowMajor<T>& a, const T* u, int64_t ld, int64_t l, const T* b,
                       int64_t ldb, T* product) {
  double squares = 0.0;
  for (int64_t i = 0; i < a.m; i += kRowBlock) {
    const int64_t here = a.m - i < kRowBlock ? a.m - i : kRowBlock;
    accumulate<T>({u + i * ld, ld, 1}, here, b, ldb, l, ldb, product, ldb);
    for (int64_t r = 0; r < here; ++r) {
      T* row = product + r * ldb;
      for (int64_t j = 0; j < a.n; ++j)
        row[j] -= a.rows[(i + r) * a.ld + j];
      squares += squares_of(row, a.n);
    }
  }
  return std::sqrt(squares);
}

// A float64 block to be made orthonormal: rows rounded up to kPad, those and columns past l zero.
struct Block {
  double* x;      // rows x ld
  double* spare;  // the same
  int64_t rows, l, ld;
  double *gram, *lower, *factor, *wide;  // ld x ld each; x before = x after * factor
};

inline int64_t block_size(int64_t rows, int64_t ld) {
  return round_up(rows, kPad) * ld;
}

// ||X^T X - I||_F; the Gram matrix is left in b.gram, tiles on and right of the diagonal.
inline double departure(const Block& b) {
  gemm({b.x, b.ld, b.x, b.ld, 1, b.gram, b.ld}, b.l, b.l, b.rows, {true, false});
  double squares = 0.0;
  for (int64_t i = 0; i < b.l; ++i) {
    const double own = b.gram[i * b.ld + i] - 1.0;
    squares += own * own;
    for (int64_t j = i + 1; j < b.l; ++j)
      squares += 2.0 * b.gram[i * b.ld + j] * b.gram[i * b.ld + j];
  }
  return std::sqrt(squares);
}

inline void swap_spare(Block& b) {
  double* x = b.x;
  b.x = b.spare;
  b.spare = x;
}

// factor <- step * factor.
inline void compose(const Block& b, const double* step) {
  gemm({b.factor, b.ld, step, 1, b.ld, b.wide, b.ld}, round_up(b.l, kGemmRows), b.l, b.l);
  std::memcpy(b.factor, b.wide, static_cast<size_t>(b.l * b.ld) * sizeof(double));
}

// One round of Cholesky QR (Yamamoto et al. 2015) from the Gram matrix in b.gram: X <- X L^-T;
// returns ||L^-1 D||_F, D the lengths of the columns, or 0 where it cannot be done.
inline double cholesky_round(Block& b) {
  const int64_t l = b.l, ld = b.ld;
  double* lengths = b.wide;
  for (int64_t i = 0; i < l; ++i) {
    lengths[i] = b.gram[i * ld + i];
    for (int64_t j = i + 1; j < l; ++j)
      b.gram[j * ld + i] = b.gram[i * ld + j];
  }
  if (!invert_cholesky(b.gram, b.lower, l, ld)) return 0.0;
  double condition = 0.0;
  for (int64_t i = 0; i < l; ++i)
    for (int64_t j = 0; j <= i; ++j)
      condition += b.lower[i * ld + j] * b.lower[i * ld + j] * lengths[j];
  std::memset(b.wide, 0, static_cast<size_t>(ld * ld) * sizeof(double));
  for (int64_t i = 0; i < l; ++i)
    for (int64_t j = 0; j <= i; ++j)
      b.wide[j * ld + i] = b.lower[i * ld + j];
  gemm({b.wide, ld, b.x, 1, ld, b.spare, ld}, round_up(b.rows, kPad), l, l);
  swap_spare(b);
  // L^T, by rows.
  for (int64_t i = 0; i < l; ++i)
    for (int64_t j = 0; j < l; ++j)
      b.lower[i * ld + j] = j >= i ? b.gram[j * ld + i] : 0.0;
  compose(b, b.lower);
  return std::sqrt(condition);
}

// For columns that are zero or dependent: the left singular vectors of X, completed.
inline bool solve_block(Block& b, GramSvdSpace& s) {
  const MatrixView view = {b.x, DType::kFloat64, 1, b.rows, b.l, 0, b.ld, 1};
  const Factors f = {s.w, s.v, b.rows, b.l, b.ld, s.sigma};
  if (!solve_factors(view, s, f)) return false;
  // X = W V^T: the factor is diag(sigma) V^T.
  double* step = b.lower;
  std::memset(step, 0, static_cast<size_t>(b.ld * b.ld) * sizeof(double));
  for (int64_t i = 0; i < b.l; ++i)
    for (int64_t j = 0; j < b.l; ++j)
      step[i * b.ld + j] = f.sigma[i] * f.v[j * b.ld + i];
  normalise_and_complete(f, kNoise * largest_of(f.sigma, f.n), s.scratch);
  std::memcpy(b.x, f.w, static_cast<size_t>(block_size(b.rows, b.ld)) * sizeof(double));
  compose(b, step);
  return true;
}

struct Orthonormality {
  double departure;  // ||X^T X - I||_F
  double condition;  // the largest ||L^-1 D||_F on the way
};

// X <- an orthonormal basis of its columns and, where they are too few, more; false where X is not
// finite. `enough`: a departure that needs no other round.
inline bool orthonormalise(Block& b, GramSvdSpace& s, double enough, Orthonormality* result) {
  std::memset(b.factor, 0, static_cast<size_t>(b.ld * b.ld) * sizeof(double));
  for (int64_t i = 0; i < b.l; ++i)
    b.factor[i * b.ld + i] = 1.0;
  *result = {departure(b), 1.0};
  for (int round = 0; round < 4 && !(result->departure <= enough); ++round) {
    if (!std::isfinite(result->departure)) return false;
    const double condition = cholesky_round(b);
    if (condition == 0.0 && !solve_block(b, s)) return false;
    result->condition = std::fmax(result->condition, condition);
    result->departure = departure(b);
  }
  return true;
}

}  // namespace SK_ISA
}  // namespace spectral
