// Sturm counts of one tridiagonal T at many points at a time (Barth, Martin & Wilkinson 1967).
//
// p_i(x) = det(T_i - x) of the leading blocks: p_i = (d_i - x) p_{i-1} - e_{i-1}^2 p_{i-2}. Its
// sign changes along i are the eigenvalues below x, for a T moved by a few eps ||T||. Each lane
// takes a point of its own, so that one matrix fills the vectors. Without divisions a step is six
// operations; a power of two is taken out of p every kStride steps.
#pragma once

#include "cpu/common/simd.h"
#include "include/interpolation.h"

namespace spectral {
namespace SK_ISA {

// Vectors side by side hide the latency of the recurrence: as many as the registers hold.
constexpr int kSturmVectors = kLanes == 8 ? 5 : 3;
constexpr int kSturmPoints = kSturmVectors * kLanes;

// d has n entries, squares the n numbers 0, e_0^2, ..., e_{n-2}^2, each of the latter at least
// kSquareFloor; T's row sums of magnitudes are at most one.
struct SturmMatrix {
  const double* d;
  const double* squares;
  int64_t n;
};

// Points in lanes: p_n(x) = value * 2^exponent, and how many eigenvalues lie below x.
struct SturmPoints {
  double x[kSturmPoints], value[kSturmPoints];
  int64_t exponent[kSturmPoints], count[kSturmPoints];
};

typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));

struct SturmState {
  Vd x[kSturmVectors], p[kSturmVectors], before[kSturmVectors];
  Bits changes[kSturmVectors], exponent[kSturmVectors];
};

inline void sturm_step(SturmState& s, double d, double square) {
  for (int v = 0; v < kSturmVectors; ++v) {
    const Vd next = (d - s.x[v]) * s.p[v] - square * s.before[v];
    s.changes[v] += (reinterpret_cast<Bits>(next) ^ reinterpret_cast<Bits>(s.p[v])) >> 63;
    s.before[v] = s.p[v];
    s.p[v] = next;
  }
}

inline void take_out_exponent(SturmState& s) {
  for (int v = 0; v < kSturmVectors; ++v) {
    const Vd size = maximum(absolute(s.p[v]), absolute(s.before[v]));
    const Bits biased = reinterpret_cast<Bits>(size) >> 52;
    const Vd scale = reinterpret_cast<Vd>((2046 - biased) << 52);
    s.exponent[v] += biased - 1023;
    s.p[v] *= scale;
    s.before[v] *= scale;
  }
}

inline void evaluate(const SturmMatrix& t, SturmPoints* points) {
  SturmState s;
  for (int v = 0; v < kSturmVectors; ++v) {
    s.x[v] = load(points->x + v * kLanes);
    s.p[v] = splat(1.0);
    s.before[v] = Vd{};
    s.changes[v] = s.exponent[v] = Bits{};
  }
  int64_t i = 0;
  for (; i + kStride <= t.n; i += kStride) {
    for (int k = 0; k < kStride; ++k)
      sturm_step(s, t.d[i + k], t.squares[i + k]);
    take_out_exponent(s);
  }
  for (; i < t.n; ++i)
    sturm_step(s, t.d[i], t.squares[i]);
  for (int v = 0; v < kSturmVectors; ++v) {
    store(points->value + v * kLanes, s.p[v]);
    std::memcpy(points->exponent + v * kLanes, &s.exponent[v], sizeof(Bits));
    std::memcpy(points->count + v * kLanes, &s.changes[v], sizeof(Bits));
  }
}

}  // namespace SK_ISA
}  // namespace spectral
