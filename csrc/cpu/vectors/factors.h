// The last steps every SVD shares: from W = X V (columns sigma_j u_j, in any order) and V to
// ordered, sign-normalised U, S, Vh in the caller's type, with an orthonormal column for every zero
// sigma.
#pragma once

#include "cpu/common/matrix_view.h"
#include "cpu/common/simd.h"

namespace spectral {
namespace SK_ISA {

// w: rows x n and v: n x n, both by rows with leading dimension ld (a multiple of 16, padding
// zero).
struct Factors {
  double* w;
  double* v;
  int64_t rows, n, ld;
  double* sigma;  // n norms of w's columns, room for ld
};

// ||C||_F of the cosines of vectors that are taken for orthonormal as they are.
constexpr double kCosinesKept = 0.02;

// What is left of a vector in the span of others: its rounding, many times over.
constexpr double kNothingLeft = 1e-9;

inline void column_norms(const Factors& f) {
  for (int64_t j = 0; j < f.ld; ++j)
    f.sigma[j] = 0.0;
  for (int64_t i = 0; i < f.rows; ++i)
    for (int64_t j = 0; j < f.ld; j += kLanes) {
      const Vd x = load(f.w + i * f.ld + j);
      store(f.sigma + j, load(f.sigma + j) + x * x);
    }
  for (int64_t j = 0; j < f.ld; j += kLanes)
    store(f.sigma + j, square_root(load(f.sigma + j)));
}

// x -= W (W^T x); products has ld entries.
inline void project_out(const Factors& f, double* x, double* products) {
  for (int64_t j = 0; j < f.ld; ++j)
    products[j] = 0.0;
  for (int64_t i = 0; i < f.rows; ++i)
    for (int64_t j = 0; j < f.ld; j += kLanes)
      store(products + j, load(products + j) + x[i] * load(f.w + i * f.ld + j));
  for (int64_t i = 0; i < f.rows; ++i) {
    Vd sum = {};
    for (int64_t j = 0; j < f.ld; j += kLanes)
      sum += load(products + j) * load(f.w + i * f.ld + j);
    x[i] -= horizontal_sum(sum);
  }
}

// Makes x, of length one, orthogonal to the columns of w, which are of length one or zero and
// orthogonal to each other to kCosinesKept, and brings it to length one again. False where x lies
// in their span. Each pass leaves that share of what lay along them, so the last one, which takes
// next to nothing, says that it is enough.
inline bool orthogonalise(const Factors& f, double* x, double* products) {
  constexpr int kPasses = 12;
  double left = 1.0;
  for (int pass = 0; pass < kPasses; ++pass) {
    project_out(f, x, products);
    double square = 0.0;
    for (int64_t i = 0; i < f.rows; ++i)
      square += x[i] * x[i];
    const double norm = std::sqrt(square);
    left *= norm;
    if (!(left > kNothingLeft)) return false;
    for (int64_t i = 0; i < f.rows; ++i)
      x[i] /= norm;
    if (norm > 0.999) break;
  }
  return true;
}

// Gives every column of w that is zero a unit vector orthogonal to all others, starting from the
// axis the others cover least (so at least 1 / rows of its square is left). work: rows doubles for
// the candidate, rows for the coverage, ld for products, ld for squares.
inline void complete_columns(const Factors& f, double* work) {
  double* x = work;
  double* coverage = x + f.rows;
  double* products = coverage + f.rows;
  double* squares = products + f.ld;
  for (int64_t j = 0; j < f.ld; ++j)
    squares[j] = 0.0;
  for (int64_t i = 0; i < f.rows; ++i) {
    Vd sum = {};
    for (int64_t j = 0; j < f.ld; j += kLanes) {
      const Vd y = load(f.w + i * f.ld + j), square = y * y;
      store(squares + j, load(squares + j) + square);
      sum += square;
    }
    coverage[i] = horizontal_sum(sum);
  }
  for (int64_t j = 0; j < f.n; ++j) {
    if (squares[j] > 0.0) continue;
    int64_t axis = 0;
    for (int64_t i = 0; i < f.rows; ++i) {
      x[i] = 0.0;
      if (coverage[i] < coverage[axis]) axis = i;
    }
    x[axis] = 1.0;
    orthogonalise(f, x, products);
    for (int64_t i = 0; i < f.rows; ++i) {
      f.w[i * f.ld + j] = x[i];
      coverage[i] += x[i] * x[i];
    }
  }
}

// Scales every column of w to length one; columns with sigma <= floor are completed. work as there.
inline void normalise_and_complete(const Factors& f, double floor, double* work) {
  double* factor = work;
  bool complete = true;
  for (int64_t j = 0; j < f.ld; ++j) {
    const bool kept = j < f.n && f.sigma[j] > floor;
    factor[j] = kept ? 1.0 / f.sigma[j] : 0.0;
    complete &= kept || j >= f.n;
  }
  for (int64_t i = 0; i < f.rows; ++i)
    for (int64_t j = 0; j < f.ld; j += kLanes) {
      double* p = f.w + i * f.ld + j;
      // Not a product alone: the padding may hold NaN.
      const Vd scale = load(factor + j);
      store(p, select(scale == Vd{}, Vd{}, load(p) * scale));
    }
  if (!complete) complete_columns(f, work);
}

// sign[j] = -1 where the entry of largest magnitude in column j is negative, else 1.
inline void column_signs(const double* x, int64_t rows, int64_t ld, double* largest, double* sign) {
  for (int64_t j = 0; j < ld; ++j)
    largest[j] = 0.0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < ld; j += kLanes) {
      const Vd candidate = load(x + i * ld + j), best = load(largest + j);
      store(largest + j, select(absolute(candidate) > absolute(best), candidate, best));
    }
  for (int64_t j = 0; j < ld; ++j)
    sign[j] = largest[j] < 0 ? -1.0 : 1.0;
}

inline void descending_order(const double* sigma, int64_t n, int64_t* order) {
  for (int64_t j = 0; j < n; ++j) {
    int64_t k = j;
    for (; k > 0 && sigma[order[k - 1]] < sigma[j]; --k)
      order[k] = order[k - 1];
    order[k] = j;
  }
}

// dst[j * rows + i] = x[i * ld + order[j]] * factor[j], in blocks that stay in cache.
template <class T, class Out>
inline void write_vectors(const T* x, int64_t rows, int64_t n, int64_t ld, const int64_t* order,
                          const T* factor, Out* dst) {
  constexpr int64_t kBlock = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kBlock) {
    const int64_t i1 = i0 + kBlock < rows ? i0 + kBlock : rows;
    for (int64_t j = 0; j < n; ++j) {
      const T* column = x + order[j];
      for (int64_t i = i0; i < i1; ++i)
        dst[j * rows + i] = static_cast<Out>(column[i * ld] * factor[j]);
    }
  }
}

