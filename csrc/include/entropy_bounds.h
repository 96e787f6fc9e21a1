// How far the entropy of p may be from the truth, from sums over its terms.
//
// With p = s / sum s, errors d_i in units of sum s, |sum d| <= B < 1, and H the entropy of p
// (derived in spectral_kernels/rank/summary_bounds.py; E: indices with b_i <= p_i, R: the rest):
//   |H' - H| <= [min(|g|_2 beta, sum_E |g_i| b_i) + |1 - H| B_R + sum_R G_i
//                + max(min(sum_E b_i^2 / p_i, beta^2 / min_E p_i), B^2)] / (1 - B),
// g_i = ln p_i + H, B_R the share of R in B, G_i the largest change of -x ln x for x within b_i of
// p_i; in all of R sum G_i <= |R| eta(beta / sqrt|R|) with eta(x) = -x ln x.
// A logarithm for each term, two more where b_i > p_i.
#pragma once

#include "include/portable.h"

namespace spectral {

SK_BOTH double surprisal(double x) {
  return x > 0.0 ? -x * log(x) : 0.0;
}

// Largest change of the concave -x ln x as x >= 0 moves from p by at most b.
SK_BOTH double surprisal_change(double p, double b) {
  constexpr double kPeak = 0.36787944117144233;  // at 1 / e, and as large
  const double here = surprisal(p), low = larger(p - b, 0.0), high = p + b;
  const double at_low = surprisal(low), at_high = surprisal(high);
  const double most = low < kPeak && kPeak < high ? kPeak : larger(at_low, at_high);
  return larger(most - here, here - smaller(at_low, at_high));
}

// Change of an entropy of r terms at total variation distance t (Audenaert, J. Phys. A 40, 2007).
SK_BOTH double entropy_change(double t, double r) {
  if (r <= 1.0 || t <= 0.0) return 0.0;
  if (t >= 1.0 - 1.0 / r) return log(r);
  return t * log(r - 1.0) - t * log(t) - (1.0 - t) * log1p(-t);
}

// Everything is a sum over terms except `least`.
struct EntropyErrors {
  double squares, linear, second, least;  // over E
  double outside, rest, changes;          // over R: how many, their errors, their G
};

SK_BOTH EntropyErrors no_entropy_errors() {
  return {0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0};
}

SK_BOTH void add_term(EntropyErrors& e, double p, double error, double entropy) {
  if (error <= p && p > 0.0) {
    const double g = log(p) + entropy;
    e.squares += g * g;
    e.linear += fabs(g) * error;
    e.second += error * error / p;
    e.least = smaller(e.least, p);
  } else if (error > 0.0) {
    e.outside += 1.0;
    e.rest += error;
    e.changes += surprisal_change(p, error);
  }
}

// beta and total, the B above, in units of sum s.
SK_BOTH double entropy_bound(const EntropyErrors& e, double entropy, double beta, double total) {
  constexpr double kSmall = 0.1353352832366127;  // e^-2
  const double linear = smaller(e.linear, sqrt(e.squares) * beta);
  const double second = smaller(e.second, beta * beta / e.least);
  double rest = e.rest, changes = e.changes;
  if (e.outside > 0.0) {
    const double each = beta / sqrt(e.outside);
    rest = smaller(rest, e.outside * each);
    if (beta <= kSmall) changes = smaller(changes, e.outside * surprisal(each));
  }
  const double first = linear + fabs(1.0 - entropy) * rest + changes;
  return (first + larger(second, total * total)) / (1.0 - total);
}

}  // namespace spectral
