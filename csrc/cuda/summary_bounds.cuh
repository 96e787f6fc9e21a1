// Bounds of every rank and norm of a spectrum, by the lanes of one warp: two passes over r values,
// a logarithm per value and two more where b_i > s_i. The formulas are in include/.
#pragma once

#include "cuda/summary.cuh"

namespace spectral {

SK_DEVICE ErrorSums warp_sums(ErrorSums e) {
  return {warp_sum(e.sum),  warp_sum(e.total),   warp_sum(e.squares),
          warp_sum(e.near), warp_sum(e.unknown), warp_max(e.largest)};
}

SK_DEVICE EntropyErrors warp_sums(const EntropyErrors& e) {
  return {warp_sum(e.squares), warp_sum(e.linear), warp_sum(e.second), -warp_max(-e.least),
          warp_sum(e.outside), warp_sum(e.rest),   warp_sum(e.changes)};
}

// Called by all lanes of a warp; the same result in all. `summary` is that of the same values, all
// errors together are at most `beta` in the 2-norm, b_i is `bound(i)`. eps and tiny: one unit in
// the last place and the smallest positive number of the values' type.
template <class Value, class Bound>
SK_DEVICE Summary bound_summary(const Summary& summary, int64_t r, double beta, double rtol,
                                double eps, double tiny, Value value, Bound bound) {
  const double terms = static_cast<double>(r), entropy = summary.fields[0];
  const double top = summary.fields[4], scale = top > 0.0 ? top : 1.0;
  const double first = bound(0) / scale, doubt = rtol * bound(0) / scale;
  ErrorSums sums = {};
  for (int64_t i = lane_of_warp(); i < r; i += kWarp)
    add_value(sums, value(i), bound(i), scale, rtol, doubt);
  sums = warp_sums(sums);
  Summary found = {};
  const bool known = isfinite(top) && beta >= 0.0 && sums.unknown == 0.0;
  const bool zero = top == 0.0 && sums.largest <= tiny;
  if (!known || zero) {
    for (int k = 0; k < kSummaryFields; ++k)
      found.fields[k] = known ? 0.0 : nan("");
    return found;
  }
  const SpectrumErrors e = combine_errors(sums, first, beta / scale, terms);
  const double share = sums.sum > 0.0 ? e.total / sums.sum : 1.0;
  double expansion = 0.0;
  if (share < 1.0) {
    EntropyErrors errors = no_entropy_errors();
    for (int64_t i = lane_of_warp(); i < r; i += kWarp)
      add_term(errors, value(i) / top / sums.sum, bound(i) / top / sums.sum, entropy);
    expansion = entropy_bound(warp_sums(errors), entropy, e.norm / sums.sum, share);
  }
  finish_bounds(summary.fields, sums, e, share, expansion, terms, eps, found.fields);
  return found;
}

}  // namespace spectral
