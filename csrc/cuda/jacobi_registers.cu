// The SVD of matrices with both sides up to 32, in registers: one-sided Jacobi (Hestenes 1958;
// Golub & Van Loan, section 8.6.3) rotates pairs of columns of W = X V until all are orthogonal;
// then w_j = sigma_j u_j. X is A (m x n), or A^T where A is wide.
//
// A lane owns one column of W and of V, in registers that only constants index; kSide lanes own a
// matrix, so a warp has 32 / kSide of them. A pair exchanges columns by shuffles, and both partners
// derive the same rotation from the same sums. No shared memory, no barrier.
//
// Reads the m n elements of A and writes (m + n + 1) r numbers. A sweep is n - 1 rounds, each of
// 2 kSide + 1 shuffles and 7 kSide multiply-adds of a warp (kSide + 1 and 5 kSide without vectors;
// a shuffle of float64 is two). 5 to 9 sweeps are usual; the last one finds nothing to turn.
#include "cuda/jacobi_columns.cuh"

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

template <class T, int kSide, bool kVectors>
SK_DEVICE void svd_registers(const SvdParams& p) {
  constexpr int kMatrices = kWarp / kSide;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, column = lane % kSide;
  const int64_t warp =
      static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  // The whole warp leaves together; from here on all of it takes part in every shuffle.
  if (warp * kMatrices >= p.batch) return;
  const int64_t matrix = warp * kMatrices + lane / kSide;
  const SvdShape shape = shape_of(p);
  const bool mine = matrix < p.batch && column < shape.columns;

  T x[kSide], v[kSide], largest = 0;
  bool finite = true;
  const int64_t start = matrix * p.stride_b + column * shape.stride_column;
  SK_UNROLL
  for (int i = 0; i < kSide; ++i) {
    x[i] = mine && i < shape.rows ? load_as<T>(p.a, p.code, start + i * shape.stride_row) : T(0);
    v[i] = i == column ? T(1) : T(0);
    finite = finite && isfinite(x[i]);
    largest = fmax(largest, fabs(x[i]));
  }
  // A matrix with NaN or Inf goes on as zeros, which keeps the warp together and sweeps nothing.
  const unsigned neighbours = (kFullWarp >> (kWarp - kSide)) << (lane - column);
  const bool bad = (__ballot_sync(kFullWarp, !finite) & neighbours) != 0;
  const int exponent = bad ? 0 : binary_exponent(group_max<kSide>(largest));
  const PowerOfTwo<T> scale(-exponent);
  SK_UNROLL
  for (int i = 0; i < kSide; ++i)
    x[i] = bad ? T(0) : scale.times(x[i]);

  sweep_until_orthogonal<T, kSide, kVectors>(x, v, shape.columns);

  // Descending, equal ones in the order of their columns.
  const T sigma = column_norm(x);
  int rank = 0;
  for (int k = 0; k < shape.columns; ++k) {
    const T other = __shfl_sync(kFullWarp, sigma, lane - column + k);
    rank += other > sigma || (other == sigma && k < column);
  }
  const int64_t first = matrix * shape.columns + rank;
  if (mine) static_cast<T*>(p.s)[first] = bad ? not_a_number<T>() : ldexp(sigma, exponent);
  if (!kVectors) return;
  complete_columns(x, sigma, shape);
  if (!mine) return;
  // Scattered words: a lane writes a row of the output. 5 % of the traffic of the sweeps.
  T* const of_x = static_cast<T*>(shape.tall ? p.ut : p.vh) + first * shape.rows;
  T* const of_v = static_cast<T*>(shape.tall ? p.vh : p.ut) + first * shape.columns;
  const T unit = bad ? not_a_number<T>() : column_sign(x, v, shape.tall);
  SK_UNROLL
  for (int i = 0; i < kSide; ++i) {
    if (i < shape.rows) of_x[i] = unit * x[i];
    if (i < shape.columns) of_v[i] = unit * v[i];
  }
}

// Named by element type and side: svd_registers_f32_8 and so on, for n up to 8, 16 and 32.
#define SK_REGISTERS(suffix, T, kSide)                              \
  SK_KERNEL(svd_registers_##suffix##_##kSide, SvdParams, 128) {     \
    svd_registers<T, kSide, true>(p);                               \
  }                                                                 \
  SK_KERNEL(svdvals_registers_##suffix##_##kSide, SvdParams, 128) { \
    svd_registers<T, kSide, false>(p);                              \
  }

SK_REGISTERS(f32, float, 8)
SK_REGISTERS(f32, float, 16)
SK_REGISTERS(f32, float, 32)
SK_REGISTERS(f64, double, 8)
SK_REGISTERS(f64, double, 16)
SK_REGISTERS(f64, double, 32)

}  // namespace spectral
