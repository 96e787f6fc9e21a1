// Functions that CPU and CUDA code share: SK_BOTH marks them. No standard headers under NVRTC.
#pragma once

#if defined(__CUDACC__)
#define SK_BOTH __host__ __device__ __forceinline__
#else
#include <cmath>
#define SK_BOTH inline
#endif

namespace spectral {

// As std::min and std::max: the first argument when the second is NaN.
SK_BOTH double smaller(double a, double b) {
  return b < a ? b : a;
}
SK_BOTH double larger(double a, double b) {
  return a < b ? b : a;
}

}  // namespace spectral
