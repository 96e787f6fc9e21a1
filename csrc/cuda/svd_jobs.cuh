// What an SVD kernel is given: up to 40 batches of m x n matrices of one dtype, in the parameters
// themselves, so nothing has to be copied to the device first and a captured graph keeps them.
#pragma once

#include "cuda/device.cuh"

namespace spectral {

constexpr int kMostSvdJobs = 40;

// Strides in elements, any. Ut (r x m), S (r) and Vh (r x n) of each matrix are contiguous and of
// the type that is computed in; ut and vh are null for the kernels that find values only.
struct SvdJob {
  const void* a;
  void *ut, *s, *vh;
  int64_t batch, stride_b, stride_m, stride_n;
};

struct SvdParams {
  int64_t code, m, n, jobs;
  SvdJob job[kMostSvdJobs];
};

// One matrix of a launch as the solvers see it: X is A, or A^T where A is wide, so that it has
// at least as many rows as columns. W = X V: of_w takes the vectors of the long side.
template <class T>
struct SvdMatrix {
  int rows, columns;
  bool there, tall;
  const void* a;
  int64_t code, start, stride_row, stride_column;
  T *s, *of_w, *of_v;
  SK_DEVICE T entry(int i, int j) const {
    return load_as<T>(a, code, start + i * stride_row + j * stride_column);
  }
};

// Matrix `index` of all batches in order; past the last one nothing is there.
template <class T>
SK_DEVICE SvdMatrix<T> matrix_of(const SvdParams& p, int64_t index) {
  SvdMatrix<T> x = {};
  x.tall = p.m >= p.n;
  x.rows = static_cast<int>(x.tall ? p.m : p.n);
  x.columns = static_cast<int>(x.tall ? p.n : p.m);
  x.code = p.code;
  int j = 0;
  while (j < p.jobs && index >= p.job[j].batch)
    index -= p.job[j++].batch;
  x.there = j < p.jobs;
  if (!x.there) return x;
  const SvdJob& job = p.job[j];
  x.a = job.a;
  x.start = index * job.stride_b;
  x.stride_row = x.tall ? job.stride_m : job.stride_n;
  x.stride_column = x.tall ? job.stride_n : job.stride_m;
  const int64_t first = index * x.columns;
  x.s = static_cast<T*>(job.s) + first;
  x.of_w = static_cast<T*>(x.tall ? job.ut : job.vh) + first * x.rows;
  x.of_v = static_cast<T*>(x.tall ? job.vh : job.ut) + first * x.columns;
  return x;
}

}  // namespace spectral
