// Bounds of every rank and norm of a spectrum, by one core: two passes over r values, a logarithm
// per value and two more where b_i > s_i. The formulas are in include/.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "include/summary_bounds.h"

namespace spectral {

// out: bounds in the order of summarize_spectrum, whose result `summary` is. eps: one unit in the
// last place of T, for a summary that is narrowed to it. NaN, or a negative bound, gives NaN.
template <class T>
inline void bound_summary(const T* s, const double* b, int64_t r, double beta, double rtol,
                          double eps, const double* summary, double* out) {
  const auto terms = static_cast<double>(r);
  const double entropy = summary[0], top = summary[4];
  const double scale = top > 0.0 ? top : 1.0, doubt = rtol * b[0] / scale;
  ErrorSums sums = {};
  for (int64_t i = 0; i < r; ++i)
    add_value(sums, static_cast<double>(s[i]), b[i], scale, rtol, doubt);
  const bool valid = std::isfinite(top) && beta >= 0.0 && sums.unknown == 0.0;
  // s = 0 up to the smallest number of T is a matrix of zeros: any other has an entry as large.
  const bool zero = top == 0.0 && sums.largest <= std::numeric_limits<T>::denorm_min();
  if (!valid || zero) {
    std::fill(out, out + kSummaryFields, valid ? 0.0 : std::nan(""));
    return;
  }
  const SpectrumErrors e = combine_errors(sums, b[0] / scale, beta / scale, terms);
  const double share = sums.sum > 0.0 ? e.total / sums.sum : 1.0;
  double expansion = 0.0;
  if (share < 1.0) {
    EntropyErrors errors = no_entropy_errors();
    for (int64_t i = 0; i < r; ++i)
      add_term(errors, static_cast<double>(s[i]) / top / sums.sum, b[i] / top / sums.sum, entropy);
    expansion = entropy_bound(errors, entropy, e.norm / sums.sum, share);
  }
  finish_bounds(summary, sums, e, share, expansion, terms, eps, out);
}

}  // namespace spectral
