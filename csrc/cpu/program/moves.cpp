#include "cpu/program/moves.h"

namespace spectral {
namespace {

template <class To, class From>
void copy_as(const CopyJob& job) {
  const From* src = static_cast<const From*>(job.src.data);
  To* dst = static_cast<To*>(job.dst.data);
  for (int64_t i = 0; i < job.rows; ++i)
    for (int64_t j = 0; j < job.columns; ++j)
      dst[i * job.dst.stride_row + j * job.dst.stride_column] =
          static_cast<To>(src[i * job.src.stride_row + j * job.src.stride_column]);
}

template <class To>
void copy_to(const CopyJob& job) {
  switch (job.src.type) {
    case NumberType::kFloat32:
      return copy_as<To, float>(job);
    case NumberType::kFloat64:
      return copy_as<To, double>(job);
    case NumberType::kInt64:
      return copy_as<To, int64_t>(job);
    case NumberType::kBool:
      return copy_as<To, uint8_t>(job);
  }
}

template <class T>
void mean(const MeanJob& job) {
  const T* src = static_cast<const T*>(job.src);
  T* out = static_cast<T*>(job.out);
  for (int64_t i = 0; i < job.count; ++i) {
    double sum = 0.0;
    for (int64_t j = 0; j < job.parts; ++j)
      sum += static_cast<double>(src[job.starts[j] + i]);
    out[i] = static_cast<T>(sum / static_cast<double>(job.parts));
  }
}

template <class T>
void product(const ProductJob& job) {
  const T* a = static_cast<const T*>(job.a);
  const T* b = static_cast<const T*>(job.b);
  T* out = static_cast<T*>(job.out);
  for (int64_t i = 0; i < job.count; ++i)
    out[i] = a[i] * b[i];
}

}  // namespace

void run_copy(const CopyJob& job) {
  if (job.unless_negative && *job.unless_negative < 0) return;
  job.dst.type == NumberType::kFloat64 ? copy_to<double>(job) : copy_to<float>(job);
}

void run_mean(const MeanJob& job) {
  job.dtype == DType::kFloat64 ? mean<double>(job) : mean<float>(job);
}

void run_product(const ProductJob& job) {
  job.dtype == DType::kFloat64 ? product<double>(job) : product<float>(job);
}

}  // namespace spectral
