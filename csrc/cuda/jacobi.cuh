// What the Jacobi kernels share: when a pair of columns counts as orthogonal, the rotation that
// makes it so, the order in which pairs meet, and scaling by powers of two.
#pragma once

#include "cuda/device.cuh"

namespace spectral {

template <class T>
constexpr bool kIsFloat = sizeof(T) == 4;

// The cosine of two columns below which they are orthogonal: 4 eps. Rounding leaves about 1 eps,
// and looser thresholds save no sweep (measured: 4, 8 and 16 eps need the same number of sweeps on
// random and graded matrices, within one).
template <class T>
constexpr T kOrthogonal = kIsFloat<T> ? T(0x1p-21) : T(0x1p-50);

// Squared norm, in a matrix with max|a| in [0.5, 1), below which a column is noise: it is left
// alone, and its u is made from the others. Small enough that sigma_1 does not see it, large enough
// that products of two squared norms keep a few bits in T.
template <class T>
constexpr T kNoiseSquared = kIsFloat<T> ? T(0x1p-80) : T(0x1p-200);

// Columns that rounding alone keeps turning must not keep the device. 24 sweeps are the most that a
// test matrix needs (Hilbert's of 60 x 60, float64).
constexpr int kMostSweeps = 48;

// (x, y) <- (x - s (y + h x), y + s (x - h y)): a rotation by c = 1 - s h, with h = s / (1 + c)
// (Rutishauser 1966). Rounding in s and h costs orthogonality only in proportion to the angle.
template <class T>
struct JacobiRotation {
  T s, h;
  bool active;
};

template <class T>
SK_DEVICE T rotated(T x, T y, T s, T h) {
  return fma(-s, fma(h, x, y), x);
}

// The rotation that makes columns of squared norms a, b and product d orthogonal; none (s = 0)
// where they are, or where one is noise. By the same bits in every thread that has the same a, b,
// d.
template <class T>
SK_DEVICE JacobiRotation<T> jacobi_rotation(T a, T b, T d) {
  const T most = a > b ? a : b, least = a > b ? b : a;
  // In units of the larger norm: a plain tau = (b - a) / (2 d) has a square that overflows float32
  // where a small column meets a large one.
  const T unit = T(1) / most, off = d * unit, half = T(0.5) * ((b - a) * unit);
  const bool active =
      least > kNoiseSquared<T> && off * off > kOrthogonal<T> * kOrthogonal<T> * (least * unit);
  // sign(tau) / (|tau| + sqrt(1 + tau^2)) with tau = half / off: the angle of at most 45 degrees.
  // The other one, which would sort the columns, needs half as many sweeps again (measured: 13 for
  // 9 at 64 x 64, 17 for 11 at 128 x 128).
  const T t = (half < T(0) ? -off : off) / (fabs(half) + sqrt(fma(half, half, off * off)));
  const T c = T(1) / sqrt(fma(t, t, T(1)));
  const T s = c * t;
  return {active ? s : T(0), active ? s / (T(1) + c) : T(0), active};
}

// Pairs come in rounds of a tournament of an even number of players: in round r meet those whose
// numbers add up to 2 r modulo players - 1; r itself meets the last player.
SK_DEVICE int opponent(int player, int round, int players) {
  const int ring = players - 1;
  if (player == ring) return round;
  if (player == round) return ring;
  const int other = 2 * round - player;
  return other < 0 ? other + ring : other >= ring ? other - ring : other;
}

struct Pair {
  int first, second;
};

// Pair k of the players / 2 of a round. Neighbouring pairs have neighbouring columns.
SK_DEVICE Pair pair_of(int k, int round, int players) {
  const int ring = players - 1, first = round + k, second = round - k;
  if (k == 0) return {ring, round};
  return {first >= ring ? first - ring : first, second < 0 ? second + ring : second};
}

// x * 2^exponent in two exact halves: 2^-e overflows where 2^e is denormal.
template <class T>
struct PowerOfTwo {
  T half, rest;
  SK_DEVICE explicit PowerOfTwo(int exponent)
      : half(ldexp(T(1), exponent / 2)), rest(ldexp(T(1), exponent - exponent / 2)) {}
  SK_DEVICE T times(T x) const { return x * half * rest; }
};

// The exponent e with largest = f 2^e, f in [0.5, 1); 0 for zero.
template <class T>
SK_DEVICE int binary_exponent(T largest) {
  int exponent = 0;
  frexp(largest, &exponent);
  return exponent;
}

template <class T>
SK_DEVICE T not_a_number() {
  return static_cast<T>(float_from_bits(0x7fc00000u));
}

// Sum over groups of kLanes neighbouring lanes; the same bits in all of them.
template <int kLanes, class T>
SK_DEVICE T group_sum(T x) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

template <int kLanes, class T>
SK_DEVICE T group_max(T x) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x = fmax(x, __shfl_xor_sync(kFullWarp, x, distance));
  return x;
}

}  // namespace spectral
