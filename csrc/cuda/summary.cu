// Ranks and norms of spectra that are there already: a warp for each spectrum.
#include "cuda/summary.cuh"

namespace spectral {

struct SummarizeParams {
  const void* values;
  double* table;
  int64_t code, count, r;
  double rtol;
};

SK_KERNEL(summarize, SummarizeParams, 128) {
  const int64_t warps = blockDim.x / kWarp;
  const int64_t which = blockIdx.x * warps + threadIdx.x / kWarp;
  // The whole warp leaves together.
  if (which >= p.count) return;
  const auto value = [&](int64_t i) { return load_as<double>(p.values, p.code, which * p.r + i); };
  store_summary(summarize_spectrum(p.r, p.rtol, value), p.table + which * kSummaryColumns);
}

}  // namespace spectral
