// How far every rank and norm of a spectrum may be from the truth, when s_i is off by at most b_i
// and all errors together by at most beta in the 2-norm. Two passes over r values, a logarithm per
// value and two more where b_i > s_i.
//
// With p = s / sum s, errors d_i in units of sum s, |sum d| <= B < 1, and H the entropy of p
// (derived in spectral_kernels/rank/summary_bounds.py; E: indices with b_i <= p_i, R: the rest):
//   |H' - H| <= [min(|g|_2 beta, sum_E |g_i| b_i) + |1 - H| B_R + sum_R G_i
//                + max(min(sum_E b_i^2 / p_i, beta^2 / min_E p_i), B^2)] / (1 - B),
// g_i = ln p_i + H, B_R the share of R in B, G_i the largest change of -x ln x for x within b_i of
// p_i; in all of R sum G_i <= |R| eta(beta / sqrt|R|) with eta(x) = -x ln x.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/kernels.h"

namespace spectral {

inline double surprisal(double x) {
  return x > 0.0 ? -x * std::log(x) : 0.0;
}

// Largest change of the concave -x ln x as x >= 0 moves from p by at most b.
inline double surprisal_change(double p, double b) {
  constexpr double kPeak = 0.36787944117144233;  // at 1 / e, and as large
  const double here = surprisal(p), low = std::max(p - b, 0.0), high = p + b;
  const double at_low = surprisal(low), at_high = surprisal(high);
  const double most = low < kPeak && kPeak < high ? kPeak : std::max(at_low, at_high);
  return std::max(most - here, here - std::min(at_low, at_high));
}

// Change of an entropy of r terms at total variation distance t (Audenaert, J. Phys. A 40, 2007).
inline double entropy_change(double t, double r) {
  if (r <= 1.0 || t <= 0.0) return 0.0;
  if (t >= 1.0 - 1.0 / r) return std::log(r);
  return t * std::log(r - 1.0) - t * std::log(t) - (1.0 - t) * std::log1p(-t);
}

// Errors in units of sum s: beta, and total, the B above. p_i = s_i / top / sum.
template <class T>
inline double entropy_expansion(const T* s, const double* b, int64_t r, double top, double sum,
                                double entropy, double beta, double total) {
  constexpr double kSmall = 0.1353352832366127;  // e^-2
  double squares = 0.0, linear = 0.0, second = 0.0, least = 1.0;
  double outside = 0.0, rest = 0.0, changes = 0.0;
  for (int64_t i = 0; i < r; ++i) {
    const double p = static_cast<double>(s[i]) / top / sum, error = b[i] / top / sum;
    if (error <= p && p > 0.0) {
      const double g = std::log(p) + entropy;
      squares += g * g;
      linear += std::fabs(g) * error;
      second += error * error / p;
      least = std::min(least, p);
    } else if (error > 0.0) {
      outside += 1.0;
      rest += error;
      changes += surprisal_change(p, error);
    }
  }
  linear = std::min(linear, std::sqrt(squares) * beta);
  second = std::min(second, beta * beta / least);
  if (outside > 0.0) {
    const double each = beta / std::sqrt(outside);
    rest = std::min(rest, outside * each);
    if (beta <= kSmall) changes = std::min(changes, outside * surprisal(each));
  }
  const double first = linear + std::fabs(1.0 - entropy) * rest + changes;
  return (first + std::max(second, total * total)) / (1.0 - total);
}

// Errors relative to the largest value.
struct SpectrumErrors {
  double first, total, norm;  // of s_1, of sum s, of the vector of all
  double sum;                 // of s
  double near;                // values whose place above or below the threshold is open
  double largest;             // b, absolute
  bool known;
};

template <class T>
inline SpectrumErrors sum_errors(const T* s, const double* b, int64_t r, double beta, double rtol,
                                 double top) {
  SpectrumErrors e = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, std::isfinite(top) && beta >= 0.0};
  const double scale = top > 0.0 ? top : 1.0;
  double squares = 0.0;
  for (int64_t i = 0; i < r; ++i) {
    const double x = static_cast<double>(s[i]) / scale, error = b[i] / scale;
    e.known = e.known && b[i] >= 0.0;
    e.largest = std::max(e.largest, b[i]);
    e.sum += x;
    e.total += error;
    squares += error * error;
    e.near += std::fabs(x - rtol) <= error + rtol * b[0] / scale;
  }
  e.norm = std::min(beta / scale, std::sqrt(squares));
  e.first = std::min(b[0] / scale, e.norm);
  e.total = std::min(e.total, std::sqrt(static_cast<double>(r)) * e.norm);
  return e;
}

// Largest error of F^2 / s_1^2 = stable = 1 + (norm of the other values)^2 / s_1^2, at most r.
inline double stable_rank_bound(double stable, const SpectrumErrors& e, double r) {
  if (!(e.first < 1.0)) return std::max(stable, r - stable);
  const double others = std::sqrt(std::max(stable - 1.0, 0.0));
  const double above = (others + e.norm) / (1.0 - e.first);
  const double below = std::max(others - e.norm, 0.0) / (1.0 + e.first);
  return std::max(std::min(r, 1.0 + above * above) - stable, stable - 1.0 - below * below);
}

// out: bounds in the order of summarize_spectrum, whose result `summary` is. eps: one unit in the
// last place of T, for a summary that is narrowed to it. NaN, or a negative bound, gives NaN.
template <class T>
inline void bound_summary(const T* s, const double* b, int64_t r, double beta, double rtol,
                          double eps, const double* summary, double* out) {
  const auto terms = static_cast<double>(r);
  const double entropy = summary[0], rank = summary[1], top = summary[4];
  const SpectrumErrors e = sum_errors(s, b, r, beta, rtol, top);
  // s = 0 up to the smallest number of T is a matrix of zeros: any other has an entry as large.
  const bool zero = top == 0.0 && e.largest <= std::numeric_limits<T>::denorm_min();
  if (!e.known || zero) {
    std::fill(out, out + kSummaryFields, e.known ? 0.0 : std::nan(""));
    return;
  }
  // Where the errors add up to all there is, the matrix may be anything.
  const double share = e.sum > 0.0 ? e.total / e.sum : 1.0;
  double change = std::max(entropy, std::log(terms) - entropy);
  double low_rank = 0.0, high_rank = terms;
  if (share < 1.0) {
    change = std::min({change, entropy_change(share, terms),
                       entropy_expansion(s, b, r, top, e.sum, entropy, e.norm / e.sum, share)});
    low_rank = std::max(1.0, rank * std::exp(-change));
    high_rank = std::min(terms, rank * std::exp(change));
  }
  const double scale = top > 0.0 ? top : 1.0, rounding = eps + (terms + 8.0) * 0x1p-51;
  out[0] = change + rounding * (1.0 + std::log(terms));
  out[1] = std::max(high_rank - rank, rank - low_rank) + rounding * terms;
  out[2] = std::max(0.0, stable_rank_bound(summary[2], e, terms)) + rounding * summary[2];
  out[3] = e.near;
  out[4] = e.first * scale + rounding * top;
  out[5] = e.total * scale + rounding * summary[5];
  out[6] = e.norm * scale + rounding * summary[6];
}

}  // namespace spectral
