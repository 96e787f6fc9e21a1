#include "cpu/factored/kernels.h"

#include "cpu/common/instruction_sets.h"
#include "cpu/factored/core.h"

namespace spectral {

template <>
const FactoredKernels& compiled_for<FactoredKernels, InstructionSet::SK_ISA>() {
  using namespace SK_ISA;
  static const FactoredKernels table = {core_workspace, core};
  return table;
}

}  // namespace spectral
