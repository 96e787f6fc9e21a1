// From a spectrum to every rank and norm, by the lanes of one warp; two passes over r values.
//
// entropy = -sum p ln p with p = sigma / sum sigma (Yunis et al. 2024, Eq. 1), computed as
// ln N - (sum x ln x) / N for x = sigma / sigma_1, N = sum x, which neither over- nor underflows.
// Sums are float64. The epilogue of solvers, which have their values in shared memory.
#pragma once

#include "cuda/device.cuh"
#include "include/summary_bounds.h"

namespace spectral {

struct Summary {
  double fields[kSummaryFields];
};

SK_DEVICE int lane_of_warp() {
  return static_cast<int>(threadIdx.x % kWarp);
}

// Called by all lanes of a warp, and the result is the same in all. `value(i)` gives sigma_i >= 0
// in any order. A zero matrix has rank 0 in every sense; one with NaN or Inf gives NaN.
template <class Value>
SK_DEVICE Summary summarize_spectrum(int64_t r, double rtol, Value value) {
  double top = 0.0, bad = 0.0;
  for (int64_t i = lane_of_warp(); i < r; i += kWarp) {
    const double sigma = value(i);
    // Zero for a finite value, NaN for any other.
    bad += sigma - sigma;
    top = larger(top, sigma);
  }
  top = warp_max(top);
  bad = warp_sum(bad);
  const double scale = top > 0.0 ? top : 1.0;
  double sum = 0.0, squares = 0.0, logs = 0.0, rank = 0.0;
  for (int64_t i = lane_of_warp(); i < r; i += kWarp) {
    const double x = static_cast<double>(value(i)) / scale;
    sum += x;
    squares += x * x;
    logs += x > 0.0 ? x * log(x) : 0.0;
    rank += x > rtol ? 1.0 : 0.0;
  }
  sum = warp_sum(sum);
  squares = warp_sum(squares);
  logs = warp_sum(logs);
  rank = warp_sum(rank);
  const bool some = top > 0.0;
  const double entropy = some ? larger(0.0, log(sum) - logs / sum) : 0.0;
  return {{entropy + bad, (some ? exp(entropy) : 0.0) + bad, squares + bad, rank + bad, top + bad,
           sum * top + bad, sqrt(squares) * top + bad}};
}

// Field k is written by lane k.
SK_DEVICE void store_summary(const Summary& summary, double* row) {
  const int lane = lane_of_warp();
  double mine = 0.0;
  SK_UNROLL
  for (int k = 0; k < kSummaryFields; ++k)
    mine = lane == k ? summary.fields[k] : mine;
  if (lane < kSummaryFields) row[lane] = mine;
}

}  // namespace spectral
