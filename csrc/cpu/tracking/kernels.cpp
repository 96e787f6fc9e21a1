#include "cpu/tracking/kernels.h"

#include "cpu/common/instruction_sets.h"
#include "cpu/tracking/leading/update.h"
#include "cpu/tracking/whole/update.h"

namespace spectral {

template <>
const TrackingKernels& compiled_for<TrackingKernels, InstructionSet::SK_ISA>() {
  using namespace SK_ISA;
  static const TrackingKernels table = {track_workspace, track, leading_workspace, leading};
  return table;
}

}  // namespace spectral
