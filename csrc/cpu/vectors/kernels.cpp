#include "cpu/vectors/kernels.h"

#include "cpu/common/instruction_sets.h"
#include "cpu/vectors/gram_svd.h"
#include "cpu/vectors/lanes_svd.h"
#include "cpu/vectors/rsvd.h"

namespace spectral {

template <>
const VectorsKernels& compiled_for<VectorsKernels, InstructionSet::SK_ISA>() {
  using namespace SK_ISA;
  static const VectorsKernels table = {
      svd_lanes_workspace, svd_lanes, gram_svd_workspace, svd, rsvd_workspace, rsvd, normals};
  return table;
}

}  // namespace spectral
