// Which singular values of a spectrum are too close to tell their vectors apart: a cluster is a
// chain of overlapping intervals s_i +- radius_i (spectral_kernels/alignment/clusters.py), with
//
//     radius_i = b_i + |s_i - last_i|
//
// from the bound b_i of the error and the distance that the value has moved since `last`, nothing
// where that is NaN.
#pragma once

#include <cmath>
#include <cstdint>

namespace spectral {

// first[i]: the index of the first value of i's cluster. alone[i]: whether it is one vector, whose
// interval does not meet zero either. `last` becomes s where that is finite. open: values after
// the r-th are not known, so that its cluster has no end.
template <class T>
inline void find_clusters(const T* s, const double* b, double* last, int64_t r, bool open,
                          int64_t* first, uint8_t* alone) {
  double low_before = 0.0;
  for (int64_t i = 0; i < r; ++i) {
    const double value = static_cast<double>(s[i]);
    const double moved = std::isnan(last[i]) ? 0.0 : std::fabs(value - last[i]);
    const double low = value - (b[i] + moved), high = value + (b[i] + moved);
    // NaN joins nothing.
    const bool begins = i == 0 || !(low_before <= high);
    first[i] = begins ? i : first[i - 1];
    alone[i] = begins && low > 0.0;
    if (!begins) alone[i - 1] = 0;
    if (std::isfinite(value)) last[i] = value;
    low_before = low;
  }
  if (open && r > 0)
    for (int64_t i = first[r - 1]; i < r; ++i)
      alone[i] = 0;
}

}  // namespace spectral
