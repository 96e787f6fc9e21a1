// Householder reduction of a symmetric matrix to tridiagonal form, Q^T G Q = T (Golub & Van Loan,
// Algorithm 8.3.1), in one pass over the triangle per step.
//
// Step j needs y = G v with G already updated by the reflector of step j - 1. Doing the rank-two
// update G -= u w^T + w u^T while the product is formed reads and writes every element once instead
// of twice. G is stored by columns, ld a multiple of the vector length, rows i >= j of column j,
// the diagonal blocks full and symmetric. After the call column j holds its reflector v in rows >
// j. Flops: 4/3 n^3; bytes: 8/3 n^3.
#pragma once

#include "cpu/common/simd.h"

namespace spectral {
namespace SK_ISA {

// As many columns at a time as the registers can hold coefficients for.
constexpr int kColumns = kLanes == 8 ? 4 : 2;

struct RankTwo {
  const double* u;
  const double* w;
};

// Rows [row, n) of kColumns columns from `col`: update, y += G v, and y[col..] += G^T v.
inline void update_and_multiply(double* g, int64_t ld, int64_t n, int64_t col, int64_t row,
                                RankTwo pending, const double* v, double* y) {
  Vd dot[kColumns], uc[kColumns], wc[kColumns], vc[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    dot[c] = Vd{};
    uc[c] = splat(pending.u[col + c]);
    wc[c] = splat(pending.w[col + c]);
    vc[c] = splat(v[col + c]);
  }
  for (int64_t i = row; i < n; i += kLanes) {
    const Vd u = load(pending.u + i), w = load(pending.w + i), vi = load(v + i);
    Vd sum = load(y + i);
    for (int c = 0; c < kColumns; ++c) {
      double* p = g + (col + c) * ld + i;
      const Vd a = load(p) - u * wc[c] - w * uc[c];
      store(p, a);
      sum += a * vc[c];
      dot[c] += a * vi;
    }
    store(y + i, sum);
  }
  for (int c = 0; c < kColumns; ++c)
    y[col + c] += horizontal_sum(dot[c]);
}

// The diagonal block of kLanes columns is full, so its rows are plain columns: no dots.
inline void update_and_multiply_block(double* g, int64_t ld, int64_t col, RankTwo pending,
                                      const double* v, double* y) {
  const Vd u = load(pending.u + col), w = load(pending.w + col);
  Vd sum = load(y + col);
  for (int c = 0; c < kLanes; ++c) {
    double* p = g + (col + c) * ld + col;
    const Vd a = load(p) - u * pending.w[col + c] - w * pending.u[col + c];
    store(p, a);
    sum += a * v[col + c];
  }
  store(y + col, sum);
}

// Reflector with (I - tau v v^T) x = beta e_1, v[0] = 1; x becomes v (LAPACK's larfg). A tail whose
// square is not above `negligible` counts as zero: squares near underflow would give a v and a tau
// that do not belong together, and so no reflector at all.
inline double householder(double* x, int64_t n, double negligible, double* beta) {
  const double tail = dot(x + 1, x + 1, n - 1);
  const double alpha = x[0];
  *beta = alpha;
  x[0] = 1.0;
  if (tail <= negligible) return 0.0;
  const double norm = std::sqrt(alpha * alpha + tail);
  *beta = alpha > 0 ? -norm : norm;
  const double scale = 1.0 / (alpha - *beta);
  for (int64_t i = 1; i < n; ++i)
    x[i] *= scale;
  return (*beta - alpha) / *beta;
}

inline double trace(const double* g, int64_t ld, int64_t n) {
  double sum = 0.0;
  for (int64_t j = 0; j < n; ++j)
    sum += g[j * ld + j];
  return sum;
}

// n x n positive semidefinite matrix in g (ld >= round_up(n, kLanes), padding zero); d has n, e and
// tau n - 1 entries. work: 4 * ld doubles.
inline void tridiagonalise(double* g, int64_t ld, int64_t n, double* d, double* e, double* tau,
                           double* work) {
  const int64_t padded = round_up(n, kLanes);
  double* u = work;
  double* w = work + ld;
  double* v = work + 2 * ld;
  double* y = work + 3 * ld;
  std::memset(work, 0, static_cast<size_t>(4 * ld) * sizeof(double));
  const double negligible = 1e-60 * trace(g, ld, n) * trace(g, ld, n);
  for (int64_t j = 0; j < n; ++j) {
    double* column = g + j * ld;
    for (int64_t i = j; i < n; ++i)
      column[i] -= u[i] * w[j] + w[i] * u[j];
    d[j] = column[j];
    if (j == n - 1) break;
    // The column is done: what is behind it must not see the update again.
    u[j] = w[j] = 0.0;
    tau[j] = householder(column + j + 1, n - j - 1, negligible, &e[j]);
    const int64_t first = (j + 1) / kLanes * kLanes;
    for (int64_t i = first; i < padded; ++i) {
      v[i] = i > j && i < n ? column[i] : 0.0;
      y[i] = 0.0;
    }
    for (int64_t col = first; col < padded; col += kLanes) {
      update_and_multiply_block(g, ld, col, {u, w}, v, y);
      for (int c = 0; c < kLanes; c += kColumns)
        update_and_multiply(g, ld, padded, col + c, col + kLanes, {u, w}, v, y);
    }
    const double half = 0.5 * tau[j] * tau[j] * dot(y + j + 1, v + j + 1, n - j - 1);
    for (int64_t i = first; i < padded; ++i) {
      w[i] = i > j ? tau[j] * y[i] - half * v[i] : 0.0;
      u[i] = v[i];
    }
  }
}

constexpr int kTogether = 4;  // reflectors applied in one pass over the columns

// kTogether reflectors as full-length vectors, zero above their start, with their products.
struct ReflectorGroup {
  double* v[kTogether];
  double tau[kTogether];
  double cross[kTogether][kTogether];  // v_k . v_l
};

// x_c <- H_3 ... H_0 x_c for kColumns columns: all products first, then one subtraction.
inline void apply_group(const ReflectorGroup& h, double* x, int64_t ld, int64_t first,
                        int64_t padded) {
  Vd sum[kColumns][kTogether] = {};
  for (int64_t i = first; i < padded; i += kLanes) {
    Vd column[kColumns];
    for (int c = 0; c < kColumns; ++c)
      column[c] = load(x + c * ld + i);
    for (int k = 0; k < kTogether; ++k) {
      const Vd v = load(h.v[k] + i);
      for (int c = 0; c < kColumns; ++c)
        sum[c][k] += v * column[c];
    }
  }
  Vd factor[kColumns][kTogether];
  for (int c = 0; c < kColumns; ++c) {
    double a[kTogether];
    for (int k = 0; k < kTogether; ++k) {
      a[k] = horizontal_sum(sum[c][k]);
      for (int l = 0; l < k; ++l)
        a[k] -= h.cross[k][l] * a[l];
      a[k] *= h.tau[k];
      factor[c][k] = splat(a[k]);
    }
  }
  for (int64_t i = first; i < padded; i += kLanes) {
    Vd column[kColumns];
    for (int c = 0; c < kColumns; ++c)
      column[c] = load(x + c * ld + i);
    for (int k = 0; k < kTogether; ++k) {
      const Vd v = load(h.v[k] + i);
      for (int c = 0; c < kColumns; ++c)
        column[c] -= v * factor[c][k];
    }
    for (int c = 0; c < kColumns; ++c)
      store(x + c * ld + i, column[c]);
  }
}

// Q = H_0 H_1 ... H_{n-2} into q (n columns, ld a multiple of kLanes with room for kLanes columns
// more), from the reflectors tridiagonalise left in g. work: kTogether * ld doubles.
inline void form_reflectors(const double* g, int64_t ld, int64_t n, const double* tau, double* q,
                            double* work) {
  const int64_t padded = round_up(n, kLanes);
  std::memset(q, 0, static_cast<size_t>(padded * ld) * sizeof(double));
  for (int64_t j = 0; j < n; ++j)
    q[j * ld + j] = 1.0;
  ReflectorGroup h;
  for (int64_t last = n - 2; last >= 0; last -= kTogether) {
    for (int k = 0; k < kTogether; ++k) {
      const int64_t j = last - k;
      h.v[k] = work + k * ld;
      h.tau[k] = j >= 0 ? tau[j] : 0.0;
      for (int64_t i = 0; i < padded; ++i)
        h.v[k][i] = j >= 0 && i > j && i < n ? g[j * ld + i] : 0.0;
      for (int l = 0; l < k; ++l)
        h.cross[k][l] = dot(h.v[k], h.v[l], padded);
    }
    // Columns before the first reflector's start are still unit vectors that none of these moves.
    const int64_t start = last - kTogether + 2 > 0 ? last - kTogether + 2 : 0;
    const int64_t first = start / kLanes * kLanes;
    for (int64_t c = start / kColumns * kColumns; c < n; c += kColumns)
      apply_group(h, q + c * ld, ld, first, padded);
  }
}

}  // namespace SK_ISA
}  // namespace spectral
