// Vectors of doubles and floats as wide as the instruction set this file is compiled for.
//
// Files named kernels.cpp are compiled once per instruction set (setup.py gives flags and SK_ISA);
// everything below lives in a namespace of that name, so that the linker can never hand AVX-512
// code to a machine without it. For the same reason no file that they include instantiates a
// template of the standard library: such instantiations are merged across object files.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef SK_ISA
#error "SK_ISA names the instruction set; setup.py sets it"
#endif

namespace spectral {
namespace SK_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd;

template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  static constexpr int kLanes = kVectorBytes / 8;
};

template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  static constexpr int kLanes = kVectorBytes / 4;
};

typedef Simd<double>::Vec Vd;
typedef Simd<double>::Mask Md;
constexpr int kLanes = Simd<double>::kLanes;
typedef Simd<float>::Vec Vf;
typedef Simd<float>::Mask Mf;

template <class T>
inline typename Simd<T>::Vec load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}

template <class T>
inline void store(T* p, typename Simd<T>::Vec v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}

template <class T>
inline typename Simd<T>::Vec splat(T x) {
  return x - typename Simd<T>::Vec{};
}

// As many numbers as a vector of doubles has lanes. The intrinsics are one instruction where GCC
// makes six of __builtin_convertvector.
inline Vd load_widened(const double* p) {
  return load(p);
}

inline Vd load_widened(const float* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  Vd r;
  for (int i = 0; i < kLanes; ++i)
    r[i] = p[i];
  return r;
#endif
}

// Adds the upper half to the lower until one number is left: log2(lanes) additions deep. The copies
// are register moves.
template <class T, int kCount>
inline T sum_halves(const T* lanes) {
  if constexpr (kCount * sizeof(T) == 16) {
    T sum = lanes[0];
    for (int i = 1; i < kCount; ++i)
      sum += lanes[i];
    return sum;
  } else {
    typedef T Half __attribute__((vector_size(kCount * sizeof(T) / 2)));
    Half low, high;
    std::memcpy(&low, lanes, sizeof(Half));
    std::memcpy(&high, lanes + kCount / 2, sizeof(Half));
    low += high;
    return sum_halves<T, kCount / 2>(reinterpret_cast<const T*>(&low));
  }
}

inline double horizontal_sum(Vd v) {
  return sum_halves<double, kLanes>(reinterpret_cast<const double*>(&v));
}

inline float horizontal_sum(Simd<float>::Vec v) {
  return sum_halves<float, Simd<float>::kLanes>(reinterpret_cast<const float*>(&v));
}

// x . y in two running vectors; the remainder is added last.
inline double dot(const double* x, const double* y, int64_t n) {
  Vd even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even += load(x + i) * load(y + i);
    odd += load(x + i + kLanes) * load(y + i + kLanes);
  }
  double rest = 0.0;
  for (; i < n; ++i)
    rest += x[i] * y[i];
  return horizontal_sum(even + odd) + rest;
}

inline Vd select(Md mask, Vd yes, Vd no) {
  return mask ? yes : no;
}
inline Vf select(Mf mask, Vf yes, Vf no) {
  return mask ? yes : no;
}

inline Vd square_root(Vd x) {
#if defined(__AVX512F__)
  // The masked form: the plain one makes GCC 12 warn of an uninitialised variable of its own.
  return _mm512_maskz_sqrt_pd(0xff, x);
#elif defined(__AVX2__)
  return _mm256_sqrt_pd(x);
#else
  Vd r;
  for (int i = 0; i < kLanes; ++i)
    r[i] = std::sqrt(x[i]);
  return r;
#endif
}

inline Vf square_root(Vf x) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(0xffff, x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  Vf r;
  for (int i = 0; i < Simd<float>::kLanes; ++i)
    r[i] = std::sqrt(x[i]);
  return r;
#endif
}

inline Vd absolute(Vd x) {
  return select(x < 0.0, -x, x);
}
inline Vf absolute(Vf x) {
  return select(x < 0.0f, -x, x);
}
inline Vd maximum(Vd a, Vd b) {
  return select(a > b, a, b);
}

inline bool any(Md mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(mask));
#else
  int64_t bits = 0;
  for (int i = 0; i < kLanes; ++i)
    bits |= mask[i];
  return bits != 0;
#endif
}

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace SK_ISA
}  // namespace spectral
