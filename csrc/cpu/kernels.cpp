// One set of kernels; compiled once per instruction set with SK_ISA naming it.
#include "cpu/kernels.h"

#include "cpu/alignment.h"
#include "cpu/core.h"
#include "cpu/leading.h"
#include "cpu/qd.h"
#include "cpu/reduce.h"
#include "cpu/rsvd.h"
#include "cpu/snapshot.h"
#include "cpu/svd.h"
#include "cpu/track.h"
#include "cpu/values.h"

#define SK_CONCAT_(a, b) a##b
#define SK_CONCAT(a, b) SK_CONCAT_(a, b)
#define SK_STRING_(a) #a
#define SK_STRING(a) SK_STRING_(a)

namespace spectral {
namespace SK_ISA {
namespace {

// Two vectors side by side hide the latency of the chain, when there are matrices to fill them.
int64_t qd_space(int64_t longest, int count) {
  return qd_workspace(longest, count > kLanes ? 2 : 1);
}

void qd(QdProblem* problems, int count, double* work) {
  if (count > kLanes)
    qd_eigenvalues<2>(problems, count, work);
  else
    qd_eigenvalues<1>(problems, count, work);
}

}  // namespace
}  // namespace SK_ISA

const Kernels& SK_CONCAT(kernels_, SK_ISA)() {
  namespace isa = SK_ISA;
  static const Kernels table = {
      SK_STRING(SK_ISA),
      isa::kLanes,
      isa::gram_size,
      isa::gram_workspace,
      isa::gram_part,
      isa::gram_values,
      isa::reduce_lanes_workspace,
      isa::reduce_lanes,
      isa::reduce_workspace,
      isa::reduce,
      isa::qd_space,
      isa::qd,
      isa::svd_lanes_workspace,
      isa::svd_lanes,
      isa::gram_svd_workspace,
      isa::svd,
      isa::rsvd_workspace,
      isa::rsvd,
      isa::normals,
      isa::track_workspace,
      isa::track,
      isa::leading_workspace,
      isa::leading,
      isa::core_workspace,
      isa::core,
      isa::alignment,
      isa::snapshot,
  };
  return table;
}

}  // namespace spectral
