// Where to look next for a root between a and b, given a third point c outside of them
// (Chandrupatla 1997): inverse quadratic interpolation where its parabola is monotone, else the
// middle.
//
// One source for vectors of doubles (csrc/cpu/values/brackets.h, a bracket for each lane) and for a
// double (csrc/cuda/sturm.cuh, a bracket for each thread).
#pragma once

#include "include/portable.h"

namespace spectral {

// The squares under Sturm's recurrence are at least kSquareFloor, for ||T|| = 1: between two
// scalings p grows by 3^kStride at most, and shrinks by kSquareFloor^(kStride / 2).
constexpr int kStride = 16;
constexpr double kSquareFloor = 1e-36;

// Steps of interpolation before an interval is only halved: the values of random matrices need up
// to 12. Those of steeply falling spectra, all but zero beside the polynomial's large ones, can
// need more than halving takes: 10.1 points each over both kinds, where 8 steps give 12.5, 25 10.8.
constexpr int kPatience = 12;

// a is the newer end; f at a and b differ in sign wherever `interpolate` holds. `resolution` is the
// width at which an interval counts as one number.
template <class V, class Mask>
SK_BOTH V next_point(V xa, V fa, V xb, V fb, V xc, V fc, Mask interpolate, double resolution) {
  const V ab = xb - xa, cb = xb - xc, p = fb - fa, q = fc - fb, r = fc - fa;
  const V kept = ab < 0.0 ? -ab : ab, whole = cb < 0.0 ? -cb : cb, square = q * q;
  // Chandrupatla's test without its quotients.
  const auto monotone =
      (p * p * whole < square * kept) & (r * r * whole < square * (whole - kept)) & interpolate;
  const V share = fa * ((cb - ab) * fb * p + fc * r * ab) / -(p * q * r * ab);
  // Never quite at an end: from a good end the next look is across the eigenvalue, which closes it.
  const V margin = 0.5 * resolution / kept, rest = 1.0 - margin, half = 0.0 * ab + 0.5;
  const V above = share > margin ? share : margin, inner = share < rest ? above : rest;
  return xa + (monotone ? inner : half) * ab;
}

}  // namespace spectral
