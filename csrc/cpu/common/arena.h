// Buffers cut from one piece of memory, one after the other. The same cuts without memory tell how
// much they need: a workspace is described once.
#pragma once

#include <cstdint>

namespace spectral {
namespace SK_ISA {

class Arena {
 public:
  explicit Arena(double* memory = nullptr) : memory_(memory) {}

  template <class T = double>
  T* take(int64_t count) {
    double* first = memory_ ? memory_ + used_ : nullptr;
    // Whole cache lines: the next one starts where a vector may.
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 8;
    return reinterpret_cast<T*>(first);
  }

  int64_t used() const { return used_; }

 private:
  double* memory_;
  int64_t used_ = 0;
};

}  // namespace SK_ISA
}  // namespace spectral
