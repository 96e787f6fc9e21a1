// The SVD of matrices with both sides up to 32, in registers: one-sided Jacobi (Hestenes 1958;
// Golub & Van Loan, section 8.6.3) rotates pairs of columns of W = X V until all are orthogonal;
// then w_j = sigma_j u_j. X is A (m x n), or A^T where A is wide.
//
// A lane owns one column of W and of V, in registers that only constants index; kSide lanes own a
// matrix, so a warp has 32 / kSide of them. A pair exchanges columns by shuffles, and both partners
// derive the same rotation from the same sums. No shared memory, no barrier.
//
// Reads the m n elements of A and writes (m + n + 1) r numbers. A sweep is n - 1 rounds, each of
// 2 kSide + 1 shuffles and 6 kSide multiply-adds of a warp (kSide + 1 and 4 kSide without vectors;
// a shuffle of float64 is two). 5 to 9 sweeps are usual; the last one finds nothing to turn.
#include "cuda/jacobi_columns.cuh"
#include "cuda/svd_jobs.cuh"

namespace spectral {

// One round: x and v of this lane's column after it has met the column of `lane`; true where it
// turned.
template <class T, int kSide, bool kVectors>
SK_DEVICE bool meet(T (&x)[kSide], T (&v)[kSide], int lane, bool paired, bool lower) {
  T y[kSide], own = 0, product = 0;
  SK_UNROLL
  for (int i = 0; i < kSide; ++i) {
    y[i] = __shfl_sync(kFullWarp, x[i], lane);
    own = fma(x[i], x[i], own);
    product = fma(x[i], y[i], product);
  }
  const T other = __shfl_sync(kFullWarp, own, lane);
  const JacobiRotation<T> r =
      jacobi_rotation(lower ? own : other, lower ? other : own, paired ? product : T(0));
  if (!__any_sync(kFullWarp, r.active)) return false;
  // The upper column turns the other way: y + s (x - h y).
  const T s = lower ? r.s : -r.s, h = lower ? r.h : -r.h;
  SK_UNROLL
  for (int i = 0; i < kSide; ++i)
    x[i] = rotated(x[i], y[i], s, h);
  if (kVectors) {
    SK_UNROLL
    for (int i = 0; i < kSide; ++i)
      v[i] = rotated(v[i], __shfl_sync(kFullWarp, v[i], lane), s, h);
  }
  return r.active;
}

// Sweeps until no matrix of the warp turns a column any more. Lanes without a column hold zeros and
// stay alone.
template <class T, int kSide, bool kVectors>
SK_DEVICE void sweep_until_orthogonal(T (&x)[kSide], T (&v)[kSide], int columns) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, column = lane % kSide;
  const int players = columns + columns % 2;
  bool turned = true;
  for (int sweep = 0; sweep < kMostSweeps && __any_sync(kFullWarp, turned); ++sweep) {
    turned = false;
    for (int round = 0; round < players - 1; ++round) {
      int partner = column < players ? opponent(column, round, players) : column;
      if (partner >= columns || column >= columns) partner = column;
      turned |= meet<T, kSide, kVectors>(x, v, lane - column + partner, partner != column,
                                         column < partner);
    }
  }
}

// This lane's column of X 2^-exponent, with max|a| in [0.5, 1) for the matrix; false, in all lanes
// of the matrix, where it is not finite. It goes on as zeros then, which keeps the warp together.
template <class T, int kSide>
SK_DEVICE bool load_column(const SvdMatrix<T>& a, bool mine, T (&x)[kSide], int& exponent) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, column = lane % kSide;
  T largest = 0;
  bool finite = true;
  SK_UNROLL
  for (int i = 0; i < kSide; ++i) {
    x[i] = mine && i < a.rows ? a.entry(i, column) : T(0);
    finite = finite && isfinite(x[i]);
    largest = fmax(largest, fabs(x[i]));
  }
  const unsigned neighbours = (kFullWarp >> (kWarp - kSide)) << (lane - column);
  finite = (__ballot_sync(kFullWarp, !finite) & neighbours) == 0;
  largest = group_max<kSide>(largest);
  exponent = finite ? binary_exponent(largest) : 0;
  const PowerOfTwo<T> scale(-exponent);
  SK_UNROLL
  for (int i = 0; i < kSide; ++i)
    x[i] = finite ? scale.times(x[i]) : T(0);
  return finite;
}

