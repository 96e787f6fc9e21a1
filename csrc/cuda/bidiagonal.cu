// Singular values of matrices that fit shared memory: a block for each. Bidiagonalisation in the
// type of the result, then Sturm counts in float64.
//
// For float32 the tridiagonal is B^T B in float64, whose rounding, 1e-16 of sigma_1^2, is at most
// 1e-8 of sigma_1. For float64 it is the Golub-Kahan form, zero diagonal and off-diagonal d_1, e_1,
// d_2, ..., with the eigenvalues +-sigma_i, which squares nothing.
// Scaling by a power of two is exact: 1e-30 and 1e30 are as good as one.
// Barriers: 2 for loading, one for each column, 4 after. Shared memory in bytes, w warps:
//   144 + 16 n + max(t (n (rows | 1) + 2 n + 2 w (rows + 2)), 16 order + 512 w + 8 n)
// with t the bytes of an element, order n or 2 n. A is read once from global memory.
#include "cuda/bidiagonal.cuh"
#include "cuda/values.cuh"

namespace spectral {

constexpr int kMostWarps = 16;

// f(row, col) for every element, lanes along the side that is denser in memory.
template <class F>
SK_DEVICE void for_each_element(int rows, int n, bool rows_inner, F f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int inner = rows_inner ? rows : n, outer = rows_inner ? n : rows;
  for (int o = warp; o < outer; o += warps)
    for (int i = lane; i < inner; i += kWarp)
      rows_inner ? f(i, o) : f(o, i);
}

// e with largest |a| in [2^(e-1), 2^e), from what each warp has found. Read again when it is needed
// again: the search has no register to keep it in.
SK_DEVICE int scale_exponent(const double* largest) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  double most = 0.0;
  for (int i = 0; i < warps; ++i)
    most = fmax(most, largest[i]);
  int exponent = 0;
  if (most > 0.0) frexp(most, &exponent);
  return exponent;
}

// Loads A into x and scales it to largest |a| in [0.5, 1); false where A is not finite. largest: a
// double for each warp.
template <class T>
SK_DEVICE bool load_scaled(const ValuesParams& p, const Bidiagonal<T>& b, double* largest) {
  const BlockPlace at = place_of_block(p);
  const ValuesJob& job = p.job[at.job];
  const int64_t start = at.which * job.stride_batch;
  const bool rows_inner = job.stride_rows < job.stride_n;
  double most = 0.0;
  bool bad = false;
  for_each_element(b.rows, b.n, rows_inner, [&](int row, int col) {
    const T a = load_as<T>(job.a, p.code, start + row * job.stride_rows + col * job.stride_n);
    b.x[col * b.ld + row] = a;
    bad = bad || !(a - a == T(0));
    most = fmax(most, static_cast<double>(fabs(a)));
  });
  most = warp_max(most);
  if (threadIdx.x % kWarp == 0) largest[threadIdx.x / kWarp] = most;
  if (__syncthreads_or(bad)) return false;
  const int exponent = scale_exponent(largest);
  // In two exact steps, because the inverse of a denormal number is beyond the type.
  const int half = -exponent / 2;
  const T factor = static_cast<T>(ldexp(1.0, half));
  const T rest = static_cast<T>(ldexp(1.0, -exponent - half));
  for_each_element(b.rows, b.n, rows_inner, [&](int row, int col) {
    T* x = b.x + col * b.ld + row;
    *x = *x * factor * rest;
  });
  __syncthreads();
  return true;
}

template <class T>
SK_DEVICE Bidiagonal<T> bidiagonal_space(const ValuesParams& p, double* start) {
  Bidiagonal<T> b;
  b.rows = static_cast<int>(p.rows);
  b.n = static_cast<int>(p.n);
  // Odd, so that rows that are loaded across lanes go to different banks.
  b.ld = b.rows | 1;
  b.d = start;
  b.e = b.d + b.n;
  b.factors = reinterpret_cast<ColumnFactors<T>*>(b.e + b.n);
  b.x = reinterpret_cast<T*>(b.factors + b.n);
  b.partial = b.x + b.n * b.ld;
  return b;
}

// The tridiagonal of the values of B over its norm, which is returned.
SK_DEVICE double tridiagonal_of(const Bidiagonal<float>& b, SturmRow* rows) {
  const auto diagonal = [&](int i) {
    return b.d[i] * b.d[i] + (i > 0 ? b.e[i - 1] * b.e[i - 1] : 0.0);
  };
  return scale_tridiagonal(b.n, diagonal, [&](int i) { return b.d[i] * b.e[i]; }, rows);
}
SK_DEVICE double tridiagonal_of(const Bidiagonal<double>& b, SturmRow* rows) {
  const auto off = [&](int i) { return i % 2 == 0 ? b.d[i / 2] : b.e[i / 2]; };
  return scale_tridiagonal(2 * b.n, [](int) { return 0.0; }, off, rows);
}

template <class T, int R, int C>
SK_DEVICE void bidiagonal_values(const ValuesParams& p) {
  constexpr bool kSquared = sizeof(T) == 4;
  double* shared = SK_SHARED(double);
  const Bidiagonal<T> b = bidiagonal_space<T>(p, shared + kMostWarps + 2);
  if (!load_scaled(p, b, shared)) return store_constant(values_out<T>(p), not_a_number());
  bidiagonalise<T, R, C>(b);
  __syncthreads();
  const int order = kSquared ? b.n : 2 * b.n;
  const SearchSpace space = search_space(b.factors, order);
  const double scale = tridiagonal_of(b, space.rows);
  double* kept = shared + kMostWarps;
  if (threadIdx.x == 0) *kept = scale;
  __syncthreads();
  // Without values of its own a zero matrix would be divided by zero.
  if (*kept == 0.0) return store_constant(values_out<T>(p), 0.0);
  find_values(space, order, b.n, kSquared ? 1e-15 : 2.5e-16);
  __syncthreads();
  const int exponent = scale_exponent(shared);
  const double norm = *kept;
  const auto sigma = [=](double lambda) {
    return ldexp(kSquared ? sqrt(norm * lambda) : norm * lambda, exponent);
  };
  store_values(space, sigma, values_out<T>(p));
}

// As many threads as their registers allow: rows in lanes take 4 R + C R of them, twice for double.
SK_KERNEL(bidiagonal_float_1, ValuesParams, 512) {
  bidiagonal_values<float, 1, 4>(p);
}
SK_KERNEL(bidiagonal_float_2, ValuesParams, 512) {
  bidiagonal_values<float, 2, 4>(p);
}
SK_KERNEL(bidiagonal_float_4, ValuesParams, 512) {
  bidiagonal_values<float, 4, 4>(p);
}
SK_KERNEL(bidiagonal_float_8, ValuesParams, 512) {
  bidiagonal_values<float, 8, 4>(p);
}
SK_KERNEL(bidiagonal_double_1, ValuesParams, 512) {
  bidiagonal_values<double, 1, 2>(p);
}
SK_KERNEL(bidiagonal_double_2, ValuesParams, 512) {
  bidiagonal_values<double, 2, 4>(p);
}
SK_KERNEL(bidiagonal_double_4, ValuesParams, 512) {
  bidiagonal_values<double, 4, 4>(p);
}
SK_KERNEL(bidiagonal_double_8, ValuesParams, 256) {
  bidiagonal_values<double, 8, 2>(p);
}
SK_KERNEL(bidiagonal_double_16, ValuesParams, 256) {
  bidiagonal_values<double, 16, 1>(p);
}

}  // namespace spectral
