// The device for g++: CUDA's names, so that a .cu file runs on the host (cuda_host.cpp runs it).
//
// The threads of a block take turns. One that comes to a barrier or to an operation of its warp
// gives its turn back, and goes on when everyone whom it waits for has come; if they cannot come
// (they ended, or wait elsewhere) the launch fails and names the threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define SK_DEVICE inline
#define SK_UNROLL _Pragma("GCC unroll 32")

// The kernel's body becomes a function that runs once for every thread.
#define SK_KERNEL(name, Params, max_threads)                                                       \
  static_assert(sizeof(Params) % 8 == 0, "8-byte members only");                                   \
  static void name##_thread(const Params& p);                                                      \
  static const ::sk_host::Registration name##_registration(                                        \
      #name, [](const void* p) { name##_thread(*static_cast<const Params*>(p)); }, sizeof(Params), \
      max_threads);                                                                                \
  static void name##_thread(const Params& p)

namespace sk_host {

typedef void (*ThreadFunction)(const void* params);

struct Registration {
  Registration(const char* name, ThreadFunction run, int64_t params_bytes, int64_t max_threads);
};

struct Index {
  unsigned x;
};

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
void* shared_memory();

// Meets the other threads of the block. Returns how many of them brought a non-zero predicate.
int meet_block(bool predicate);

// Meets the lanes of the mask without exchanging anything.
void meet_warp(unsigned mask);

// Returns the 8 bytes that `source`, a lane of this warp that must be in the mask, brought.
uint64_t shuffle(unsigned mask, uint64_t bits, int source);

// Returns the lanes of the mask whose predicate holds.
unsigned vote(unsigned mask, bool predicate);

inline float bits_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <class T>
inline T shuffle_value(unsigned mask, T x, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "as on the device");
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  bits = shuffle(mask, bits, source);
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline int lane() {
  return static_cast<int>(thread_index().x % 32);
}

}  // namespace sk_host

namespace spectral {
inline void* shared_start() {
  return sk_host::shared_memory();
}
}  // namespace spectral

#define threadIdx (::sk_host::thread_index())
#define blockIdx (::sk_host::block_index())
#define blockDim (::sk_host::block_size())
#define gridDim (::sk_host::grid_size())

inline void __syncthreads() {
  sk_host::meet_block(false);
}
inline int __syncthreads_count(int predicate) {
  return sk_host::meet_block(predicate != 0);
}
inline int __syncthreads_or(int predicate) {
  return sk_host::meet_block(predicate != 0) > 0;
}
inline int __syncthreads_and(int predicate) {
  return sk_host::meet_block(predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  sk_host::meet_warp(mask);
}

// A lane whose partner lies outside its segment of `width` lanes gets its own value back, except
// that xor reaches earlier segments, as on the device.
template <class T>
inline T __shfl_sync(unsigned mask, T x, int source, int width = 32) {
  const int lane = sk_host::lane(), first = lane / width * width;
  return sk_host::shuffle_value(mask, x, first + (source & (width - 1)));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32) {
  const int lane = sk_host::lane(), source = lane ^ bits;
  return sk_host::shuffle_value(mask, x, source < (lane / width + 1) * width ? source : lane);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32) {
  const int lane = sk_host::lane(), source = lane + static_cast<int>(delta);
  return sk_host::shuffle_value(mask, x, source < (lane / width + 1) * width ? source : lane);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32) {
  const int lane = sk_host::lane(), source = lane - static_cast<int>(delta);
  return sk_host::shuffle_value(mask, x, source >= lane / width * width ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return sk_host::vote(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return sk_host::vote(mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return sk_host::vote(mask, predicate == 0) == 0;
}

// The device's overloads for float and double, and those that C++ does not have.
using std::exp;
using std::fabs;
using std::fma;
using std::fmax;
using std::fmin;
using std::frexp;
using std::ilogb;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::ldexp;
using std::log;
using std::log1p;
using std::sqrt;
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline float rsqrt(float x) {
  return 1.0f / std::sqrt(x);
}
inline float rsqrtf(float x) {
  return rsqrt(x);
}
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
