#include "cpu/values/kernels.h"

#include "cpu/common/instruction_sets.h"
#include "cpu/values/dqds.h"
#include "cpu/values/gram_values.h"
#include "cpu/values/reduce.h"

namespace spectral {

template <>
const ValuesKernels& compiled_for<ValuesKernels, InstructionSet::SK_ISA>() {
  using namespace SK_ISA;
  static const ValuesKernels table = {
      gram_size,    gram_workspace,   gram_part, gram_values,  reduce_lanes_workspace,
      reduce_lanes, reduce_workspace, reduce,    qd_workspace, qd};
  return table;
}

}  // namespace spectral
