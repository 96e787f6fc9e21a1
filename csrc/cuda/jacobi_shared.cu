// The SVD of one matrix per block, W = X V in shared memory: one-sided Jacobi as in
// jacobi_registers.cu. V (n x n) is in shared memory too where both fit; else in the output for the
// short side's vectors, which the L2 cache holds.
//
// Columns are contiguous, `ld` apart. kLanes lanes work on a pair: each holds up to kRows rows of
// both columns in registers from the sums to the rotation, and reads what lies beyond twice. The
// pairs of a round share no column, so one barrier a round is all: n - 1 of them in a sweep.
// With ld odd times kLanes modulo the banks, neighbouring pairs of a warp read different banks.
//
// A sweep moves 2 n (n - 1) (m + n) elements through shared memory, with 11 multiply-adds for each
// 8 of them: shared memory is the limit. 8 to 12 sweeps are usual; the last one reads W alone.
// Shared memory: n (ld + ld_v) + 3 n + 2 m elements.
#include "cuda/jacobi_finish.cuh"

namespace spectral {

struct SvdSharedParams : SvdParams {
  // ld_v is 0 where V is not in shared memory.
  int64_t ld, ld_v;
};

// kRows rows of a column in registers, from `first` on: every kLanes-th one, zero past the end.
template <int kLanes, int kRows, class T>
SK_DEVICE void load_rows(const T* x, int first, int rows, T (&held)[kRows]) {
  const int lane = first + static_cast<int>(threadIdx.x) % kLanes;
  SK_UNROLL
  for (int k = 0; k < kRows; ++k)
    held[k] = lane + k * kLanes < rows ? x[lane + k * kLanes] : T(0);
}

// The rows p and q of the columns at x and y, turned by r.
template <int kLanes, int kRows, class T>
SK_DEVICE void store_turned(T* x, T* y, const T (&p)[kRows], const T (&q)[kRows], int first,
                            int rows, const JacobiRotation<T>& r) {
  const int lane = first + static_cast<int>(threadIdx.x) % kLanes;
  SK_UNROLL
  for (int k = 0; k < kRows; ++k) {
    const int i = lane + k * kLanes;
    if (i >= rows) continue;
    x[i] = rotated(p[k], q[k], r.s, r.h);
    y[i] = rotated(q[k], p[k], -r.s, -r.h);
  }
}

// Rows from `first` on. A few loads of a thread come before its stores, because the compiler, for
// which x and y may be the same, would wait for each pair of them; more would spill.
template <int kLanes, class T>
SK_DEVICE void turn_along(T* x, T* y, int first, int rows, const JacobiRotation<T>& r) {
  constexpr int kRows = 4;
  for (; first < rows; first += kLanes * kRows) {
    T p[kRows], q[kRows];
    load_rows<kLanes>(x, first, rows, p);
    load_rows<kLanes>(y, first, rows, q);
    store_turned<kLanes>(x, y, p, q, first, rows, r);
  }
}

// kLanes lanes make the columns at x and y orthogonal. Lanes without a pair come with no rows: the
// sums are made by whole warps.
template <class T, int kLanes, int kRows>
SK_DEVICE JacobiRotation<T> turn_pair(T* x, T* y, int rows) {
  constexpr int kHeld = kLanes * kRows;
  T p[kRows], q[kRows], a = 0, b = 0, d = 0;
  load_rows<kLanes>(x, 0, rows, p);
  load_rows<kLanes>(y, 0, rows, q);
  SK_UNROLL
  for (int k = 0; k < kRows; ++k) {
    a = fma(p[k], p[k], a);
    b = fma(q[k], q[k], b);
    d = fma(p[k], q[k], d);
  }
  for (int i = kHeld + static_cast<int>(threadIdx.x) % kLanes; i < rows; i += kLanes) {
    a = fma(x[i], x[i], a);
    b = fma(y[i], y[i], b);
    d = fma(x[i], y[i], d);
  }
  const JacobiRotation<T> r =
      jacobi_rotation(group_sum<kLanes>(a), group_sum<kLanes>(b), group_sum<kLanes>(d));
  if (!r.active) return r;
  store_turned<kLanes>(x, y, p, q, 0, rows, r);
  turn_along<kLanes>(x, y, kHeld, rows, r);
  return r;
}

// One sweep over all pairs; true, in every thread, where any column of the block turned.
template <class T, int kLanes, int kRows>
SK_DEVICE bool sweep(const BlockSvd<T>& s) {
  constexpr int kPairs = kWarp / kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int players = s.columns + s.columns % 2, pairs = players / 2;
  bool turned = false;
  for (int round = 0; round < players - 1; ++round) {
    // Warps go round together, whether their last lanes have a pair or not.
    for (int first = warp * kPairs; first < pairs; first += warps * kPairs) {
      const int k = first + lane / kLanes;
      const Pair pair = pair_of(k, round, players);
      // An odd column out meets nobody.
      const bool present = k < pairs && pair.first < s.columns;
      const JacobiRotation<T> r = turn_pair<T, kLanes, kRows>(
          s.w + pair.first * s.ld, s.w + pair.second * s.ld, present ? s.rows : 0);
      turned |= r.active;
      if (!r.active) continue;
      // Two calls: the compiler knows one of them to be in shared memory.
      if (s.ld_v != 0)
        turn_along<kLanes>(s.v() + pair.first * s.ld_v, s.v() + pair.second * s.ld_v, 0, s.columns,
                           r);
      else
        turn_along<kLanes>(s.far_v + static_cast<int64_t>(pair.first) * s.columns,
                           s.far_v + static_cast<int64_t>(pair.second) * s.columns, 0, s.columns,
                           r);
    }
    if (round < players - 2) __syncthreads();
  }
  return __syncthreads_or(turned);
}

template <class T, int kLanes, int kRows>
SK_DEVICE void svd_shared(const SvdSharedParams& p) {
  const SvdMatrix<T> given = matrix_of<T>(p, blockIdx.x);
  const BlockSvd<T> s = carve(given, p.ld, p.ld_v, SK_SHARED(T));
  int exponent = 0;
  const bool finite = load_scaled(given, s, exponent);
  for (int k = 0; finite && k < kMostSweeps; ++k)
    if (!sweep<T, kLanes, kRows>(s)) break;
  // Found again: kept through the sweeps, its addresses cost registers.
  const SvdMatrix<T> a = matrix_of<T>(p, blockIdx.x);
  if (!finite) {
    store_not_a_number(a, s);
    return;
  }
  column_norms<kLanes>(s);
  store_values(a, s, exponent);
  normalise_and_complete<kLanes>(s);
  store_vectors<kLanes>(a, s);
}

// Named by element type, lanes of a pair and rows that each holds. The last number bounds
// registers, and is more than the threads of any block: up to 64 rows a block has 256 threads, and
// four of them share a multiprocessor (three, float64); up to 96 columns of float32 it has 384, and
// two do. 1024 in the place of 768 spills.
SK_KERNEL(svd_shared_f32_8x8, SvdSharedParams, 1024) {
  svd_shared<float, 8, 8>(p);
}
SK_KERNEL(svd_shared_f32_8x16, SvdSharedParams, 768) {
  svd_shared<float, 8, 16>(p);
}
SK_KERNEL(svd_shared_f32_16x16, SvdSharedParams, 768) {
  svd_shared<float, 16, 16>(p);
}
SK_KERNEL(svd_shared_f32_32x16, SvdSharedParams, 768) {
  svd_shared<float, 32, 16>(p);
}
SK_KERNEL(svd_shared_f64_8x8, SvdSharedParams, 768) {
  svd_shared<double, 8, 8>(p);
}
SK_KERNEL(svd_shared_f64_8x16, SvdSharedParams, 512) {
  svd_shared<double, 8, 16>(p);
}
SK_KERNEL(svd_shared_f64_16x16, SvdSharedParams, 512) {
  svd_shared<double, 16, 16>(p);
}
SK_KERNEL(svd_shared_f64_32x16, SvdSharedParams, 512) {
  svd_shared<double, 32, 16>(p);
}

}  // namespace spectral
