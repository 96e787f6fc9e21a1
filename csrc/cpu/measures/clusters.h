// Which singular values are too close together, in a spectrum s or in the one s' that it is
// compared with, to tell their vectors apart (spectral_kernels/alignment/clusters.py). Value i has
// the radius
//
//     rho_i = b_i + b'_i + max(|s_j - s'_j| : |j - i| <= 1),
//
// the bounds of both errors, and the distance between the two; what is NaN counts as nothing. A
// cluster is a chain of values whose intervals s_i +- rho_i or s'_i +- rho_i overlap.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/measures/kernels.h"

namespace spectral {

// first[i]: the index of the first value of i's cluster. alone[i]: whether it is one vector, whose
// intervals do not meet zero either. unseen: from here on values are not known, so that the cluster
// before has no end; -1 where all are.
template <class T>
inline void find_clusters(const T* s, const double* b, const ComparedSpectrum& other, int64_t r,
                          int64_t unseen, int64_t* first, uint8_t* alone) {
  const auto moved = [&](int64_t i) {
    const double d = i < 0 || i >= r ? 0.0 : std::fabs(static_cast<double>(s[i]) - other.s[i]);
    return std::isnan(d) ? 0.0 : d;
  };
  double low_before = 0.0, other_low_before = 0.0;
  for (int64_t i = 0; i < r; ++i) {
    const double error = std::isnan(other.s[i]) ? 0.0 : other.b[i];
    const double radius = b[i] + error + std::max({moved(i - 1), moved(i), moved(i + 1)});
    const double value = static_cast<double>(s[i]);
    const double low = value - radius, other_low = other.s[i] - radius;
    // NaN joins nothing.
    const bool begins =
        i == 0 || !(low_before <= value + radius || other_low_before <= other.s[i] + radius);
    first[i] = begins ? i : first[i - 1];
    alone[i] = begins && low > 0.0 && !(other_low <= 0.0);
    if (!begins) alone[i - 1] = 0;
    low_before = low;
    other_low_before = other_low;
  }
  for (int64_t i = 0; other.follow && i < r; ++i) {
    if (!std::isfinite(static_cast<double>(s[i]))) continue;
    other.s[i] = static_cast<double>(s[i]);
    other.b[i] = b[i];
  }
  if (unseen < 0) return;
  for (int64_t i = unseen > 0 && r > 0 ? first[unseen - 1] : 0; i < r; ++i)
    alone[i] = 0;
}

}  // namespace spectral
