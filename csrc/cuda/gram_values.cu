// Singular values from Gram matrices in float64: a block for each. Tridiagonal form in shared
// memory, then Sturm counts.
//
// For matrices of float32 and less whose long side does not fit shared memory. The rounding of the
// Gram matrix, 1e-16 of sigma_1^2, is at most 1e-8 of sigma_1 in a value. Barriers: 1 for loading,
// one for each column, 4 after. Shared memory in bytes, w warps:
//   16 n + max(8 (n (n | 1) + 4 n), 16 n + 512 w + 8 n)
// G is read once from global memory.
#include "cuda/tridiagonal.cuh"
#include "cuda/values.cuh"

namespace spectral {

struct GramValuesParams {
  const double* gram;  // batch x n x n
  float* s;
  double* table;
  int64_t n;
  double rtol;
};

SK_DEVICE Tridiagonal tridiagonal_space(int64_t n, double* start) {
  Tridiagonal t;
  t.n = static_cast<int>(n);
  t.ld = t.n | 1;
  t.d = start;
  t.e = t.d + t.n;
  t.g = t.e + t.n;
  t.u = t.g + t.n * t.ld;
  t.w = t.u + t.n;
  t.y = t.w + t.n;
  return t;
}

// Returns the trace, the same in every thread; a matrix with NaN or infinity has no finite one.
SK_DEVICE double load_gram(const double* gram, const Tridiagonal& t) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int col = static_cast<int>(threadIdx.x) / kWarp; col < t.n; col += warps)
    for (int row = lane; row < t.n; row += kWarp)
      t.g[col * t.ld + row] = gram[static_cast<int64_t>(col) * t.n + row];
  __syncthreads();
  double trace = 0.0;
  for (int i = lane; i < t.n; i += kWarp)
    trace += t.g[i * t.ld + i];
  return warp_sum(trace);
}

template <int R, int C>
SK_DEVICE void gram_values(const GramValuesParams& p) {
  Tridiagonal t = tridiagonal_space(p.n, SK_SHARED(double));
  const int64_t which = blockIdx.x;
  const ValuesOut<float> out = {p.s + which * p.n,
                                p.table == nullptr ? nullptr : p.table + which * kSummaryColumns,
                                t.n, p.rtol};
  const double trace = load_gram(p.gram + which * p.n * p.n, t);
  if (!(trace - trace == 0.0)) return store_constant(out, not_a_number());
  t.negligible = 1e-60 * trace * trace;
  tridiagonalise<R, C>(t);
  __syncthreads();
  const SearchSpace space = search_space(t.g, t.n);
  const auto diagonal = [&](int i) { return t.d[i]; };
  const double norm = scale_tridiagonal(t.n, diagonal, [&](int i) { return t.e[i]; }, space.rows);
  __syncthreads();
  if (norm == 0.0) return store_constant(out, 0.0);
  find_values(space, t.n, t.n, 1e-15);
  __syncthreads();
  store_values(space, [=](double lambda) { return sqrt(norm * lambda); }, out);
}

SK_KERNEL(gram_values_1, GramValuesParams, 512) {
  gram_values<1, 4>(p);
}
SK_KERNEL(gram_values_2, GramValuesParams, 512) {
  gram_values<2, 4>(p);
}
SK_KERNEL(gram_values_4, GramValuesParams, 512) {
  gram_values<4, 4>(p);
}
SK_KERNEL(gram_values_6, GramValuesParams, 384) {
  gram_values<6, 2>(p);
}

}  // namespace spectral
