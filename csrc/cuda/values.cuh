// From a tridiagonal form in shared memory to singular values, descending, and their summary: the
// end of every kernel that makes values.
#pragma once

#include "cuda/sturm.cuh"
#include "cuda/summary.cuh"

namespace spectral {

constexpr int kMostValuesJobs = 40;

// A batch of matrices and where their values (count, n) and summaries (count, 7) go; `table` is
// null where no summary is wanted.
struct ValuesJob {
  const void* a;
  void* s;
  double* table;
  int64_t count, stride_batch, stride_rows, stride_n;
};

// Batches of one shape, rows >= n (the launcher exchanges the sides of a wide matrix) and one type:
// one launch, a block for each matrix. They lie in the parameters themselves, so nothing has to be
// copied to the device first and a captured graph keeps them.
struct ValuesParams {
  int64_t jobs, code, rows, n;
  double rtol;
  ValuesJob job[kMostValuesJobs];
};

struct BlockPlace {
  int job;
  int64_t which;
};

SK_DEVICE BlockPlace place_of_block(const ValuesParams& p) {
  BlockPlace at = {0, static_cast<int64_t>(blockIdx.x)};
  while (at.which >= p.job[at.job].count)
    at.which -= p.job[at.job++].count;
  return at;
}

// Where the values of one matrix go.
template <class T>
struct ValuesOut {
  T* s;
  double* table;
  int n;
  double rtol;
};

template <class T>
SK_DEVICE ValuesOut<T> values_out(const ValuesParams& p) {
  const BlockPlace at = place_of_block(p);
  const ValuesJob& job = p.job[at.job];
  return {static_cast<T*>(job.s) + at.which * p.n,
          job.table == nullptr ? nullptr : job.table + at.which * kSummaryFields,
          static_cast<int>(p.n), p.rtol};
}

SK_DEVICE double not_a_number() {
  return double_from_bits(int64_t{0x7ff8} << 48);
}

template <class T>
SK_DEVICE void store_constant(const ValuesOut<T>& out, double value) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < out.n; i += threads)
    out.s[i] = static_cast<T>(value);
  if (out.table != nullptr && thread < kSummaryFields) out.table[thread] = value;
}

// T, given by its entries, over its norm (the largest row sum of magnitudes) into `rows`; returns
// the norm. A floor under the squares, which moves no eigenvalue by more than 1e-18, keeps the
// recurrence from ending in zeros. A barrier must follow.
template <class Diagonal, class Off>
SK_DEVICE double scale_tridiagonal(int order, Diagonal diagonal, Off off, SturmRow* rows) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  double norm = 0.0;
  for (int i = thread % kWarp; i < order; i += kWarp) {
    const double sum =
        fabs(diagonal(i)) + (i > 0 ? fabs(off(i - 1)) : 0.0) + (i < order - 1 ? fabs(off(i)) : 0.0);
    norm = sum > norm ? sum : norm;
  }
  norm = warp_max(norm);
  const double scale = norm > 0.0 ? 1.0 / norm : 0.0;
  for (int i = thread; i < order; i += threads) {
    const double link = i > 0 ? off(i - 1) * scale : 0.0;
    rows[i] = {diagonal(i) * scale, i > 0 ? fmax(link * link, kSquareFloor) : 0.0};
  }
  return norm;
}

// Shared memory of the search: order rows, a look for each thread, n values, in this order; 16-byte
// aligned.
struct SearchSpace {
  SturmRow* rows;
  SturmLook* grid;
  double* values;
};

SK_DEVICE SearchSpace search_space(void* start, int order) {
  auto* rows = static_cast<SturmRow*>(start);
  auto* grid = reinterpret_cast<SturmLook*>(rows + order);
  return {rows, grid, reinterpret_cast<double*>(grid + blockDim.x)};
}

// The n largest of `order` eigenvalues of the T in space.rows, descending, into space.values;
// called by the whole block after a barrier behind the stores into rows. Another must follow.
SK_DEVICE void find_values(const SearchSpace& space, int order, int n, double resolution) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const SturmMatrix t = {space.rows, order};
  look_at_grid(t, space.grid, resolution);
  __syncthreads();
  for (int i = thread; i < n; i += threads)
    space.values[i] = eigenvalue(t, space.grid, order - 1 - i, resolution);
}

// sigma(lambda) of what find_values left, rounded to T, and the summary of that.
template <class T, class Sigma>
SK_DEVICE void store_values(const SearchSpace& space, Sigma sigma, const ValuesOut<T>& out) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto value = [&](int64_t i) { return static_cast<T>(sigma(space.values[i])); };
  for (int i = thread; i < out.n; i += threads)
    out.s[i] = value(i);
  if (out.table != nullptr && thread < kWarp)
    store_summary(summarize_spectrum(out.n, out.rtol, value), out.table);
}

}  // namespace spectral
