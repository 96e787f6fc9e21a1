// What every CUDA kernel is written with. The same source compiles under nvcc, under NVRTC (which
// has no standard headers) and under g++, where tests/native/cuda_host.h stands in for the device.
//
// A kernel takes one struct of 8-byte members (pointers, int64_t, double) by value, has 1-D grids
// and blocks, blocks of whole warps, and dynamic shared memory only:
//
//   struct ScaleParams { const float* x; float* y; int64_t count; double factor; };
//   SK_KERNEL(scale, ScaleParams, 256) { ... p.count ... }   // 256: most threads of a block
#pragma once

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cmath>
#include <cstdint>
#endif

#if defined(__CUDACC__)
#define SK_DEVICE __device__ __forceinline__
#define SK_KERNEL(name, Params, max_threads)                     \
  static_assert(sizeof(Params) % 8 == 0, "8-byte members only"); \
  extern "C" __global__ void __launch_bounds__(max_threads, 1)   \
      name(const __grid_constant__ Params p)
#define SK_UNROLL _Pragma("unroll")
#else
#include "cuda_host.h"
#endif

namespace spectral {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

#if defined(__CUDACC__)
// One name for all kernels: nvcc wants a single type for it in a translation unit.
extern __shared__ double2 shared_memory[];

SK_DEVICE void* shared_start() {
  return shared_memory;
}
#endif

// The dynamic shared memory of the block as an array of T, aligned to 16 bytes.
#define SK_SHARED(T) (static_cast<T*>(::spectral::shared_start()))

// The codes of numerics.DTYPE_CODES.
enum DTypeCode : int { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2, kFloat64 = 3 };

SK_DEVICE float float_from_bits(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  return sk_host::bits_as_float(bits);
#endif
}

SK_DEVICE float bfloat_to_float(uint16_t bits) {
  return float_from_bits(static_cast<uint32_t>(bits) << 16);
}

SK_DEVICE float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Moving the 15 bits into place leaves an exponent 112 too small: one exact multiplication mends
  // normal and denormal numbers alike.
  const float f = float_from_bits(magnitude << 13) * 5192296858534827628530496329220096.0f;
  return sign ? -f : f;
}

// Element `index` of an array of the given type, as T (float or double).
template <class T>
SK_DEVICE T load_as(const void* data, int64_t code, int64_t index) {
  if (code == kFloat32) return static_cast<T>(static_cast<const float*>(data)[index]);
  if (code == kFloat64) return static_cast<T>(static_cast<const double*>(data)[index]);
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return static_cast<T>(code == kFloat16 ? half_to_float(bits) : bfloat_to_float(bits));
}

// Sum, largest and "or" over the lanes of a whole warp; every lane gets the same bits, because the
// two partners of each exchange add the same two numbers.
template <class T>
SK_DEVICE T warp_sum(T x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

template <class T>
SK_DEVICE T warp_max(T x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, x, distance);
    x = other > x ? other : x;
  }
  return x;
}

}  // namespace spectral