template <class T, int kSide, bool kVectors>
SK_DEVICE void svd_registers(const SvdParams& p) {
  constexpr int kMatrices = kWarp / kSide;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, column = lane % kSide;
  const int64_t warp =
      static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  const int64_t index = warp * kMatrices + lane / kSide;
  const SvdMatrix<T> given = matrix_of<T>(p, index);
  // The whole warp leaves together; from here on all of it takes part in every shuffle.
  if (!__any_sync(kFullWarp, given.there)) return;
  const bool mine = given.there && column < given.columns;
  T x[kSide], v[kSide];
  int exponent;
  const bool finite = load_column(given, mine, x, exponent);
  SK_UNROLL
  for (int i = 0; i < kSide; ++i)
    v[i] = i == column ? T(1) : T(0);

  sweep_until_orthogonal<T, kSide, kVectors>(x, v, given.columns);

  // Found again: kept through the sweeps, its addresses cost registers that float64 has not.
  const SvdMatrix<T> a = matrix_of<T>(p, index);
  // Descending, equal ones in the order of their columns.
  const T sigma = column_norm(x);
  int rank = 0;
  for (int k = 0; k < a.columns; ++k) {
    const T other = __shfl_sync(kFullWarp, sigma, lane - column + k);
    rank += other > sigma || (other == sigma && k < column);
  }
  if (mine) a.s[rank] = finite ? ldexp(sigma, exponent) : not_a_number<T>();
  if (!kVectors) return;
  complete_columns(x, sigma, a.rows, a.columns);
  if (!mine) return;
  // Scattered words, because a lane writes a row: little beside the sweeps.
  const T unit = finite ? column_sign(x, v, a.tall) : not_a_number<T>();
  SK_UNROLL
  for (int i = 0; i < kSide; ++i) {
    if (i < a.rows) a.of_w[rank * a.rows + i] = unit * x[i];
    if (i < a.columns) a.of_v[rank * a.columns + i] = unit * v[i];
  }
}

// Named by element type and side, for sides up to 8, 16 and 32. Values alone of the largest have a
// faster kernel, bidiagonal.cu.
SK_KERNEL(svd_registers_f32_8, SvdParams, 128) {
  svd_registers<float, 8, true>(p);
}
SK_KERNEL(svdvals_registers_f32_8, SvdParams, 128) {
  svd_registers<float, 8, false>(p);
}
SK_KERNEL(svd_registers_f32_16, SvdParams, 128) {
  svd_registers<float, 16, true>(p);
}
SK_KERNEL(svdvals_registers_f32_16, SvdParams, 128) {
  svd_registers<float, 16, false>(p);
}
SK_KERNEL(svd_registers_f32_32, SvdParams, 128) {
  svd_registers<float, 32, true>(p);
}
SK_KERNEL(svd_registers_f64_8, SvdParams, 128) {
  svd_registers<double, 8, true>(p);
}
SK_KERNEL(svdvals_registers_f64_8, SvdParams, 128) {
  svd_registers<double, 8, false>(p);
}
SK_KERNEL(svd_registers_f64_16, SvdParams, 128) {
  svd_registers<double, 16, true>(p);
}
SK_KERNEL(svdvals_registers_f64_16, SvdParams, 128) {
  svd_registers<double, 16, false>(p);
}
SK_KERNEL(svd_registers_f64_32, SvdParams, 128) {
  svd_registers<double, 32, true>(p);
}

}  // namespace spectral
