// Normal numbers by their place: entry (row, column) of the random block of a matrix, without any
// state, the same bits on every machine and in every language.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011): ten rounds of two 32 x 32 bit products over a counter of four words, keyed by the seed.
// Box & Muller (1958) turns two words into two normals: sqrt(-2 ln u) (cos a, sin a), the logarithm
// and the sines by polynomials of float32 (the coefficients of Cephes, S. Moshier, 1989; a few
// 1e-7). Only +, *, sqrt and integers, each rounded alone: compile with -ffp-contract=off.
// Numbers are at most sqrt(2 * 24 ln 2) = 5.77 in magnitude. About 30 integer and 20 float
// operations for each.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace spectral {
namespace {

struct Words {
  uint32_t x, y, z, w;
};

inline Words philox(Words c, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.x, b = uint64_t{0xCD9E8D57u} * c.z;
    c = {static_cast<uint32_t>(b >> 32) ^ c.y ^ key_low, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c.w ^ key_high, static_cast<uint32_t>(a)};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return c;
}

inline int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// sqrt(-2 ln u), u = (2 (word >> 9) + 1) / 2^24: exact in float32, never 0 or 1.
inline float normal_radius(uint32_t word) {
  const float u = static_cast<float>(static_cast<int32_t>(word >> 9) * 2 + 1) * 0x1p-24f;
  // u = 2^e (1 + t), sqrt(1/2) <= 1 + t < sqrt(2).
  const int32_t e = (bits_of(u) - 0x3f3504f3) >> 23;
  const float t = float_of(bits_of(u) - e * (1 << 23)) - 1.0f, z = t * t;
  float p = 7.0376836292e-2f * t - 1.1514610310e-1f;
  p = p * t + 1.1676998740e-1f;
  p = p * t - 1.2420140846e-1f;
  p = p * t + 1.4249322787e-1f;
  p = p * t - 1.6668057665e-1f;
  p = p * t + 2.0000714765e-1f;
  p = p * t - 2.4999993993e-1f;
  p = p * t + 3.3333331174e-1f;
  // ln 2 in two parts, the first of few bits.
  const float exponent = static_cast<float>(e);
  float log = t * z * p + exponent * -2.12194440e-4f;
  log = log - 0.5f * z;
  log = t + log + exponent * 0.693359375f;
  return std::sqrt(-2.0f * log);
}

struct Pair {
  float a, b;
};

// The top bit swaps sine and cosine of an angle within pi / 4, the next one negates both: the four
// quadrants. The 23 bits after them are the angle.
inline Pair unit_vector(uint32_t word) {
  const int32_t fraction = static_cast<int32_t>((word >> 7) & 0x7fffffu) * 2 + 1 - (1 << 23);
  const float angle = static_cast<float>(fraction) * 0x1p-24f * 1.57079632679f;
  const float z = angle * angle;
  float s = z * -1.9515295891e-4f + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = s * z * angle + angle;
  float c = z * 2.443315711809948e-5f - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = c * z * z - 0.5f * z + 1.0f;
  const int32_t sign = static_cast<int32_t>((word << 1) & 0x80000000u);
  const bool swapped = static_cast<int32_t>(word) < 0;
  return {float_of(bits_of(swapped ? s : c) ^ sign), float_of(bits_of(swapped ? c : s) ^ sign)};
}

inline Pair normal_pair(uint32_t radius, uint32_t angle) {
  const float r = normal_radius(radius);
  const Pair u = unit_vector(angle);
  return {r * u.a, r * u.b};
}

}  // namespace
}  // namespace spectral
