// A batch of matrices as Python hands it over, any strides and four floating-point types, and where
// a decomposition of it goes.
#pragma once

#include <cstdint>

namespace spectral {

enum class DType : int { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2, kFloat64 = 3 };

inline int64_t size_of(DType t) {
  return t == DType::kFloat64 ? 8 : t == DType::kFloat32 ? 4 : 2;
}

// Strides are counted in elements. Values are computed and returned in float64 for float64 input
// and in float32 for every other type.
struct MatrixView {
  const void* data;
  DType dtype;
  int64_t batch, m, n;
  int64_t stride_b, stride_m, stride_n;

  bool is_double() const { return dtype == DType::kFloat64; }
  int64_t long_side() const { return m > n ? m : n; }
  int64_t short_side() const { return m > n ? n : m; }
  // The matrix with its long side first, X = A or A^T: every solver works on X.
  int64_t stride_long() const { return m >= n ? stride_m : stride_n; }
  int64_t stride_short() const { return m >= n ? stride_n : stride_m; }

  MatrixView transposed() const { return {data, dtype, batch, n, m, stride_b, stride_n, stride_m}; }
  MatrixView at(int64_t b) const {
    MatrixView one = *this;
    one.data = static_cast<const char*>(data) + b * stride_b * size_of(dtype);
    one.batch = 1;
    return one;
  }
};

// U and Vh by rows: ut (r, m) is U transposed, vh (r, n). float64 for float64 input, else float32.
struct SvdOutput {
  void* ut;
  void* s;
  void* vh;

  // Those of the b-th matrix of a batch, of which r triplets are wanted.
  SvdOutput at(const MatrixView& a, int64_t r, int64_t b) const {
    const int64_t bytes = a.is_double() ? 8 : 4;
    return {static_cast<char*>(ut) + b * r * a.m * bytes, static_cast<char*>(s) + b * r * bytes,
            static_cast<char*>(vh) + b * r * a.n * bytes};
  }
};

}  // namespace spectral
