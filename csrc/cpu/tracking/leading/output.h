// The last steps of an update of leading vectors (leading.h): which old vector each new one is,
// signs, and the results in the caller's type.
#pragma once

#include "cpu/tracking/leading/space.h"

namespace spectral {
namespace SK_ISA {

// Which old vector a new one is: that with |cos|^2 > 1/2, of which there can be but one; a number
// never used before where there is none. sign (l): towards the nearest old one.
template <class T>
inline void recognise(const Leading<T>& p) {
  const LeadingSizes& s = p.sizes;
  const Factors f = p.factors();
  const LeadingJob& job = p.job;
  int64_t* next = job.identities + s.l;
  if (!job.warm) *next = 0;
  double* overlap = p.space.wide;
  if (job.warm) {
    // overlap[j, i]: old vector j with the new one i.
    widen_block(static_cast<const T*>(job.block), s.n, s.l, s.l, p.space.spare, s.ld);
    gemm({f.w, f.ld, p.space.spare, s.ld, 1, overlap, s.ld}, s.l, s.l, s.n);
  }
  int64_t* numbers = p.space.order;
  for (int64_t i = 0; i < s.l; ++i) {
    int64_t nearest = 0;
    double best = 0.0;
    for (int64_t j = 0; j < s.l && job.warm; ++j)
      if (std::fabs(overlap[j * s.ld + i]) > std::fabs(best)) {
        best = overlap[j * s.ld + i];
        nearest = j;
      }
    numbers[i] = best * best > 0.5 ? job.identities[nearest] : (*next)++;
    p.space.sign[i] = best < 0 ? -1.0 : 1.0;
  }
  std::memcpy(job.identities, numbers, static_cast<size_t>(s.l) * sizeof(int64_t));
}

// Vectors and values of the last iteration to the caller, the block to its state. A zero matrix has
// no vectors of its own, and leaves the state as it is.
template <class T>
inline void write_leading(const Leading<T>& p, const Iterated& iterated, double unscale) {
  const LeadingSizes& s = p.sizes;
  const LeadingSpace<T>& space = p.space;
  const LeadingJob& job = p.job;
  const SvdOutput& out = job.out;
  const Factors f = p.factors();
  const bool zero = iterated.frobenius == 0.0;
  fill(space.sign, s.ld, 1.0);
  if (!zero || !job.warm) recognise(p);
  // u = U p.
  gemm({f.v, f.ld, space.x, 1, s.ld, space.spare, s.ld}, round_up(s.m, kGemmRows), s.l, s.l);
  // The rule of svd at first: the largest entry of every u is positive.
  if (!job.warm) column_signs(space.spare, s.m, s.ld, space.suffix, space.sign);
  for (int64_t j = 0; j < s.l; ++j)
    space.order[j] = j;
  write_vectors(space.spare, s.m, job.k, s.ld, space.order, space.sign, static_cast<T*>(out.ut));
  write_vectors(f.w, s.n, job.k, f.ld, space.order, space.sign, static_cast<T*>(out.vh));
  for (int64_t i = 0; i < s.n; ++i)
    for (int64_t j = 0; j < s.l; ++j)
      f.w[i * f.ld + j] *= space.sign[j];
  if (!zero) narrow_block(f.w, s.n, s.l, f.ld, static_cast<T*>(job.block), s.l);

  // Between denormal numbers, the rounding of the result is not relative.
  const double spacing = sizeof(T) == 8 ? 4.9406564584124654e-324 : 0x1p-149;
  const double narrowing = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
  const auto k = static_cast<double>(job.k);
  for (int64_t j = 0; j < job.k; ++j) {
    static_cast<T*>(out.s)[j] = static_cast<T>(space.s[j] * unscale);
    job.bounds[j] = (space.bound[j] + narrowing * space.s[j]) * unscale + spacing;
    job.residuals[j] =
        (space.residual[j] + 3.0 * narrowing * iterated.frobenius) * unscale + spacing;
  }
  job.report[2] = zero;
  job.report[3] = (iterated.error_norm + narrowing * std::sqrt(k) * space.s[0]) * unscale +
                  std::sqrt(k) * spacing;
  job.report[4] = iterated.frobenius * unscale;
}

}  // namespace SK_ISA
}  // namespace spectral
