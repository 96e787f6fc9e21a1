// Eigenvectors of a symmetric matrix: tridiagonal QL with implicit Wilkinson shifts (Golub & Van
// Loan, section 8.3), the rotations collected and applied to many rows at a time.
//
// The scalar recurrence makes about 1.5 n^2 rotations of O(1) work; applying one costs 6 n flops.
// So they are recorded sweep by sweep and applied to panels of rows that stay in the first-level
// cache, each sweep carrying one column in registers: 3 loads and 1 store for 6 flops a row.
#pragma once

#include "cpu/common/tridiagonal.h"

namespace spectral {
namespace SK_ISA {

struct Rotation {
  double c, s;
};

// A sweep acts on column pairs (i, i + 1), i = top - 1, ..., bottom, in that order.
struct Sweep {
  int64_t top, bottom, first;  // first: index of its first rotation
};

struct RotationLog {
  Rotation* rotations;
  Sweep* sweeps;
  int64_t capacity, used = 0, sweep_count = 0;
};

template <int kVectors>
inline void apply_sweeps(const RotationLog& log, double* q, int64_t ld) {
  for (int64_t k = 0; k < log.sweep_count; ++k) {
    const Sweep& sweep = log.sweeps[k];
    const Rotation* r = log.rotations + sweep.first;
    Vd carried[kVectors];
    for (int v = 0; v < kVectors; ++v)
      carried[v] = load(q + sweep.top * ld + v * kLanes);
    for (int64_t i = sweep.top - 1; i >= sweep.bottom; --i, ++r) {
      double* column = q + i * ld;
      for (int v = 0; v < kVectors; ++v) {
        const Vd x = load(column + v * kLanes);
        store(column + ld + v * kLanes, r->s * x + r->c * carried[v]);
        carried[v] = r->c * x - r->s * carried[v];
      }
    }
    for (int v = 0; v < kVectors; ++v)
      store(q + sweep.bottom * ld + v * kLanes, carried[v]);
  }
}

inline void flush(RotationLog& log, double* q, int64_t ld, int64_t rows) {
  const int64_t padded = round_up(rows, kLanes);
  int64_t r = 0;
  for (; r + 4 * kLanes <= padded; r += 4 * kLanes)
    apply_sweeps<4>(log, q + r, ld);
  for (; r < padded; r += kLanes)
    apply_sweeps<1>(log, q + r, ld);
  log.used = log.sweep_count = 0;
}

// One QL sweep on the unreduced block [low, high] of (d, e).
inline void ql_sweep(double* d, double* e, int64_t low, int64_t high, RotationLog& log) {
  log.sweeps[log.sweep_count++] = {high, low, log.used};
  const double tau = (d[low + 1] - d[low]) / (2.0 * e[low]);
  const double root = std::sqrt(1.0 + tau * tau);
  double g = d[high] - d[low] + e[low] / (tau + (tau < 0 ? -root : root));
  double s = 1.0, c = 1.0, p = 0.0;
  for (int64_t i = high - 1; i >= low; --i) {
    const double f = s * e[i], b = c * e[i];
    const double r = std::sqrt(f * f + g * g);
    e[i + 1] = r;
    if (r == 0.0) {
      // The block falls apart here; the part below is left for the next look.
      d[i + 1] -= p;
      e[high] = 0.0;
      log.sweeps[log.sweep_count - 1].bottom = i + 1;
      return;
    }
    const double inverse = 1.0 / r;
    s = f * inverse;
    c = g * inverse;
    g = d[i + 1] - p;
    const double t = (d[i] - g) * s + 2.0 * c * b;
    p = s * t;
    d[i + 1] = g + p;
    g = c * t - b;
    log.rotations[log.used++] = {c, s};
  }
  d[low] -= p;
  e[low] = g;
  e[high] = 0.0;
}

// Eigenvalues of T = (d, e) into d (unordered); the columns of q are multiplied by T's
// eigenvectors. e has n entries, the last of no meaning. False when 60 n sweeps do not suffice.
inline bool tridiagonal_ql(double* d, double* e, int64_t n, double* q, int64_t ld, int64_t rows,
                           RotationLog& log) {
  double norm = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double row = std::fabs(d[i]) + (i < n - 1 ? std::fabs(e[i]) : 0.0);
    norm = row > norm ? row : norm;
  }
  const double small = 1.1e-16 * norm;
  int64_t budget = 60 * n;
  if (n > 0) e[n - 1] = 0.0;
  for (int64_t low = 0; low < n; ++low) {
    for (;;) {
      int64_t high = low;
      while (high < n - 1 && std::fabs(e[high]) > small)
        ++high;
      if (high == low) break;
      if (--budget < 0) return false;
      if (log.used + n > log.capacity || log.sweep_count >= log.capacity / 2)
        flush(log, q, ld, rows);
      ql_sweep(d, e, low, high, log);
    }
  }
  flush(log, q, ld, rows);
  return true;
}

}  // namespace SK_ISA
}  // namespace spectral
