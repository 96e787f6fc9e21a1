// From a spectrum to every rank and norm in one pass over it (two for sigma that are not sorted).
//
// entropy = -sum p ln p with p = sigma / sum sigma (Yunis et al. 2024, Eq. 1), computed as
// ln N - (sum x ln x) / N for x = sigma / sigma_1, N = sum x, which neither over- nor underflows.
#pragma once

#include <cmath>
#include <cstdint>

namespace spectral {

// out: effective_rank, effective_rank_exp, stable_rank, numerical_rank, spectral_norm,
// nuclear_norm, frobenius_norm. A zero matrix has rank 0 in every sense; NaN in, NaN out.
template <class T>
inline void summarize_spectrum(const T* s, int64_t r, double rtol, double* out) {
  double top = 0.0;
  bool finite = true;
  for (int64_t i = 0; i < r; ++i) {
    const double sigma = static_cast<double>(s[i]);
    finite = finite && std::isfinite(sigma);
    top = sigma > top ? sigma : top;
  }
  for (int k = 0; k < 7; ++k)
    out[k] = finite ? 0.0 : std::nan("");
  if (!finite || top == 0.0) return;
  double sum = 0.0, squares = 0.0, logs = 0.0;
  int64_t rank = 0;
  for (int64_t i = 0; i < r; ++i) {
    const double x = static_cast<double>(s[i]) / top;
    sum += x;
    squares += x * x;
    if (x > 0) logs += x * std::log(x);
    rank += x > rtol;
  }
  const double entropy = std::fmax(0.0, std::log(sum) - logs / sum);
  out[0] = entropy;
  out[1] = std::exp(entropy);
  out[2] = squares;
  out[3] = static_cast<double>(rank);
  out[4] = top;
  out[5] = sum * top;
  out[6] = std::sqrt(squares) * top;
}

}  // namespace spectral
