// Random blocks, as csrc/include/philox.h defines them. A unit of its own: compiled once per
// instruction set like kernels.cpp, and with -ffp-contract=off, without which a fused multiply-add
// rounds once where another machine rounds twice.
#include "cpu/vectors/kernels.h"
#include "include/philox.h"

namespace spectral {
namespace SK_ISA {

// out[c * ld + j] for columns first <= c < last and rows j < n. Four columns share a counter, and
// rows stand side by side in a vector.
void normals(const RandomBlock& block, int64_t n, int64_t first, int64_t last, float* out,
             int64_t ld) {
  constexpr int kRows = 64;
  const auto low = static_cast<uint32_t>(block.seed),
             high = static_cast<uint32_t>(block.seed >> 32);
  for (int64_t group = first / 4; 4 * group < last; ++group)
    for (int64_t j = 0; j < n; j += kRows) {
      float numbers[4][kRows];
      for (int i = 0; i < kRows; ++i) {
        const Words w = philox(
            {static_cast<uint32_t>(j + i), static_cast<uint32_t>(group), block.entry, block.matrix},
            low, high);
        const Pair ab = normal_pair(w.x, w.y), cd = normal_pair(w.z, w.w);
        numbers[0][i] = ab.a;
        numbers[1][i] = ab.b;
        numbers[2][i] = cd.a;
        numbers[3][i] = cd.b;
      }
      const int64_t rows = n - j < kRows ? n - j : kRows;
      for (int64_t c = 0; c < 4; ++c)
        if (4 * group + c >= first && 4 * group + c < last)
          std::memcpy(out + (4 * group + c) * ld + j, numbers[c],
                      static_cast<size_t>(rows) * sizeof(float));
    }
}

}  // namespace SK_ISA
}  // namespace spectral
