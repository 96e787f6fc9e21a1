#include "cpu/measures/kernels.h"

#include "cpu/common/instruction_sets.h"
#include "cpu/measures/alignment.h"
#include "cpu/measures/snapshot.h"

namespace spectral {

template <>
const MeasuresKernels& compiled_for<MeasuresKernels, InstructionSet::SK_ISA>() {
  using namespace SK_ISA;
  static const MeasuresKernels table = {alignment, snapshot};
  return table;
}

}  // namespace spectral
