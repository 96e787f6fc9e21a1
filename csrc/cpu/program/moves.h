// What lies between the kernels of a program: numbers copied to where the next one reads them,
// means and products of results. Small: one thread.
#pragma once

#include <cstdint>

#include "cpu/common/matrix_view.h"

namespace spectral {

// What numbers that are moved can be: those of matrices, then integers and truth values.
enum class NumberType : int { kFloat32 = 2, kFloat64 = 3, kInt64 = 4, kBool = 5 };

// A (rows, columns) array of numbers, strides in elements.
template <class Pointer>
struct Numbers {
  Pointer data;
  NumberType type;
  int64_t stride_row, stride_column;
};

// dst (float32 or float64) = src, unless `unless_negative` points to a negative number.
struct CopyJob {
  Numbers<const void*> src;
  Numbers<void*> dst;
  int64_t rows, columns;
  const double* unless_negative;
};

// out[i] = mean over j < parts of src[starts[j] + i], i < count, summed in float64.
struct MeanJob {
  const void* src;
  DType dtype;  // of src and out: float32 or float64
  const int64_t* starts;
  int64_t parts, count;
  void* out;
};

// out[i] = a[i] b[i], i < count.
struct ProductJob {
  const void* a;
  const void* b;
  DType dtype;  // of all three: float32 or float64
  int64_t count;
  void* out;
};

void run_copy(const CopyJob& job);
void run_mean(const MeanJob& job);
void run_product(const ProductJob& job);

}  // namespace spectral
