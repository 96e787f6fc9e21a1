// How far every rank and norm of a spectrum may be from the truth, when s_i is off by at most b_i
// and all errors together by at most beta in the 2-norm: from sums over the values that a CPU core
// takes alone and a warp takes together. Derived in spectral_kernels/rank/summary_bounds.py.
#pragma once

#include "include/entropy_bounds.h"

namespace spectral {

// effective_rank, effective_rank_exp, stable_rank, numerical_rank, spectral_norm, nuclear_norm,
// frobenius_norm: the columns of results.METRICS.
constexpr int kSummaryFields = 7;

// Sums over the values, of values and errors relative to the largest value; `largest` is b's
// maximum, absolute.
struct ErrorSums {
  double sum, total, squares;
  double near;     // values whose place above or below the threshold is open
  double unknown;  // bounds that are negative or NaN
  double largest;
};

// doubt: how far the threshold itself may be off.
SK_BOTH void add_value(ErrorSums& e, double s, double b, double scale, double rtol, double doubt) {
  const double x = s / scale, error = b / scale;
  e.sum += x;
  e.total += error;
  e.squares += error * error;
  e.near += fabs(x - rtol) <= error + doubt ? 1.0 : 0.0;
  e.unknown += b >= 0.0 ? 0.0 : 1.0;
  e.largest = larger(e.largest, b);
}

// What is known of the errors, relative to the largest value.
struct SpectrumErrors {
  double first, total, norm;  // of s_1, of sum s, of the vector of all
};

SK_BOTH SpectrumErrors combine_errors(const ErrorSums& e, double first, double beta, double terms) {
  SpectrumErrors errors;
  errors.norm = smaller(beta, sqrt(e.squares));
  errors.first = smaller(first, errors.norm);
  errors.total = smaller(e.total, sqrt(terms) * errors.norm);
  return errors;
}

// Largest error of F^2 / s_1^2 = stable = 1 + (norm of the other values)^2 / s_1^2, at most r.
SK_BOTH double stable_rank_bound(double stable, const SpectrumErrors& e, double r) {
  if (!(e.first < 1.0)) return larger(stable, r - stable);
  const double others = sqrt(larger(stable - 1.0, 0.0));
  const double above = (others + e.norm) / (1.0 - e.first);
  const double below = larger(others - e.norm, 0.0) / (1.0 + e.first);
  return larger(smaller(r, 1.0 + above * above) - stable, stable - 1.0 - below * below);
}

// out: bounds in the order of `summary`, and both in that of kSummaryFields. `expansion` is the
// entropy_bound of the same errors, used where share = e.total / sums.sum is below 1; eps one unit
// in the last place of the type that a summary is narrowed to.
SK_BOTH void finish_bounds(const double* summary, const ErrorSums& sums, const SpectrumErrors& e,
                           double share, double expansion, double terms, double eps, double* out) {
  const double entropy = summary[0], rank = summary[1], top = summary[4];
  // Where the errors add up to all there is, the matrix may be anything.
  double change = larger(entropy, log(terms) - entropy);
  double low_rank = 0.0, high_rank = terms;
  if (share < 1.0) {
    change = smaller(smaller(change, entropy_change(share, terms)), expansion);
    low_rank = larger(1.0, rank * exp(-change));
    high_rank = smaller(terms, rank * exp(change));
  }
  const double scale = top > 0.0 ? top : 1.0, rounding = eps + (terms + 8.0) * 0x1p-51;
  out[0] = change + rounding * (1.0 + log(terms));
  out[1] = larger(high_rank - rank, rank - low_rank) + rounding * terms;
  out[2] = larger(0.0, stable_rank_bound(summary[2], e, terms)) + rounding * summary[2];
  out[3] = sums.near;
  out[4] = e.first * scale + rounding * top;
  out[5] = e.total * scale + rounding * summary[5];
  out[6] = e.norm * scale + rounding * summary[6];
}

}  // namespace spectral