// Ordered by sigma, every pair of vectors times its sign (by column of w and v; sorted: room for
// ld).
template <class T>
inline void write_svd(const MatrixView& a, const Factors& f, double unscale, const double* sign,
                      const SvdOutput& out, int64_t* order, double* sorted) {
  // u is on the long side exactly when A itself is X.
  const bool tall = a.m >= a.n;
  descending_order(f.sigma, f.n, order);
  T* s = static_cast<T*>(out.s);
  for (int64_t j = 0; j < f.n; ++j) {
    s[j] = static_cast<T>(f.sigma[order[j]] * unscale);
    sorted[j] = sign[order[j]];
  }
  write_vectors(f.w, f.rows, f.n, f.ld, order, sorted, static_cast<T*>(tall ? out.ut : out.vh));
  write_vectors(f.v, f.n, f.n, f.ld, order, sorted, static_cast<T*>(tall ? out.vh : out.ut));
}

inline int64_t finish_workspace(int64_t rows, int64_t ld) {
  return 2 * rows + 3 * ld;
}

// Order and signs of an SVD on its own: the largest entry of every u is positive.
inline void finish(const MatrixView& a, const Factors& f, double unscale, double floor,
                   const SvdOutput& out, double* work) {
  normalise_and_complete(f, floor, work);
  double* sign = work;
  double* largest = sign + f.ld;
  int64_t* order = reinterpret_cast<int64_t*>(largest + f.ld);
  const bool tall = a.m >= a.n;
  column_signs(tall ? f.w : f.v, tall ? f.rows : f.n, f.ld, largest, sign);
  if (a.is_double())
    write_svd<double>(a, f, unscale, sign, out, order, largest);
  else
    write_svd<float>(a, f, unscale, sign, out, order, largest);
}

template <class T>
inline void fill(void* p, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i)
    static_cast<T*>(p)[i] = value;
}

inline void fill_not_a_number(const SvdOutput& out, bool is_double, int64_t m, int64_t n,
                              int64_t r) {
  if (is_double) {
    fill(out.ut, m * r, std::nan(""));
    fill(out.s, r, std::nan(""));
    fill(out.vh, r * n, std::nan(""));
  } else {
    fill(out.ut, m * r, std::nanf(""));
    fill(out.s, r, std::nanf(""));
    fill(out.vh, r * n, std::nanf(""));
  }
}

}  // namespace SK_ISA
}  // namespace spectral
