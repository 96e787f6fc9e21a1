// Randomized SVD: the range finder with power iterations and the SVD of the projection (Halko,
// Martinsson & Tropp 2011, Algorithms 4.4 and 5.1), for one matrix.
//
// Bases are stored by rows, so A (m x n, rows contiguous) is only ever read along its rows: 2 + 2q
// times, in the precision of the input. Orthonormalisation and the small SVD are float64.
// Flops: (2 + 2q) 2 m n l. Bytes: (2 + 2q) reads of A.
#pragma once

#include "cpu/vectors/factors.h"
#include "cpu/vectors/jacobi.h"
#include "cpu/vectors/kernels.h"
#include "cpu/vectors/row_basis.h"

namespace spectral {
namespace SK_ISA {

// normals.cpp, which is compiled with other flags.
void normals(const RandomBlock& block, int64_t n, int64_t first, int64_t last, float* out,
             int64_t ld);

template <class T>
struct RsvdSpace {
  T *packed, *right, *left;      // A with padded rows; l rows of length n and m
  double *basis, *spare, *wide;  // float64 rows of the longer side
  double *gram, *lower, *small_w, *small_v, *sigma, *columns, *scratch;
};

struct RsvdSizes {
  int64_t m, n, l, ldm, ldn, ldl, longest, total;
};

inline RsvdSizes rsvd_sizes(const RsvdJob& job) {
  RsvdSizes s;
  s.m = job.a.m;
  s.n = job.a.n;
  s.l = job.width;
  s.ldm = round_up(s.m, 16);
  s.ldn = round_up(s.n, 16);
  s.ldl = round_up(job.width, 8);
  s.longest = s.ldm > s.ldn ? s.ldm : s.ldn;
  s.total = s.m * s.ldn + s.l * (s.ldn + s.ldm) + 3 * (s.l + 1) * (s.longest + s.ldl) +
            6 * s.ldl * s.ldl + s.ldl + finish_workspace(s.l, s.ldl);
  return s;
}

template <class T>
inline RsvdSpace<T> carve_rsvd(const RsvdSizes& s, double* work) {
  RsvdSpace<T> space;
  auto take = [&work](int64_t count) {
    double* p = work;
    work += count;
    return p;
  };
  const int64_t rows = (s.l + 1) * (s.longest + s.ldl);
  space.basis = take(rows);
  space.spare = take(rows);
  space.wide = take(rows);
  space.gram = take(s.ldl * s.ldl);
  space.lower = take(s.ldl * s.ldl);
  space.small_w = take(s.ldl * s.ldl);
  space.small_v = take(s.ldl * s.ldl);
  space.sigma = take(s.ldl);
  space.columns = take(2 * s.ldl * s.ldl);
  space.scratch = take(finish_workspace(s.l, s.ldl));
  space.packed = reinterpret_cast<T*>(take(s.m * s.ldn));
  space.right = reinterpret_cast<T*>(take(s.l * s.ldn));
  space.left = reinterpret_cast<T*>(take(s.l * s.ldm));
  return space;
}

// float64 copy of l rows, orthonormal afterwards; `rounds` of Cholesky QR suffice where they can.
template <class T>
inline Basis widen_rows(const RsvdSizes& s, const RsvdSpace<T>& space, const T* rows,
                        int64_t length, int64_t ld) {
  for (int64_t k = 0; k < s.l * ld; ++k)
    space.basis[k] = rows[k];
  return {space.basis, s.l, length, ld, space.gram, space.lower, space.spare};
}

template <class T>
inline void orthonormalise_rows(const RsvdSizes& s, const RsvdSpace<T>& space, T* rows,
                                int64_t length, int64_t ld) {
  Basis b = widen_rows(s, space, rows, length, ld);
  orthonormalise(b, 1);
  for (int64_t k = 0; k < s.l * ld; ++k)
    rows[k] = static_cast<T>(b.rows[k]);
}

// The rows of A as the products want them, and the exact power of two they are scaled by.
template <class T>
struct PackedRows {
  const T* rows;
  int64_t ld;
  double scale;  // NaN where A is not finite
};

template <class T>
inline PackedRows<T> pack(const MatrixView& a, const RsvdSizes& s, T* packed) {
  const double largest = largest_magnitude(a);
  if (!std::isfinite(largest)) return {nullptr, 0, std::nan("")};
  const bool same_type = sizeof(T) == static_cast<size_t>(size_of(a.dtype));
  // Whole vectors, and squares far from overflow and underflow: read in place.
  if (same_type && a.stride_n == 1 && a.n % 16 == 0 && largest < 0x1p40 && largest > 0x1p-40)
    return {static_cast<const T*>(a.data), a.stride_m, 1.0};
  copy_scaled(a, exact_scale(largest), packed, s.ldn);
  return {packed, s.ldn, exact_scale(largest)};
}

// The given columns, then random ones.
template <class T>
inline void load_start(const RsvdSizes& s, const RsvdJob& job, const RsvdSpace<T>& space) {
  const T* start = static_cast<const T*>(job.start);
  std::memset(space.right, 0, static_cast<size_t>(s.l * s.ldn) * sizeof(T));
  for (int64_t c = 0; c < job.given; ++c)
    for (int64_t j = 0; j < s.n; ++j)
      space.right[c * s.ldn + j] = start[j * job.given + c];
  if constexpr (sizeof(T) == sizeof(float)) {
    normals(job.random, s.n, job.given, s.l, space.right, s.ldn);
  } else {
    float* narrow = reinterpret_cast<float*>(space.wide);
    normals(job.random, s.n, job.given, s.l, narrow, s.ldn);
    for (int64_t c = job.given; c < s.l; ++c)
      for (int64_t j = 0; j < s.n; ++j)
        space.right[c * s.ldn + j] = static_cast<T>(narrow[c * s.ldn + j]);
  }
}

// out (k x length) = sign * coefficients^T (l x l by rows, columns in `order`) times rows (l x
// length).
template <class T>
inline void combine(const RsvdSizes& s, const RsvdSpace<T>& space, const double* coefficients,
                    const int64_t* order, int64_t k, const double* rows, int64_t ld, double* out) {
  double* x = space.gram;
  for (int64_t c = 0; c < k; ++c)
    for (int64_t i = 0; i < s.l; ++i)
      x[c * s.ldl + i] = coefficients[i * s.ldl + order[c]];
  accumulate<double>({x, s.ldl, 1}, k, rows, ld, s.l, ld, out, ld);
}

template <class T>
inline void write_scaled_rows(const double* rows, int64_t ld, int64_t k, int64_t length,
                              const double* sign, T* out) {
  for (int64_t c = 0; c < k; ++c)
    for (int64_t j = 0; j < length; ++j)
      out[c * length + j] = static_cast<T>(sign[c] * rows[c * ld + j]);
}

inline double row_sign(const double* row, int64_t length) {
  double best = 0.0;
  for (int64_t j = 0; j < length; ++j)
    if (std::fabs(row[j]) > std::fabs(best)) best = row[j];
  return best < 0 ? -1.0 : 1.0;
}

// SVD of lower (l x l): lower = w diag(sigma) v^T with both factors orthogonal.
template <class T>
inline void small_svd(const RsvdSizes& s, const RsvdSpace<T>& space, const double* lower,
                      int64_t ld) {
  double* x = space.columns;
  double* v = x + s.ldl * s.ldl;
  std::memset(x, 0, static_cast<size_t>(2 * s.ldl * s.ldl) * sizeof(double));
  for (int64_t j = 0; j < s.l; ++j) {
    for (int64_t i = 0; i < s.l; ++i)
      x[j * s.ldl + i] = lower[i * ld + j];
    v[j * s.ldl + j] = 1.0;
  }
  jacobi(SoloColumns{x, s.ldl}, SoloColumns{v, s.ldl}, s.l, 4e-16);
  const Factors f = {space.small_w, space.small_v, s.l, s.l, s.ldl, space.sigma};
  std::memset(f.w, 0, static_cast<size_t>(2 * s.ldl * s.ldl) * sizeof(double));
  for (int64_t j = 0; j < s.l; ++j)
    for (int64_t i = 0; i < s.l; ++i) {
      f.w[i * s.ldl + j] = x[j * s.ldl + i];
      f.v[i * s.ldl + j] = v[j * s.ldl + i];
    }
  column_norms(f);
  normalise_and_complete(f, 1e-100, space.scratch);
}

template <class T>
inline bool rsvd_typed(const RsvdJob& job, double* work) {
  const RsvdSizes s = rsvd_sizes(job);
  const SvdOutput& out = job.out;
  const RsvdSpace<T> space = carve_rsvd<T>(s, work);
  const PackedRows<T> x = pack(job.a, s, space.packed);
  if (std::isnan(x.scale)) return false;
  std::memset(space.left, 0, static_cast<size_t>(s.l * s.ldm) * sizeof(T));
  load_start(s, job, space);
  project(x.rows, x.ld, s.m, space.right, s.ldn, s.l, s.ldn, space.left, s.ldm);
  for (int64_t q = 0; q < job.power_iters; ++q) {
    orthonormalise_rows(s, space, space.left, s.m, s.ldm);
    accumulate<T>({space.left, s.ldm, 1}, s.l, x.rows, x.ld, s.m, s.ldn, space.right, s.ldn);
    orthonormalise_rows(s, space, space.right, s.n, s.ldn);
    project(x.rows, x.ld, s.m, space.right, s.ldn, s.l, s.ldn, space.left, s.ldm);
  }
  Basis q = widen_rows(s, space, space.left, s.m, s.ldm);
  orthonormalise(q, 2);
  for (int64_t k = 0; k < s.l * s.ldm; ++k) {
    space.wide[k] = q.rows[k];
    space.left[k] = static_cast<T>(q.rows[k]);
  }
  // B = Q^T A = lower * (orthonormal rows); its small factor carries the singular values.
  accumulate<T>({space.left, s.ldm, 1}, s.l, x.rows, x.ld, s.m, s.ldn, space.right, s.ldn);
  Basis b = widen_rows(s, space, space.right, s.n, s.ldn);
  gram_schmidt(b);
  small_svd(s, space, b.lower, basis_ldg(b));

  int64_t* order = reinterpret_cast<int64_t*>(space.scratch);
  double* sign = space.scratch + s.ldl;
  descending_order(space.sigma, s.l, order);
  for (int64_t c = 0; c < job.rank; ++c)
    static_cast<T*>(out.s)[c] = static_cast<T>(space.sigma[order[c]] / x.scale);
  combine(s, space, space.small_w, order, job.rank, space.wide, s.ldm, space.spare);
  for (int64_t c = 0; c < job.rank; ++c)
    sign[c] = row_sign(space.spare + c * s.ldm, s.m);
  write_scaled_rows(space.spare, s.ldm, job.rank, s.m, sign, static_cast<T*>(out.ut));
  combine(s, space, space.small_v, order, job.rank, b.rows, s.ldn, space.spare);
  write_scaled_rows(space.spare, s.ldn, job.rank, s.n, sign, static_cast<T*>(out.vh));
  return true;
}

inline int64_t rsvd_workspace(const RsvdJob& job) {
  return rsvd_sizes(job).total;
}

inline void rsvd(const RsvdJob& job, double* work) {
  const MatrixView& a = job.a;
  const bool done = a.is_double() ? rsvd_typed<double>(job, work) : rsvd_typed<float>(job, work);
  if (!done) fill_not_a_number(job.out, a.is_double(), a.m, a.n, job.rank);
}

}  // namespace SK_ISA
}  // namespace spectral
