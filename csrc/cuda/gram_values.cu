// Singular values from Gram matrices in float64: a block for each. Tridiagonal form in shared
// memory, then Sturm counts.
//
// For matrices of float32 and less whose long side does not fit shared memory. The rounding of the
// Gram matrix, 1e-16 of sigma_1^2, is at most 1e-8 of sigma_1 in a value. Barriers: 2 for loading,
// one for each column, 4 after. Shared memory in bytes, w warps:
//   16 n + max(8 (n (n | 1) + 4 n), 16 n + 512 w + 8 n)
// G is read once from global memory.
#include "cuda/tridiagonal.cuh"
#include "cuda/values.cuh"

namespace spectral {

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

// G into t. Returns the trace, the same in every thread; a matrix with NaN or
// infinity has no finite one.
SK_DEVICE double load_gram(const ValuesParams& p, const Tridiagonal& t) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const BlockPlace at = place_of_block(p);
  const ValuesJob& job = p.job[at.job];
  const double* gram = static_cast<const double*>(job.a) + at.which * job.stride_batch;
  for (int col = static_cast<int>(threadIdx.x) / kWarp; col < t.n; col += warps)
    for (int row = lane; row < t.n; row += kWarp)
      t.g[col * t.ld + row] = gram[col * job.stride_n + row * job.stride_rows];
  __syncthreads();
  double trace = 0.0;
  for (int i = lane; i < t.n; i += kWarp)
    trace += t.g[i * t.ld + i];
  // Columns are written by their warps from here on.
  __syncthreads();
  return warp_sum(trace);
}

template <int R, int C>
SK_DEVICE void gram_values(const ValuesParams& p) {
  Tridiagonal t = tridiagonal_space(p.n, SK_SHARED(double));
  const double trace = load_gram(p, t);
  if (!(trace - trace == 0.0)) return store_constant(values_out<float>(p), not_a_number());
  t.negligible = 1e-60 * trace * trace;
  tridiagonalise<R, C>(t);
  __syncthreads();
  const SearchSpace space = search_space(t.g, t.n);
  const auto diagonal = [&](int i) { return t.d[i]; };
  const double norm = scale_tridiagonal(t.n, diagonal, [&](int i) { return t.e[i]; }, space.rows);
  __syncthreads();
  if (norm == 0.0) return store_constant(values_out<float>(p), 0.0);
  find_values(space, t.n, t.n, 1e-15);
  __syncthreads();
  store_values(space, [=](double lambda) { return sqrt(norm * lambda); }, values_out<float>(p));
}

SK_KERNEL(gram_values_1, ValuesParams, 64) {
  gram_values<1, 4>(p);
}
SK_KERNEL(gram_values_2, ValuesParams, 128) {
  gram_values<2, 4>(p);
}
SK_KERNEL(gram_values_4, ValuesParams, 256) {
  gram_values<4, 4>(p);
}
SK_KERNEL(gram_values_6, ValuesParams, 512) {
  gram_values<6, 2>(p);
}

}  // namespace spectral
