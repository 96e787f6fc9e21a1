// How kernels are run: tasks over threads, small matrices over lanes, and the memory they work in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/common/instruction_sets.h"
#include "cpu/common/matrix_view.h"

namespace spectral {

struct Task {
  double cost;
  std::function<void()> run;
};

// Calls body(0), ..., body(count - 1), each taken by the next thread that is free. The only
// parallel region of these sources. An exception (memory) is carried out of it. One thread in a
// forked child: a fork copies the caller of OpenMP's threads and none of them, and a region there
// waits for them for ever.
void run_parallel(int64_t count, int threads, const std::function<void(int64_t)>& body);

// Longest first: with a few large matrices anything else leaves threads idle. Sorts `tasks`.
void run_tasks(std::vector<Task>& tasks, int threads);

// At least so many doubles of the calling thread's own, until its next request or the task's end.
double* workspace(int64_t doubles);
// Apart from it, what the tasks of a call share; requested by the thread that makes them.
double* shared_workspace(int64_t doubles);
// To be called when the sharing is over.
void release_shared_workspace();

// The largest short side that the exact solvers take, beyond which blocked LAPACK wins: float64
// values, and vectors of the other types. Values of the others have no limit.
constexpr int64_t kMaxDirectSide = 384;
// At or below these a matrix is one lane of a vector.
constexpr int64_t kLaneShortSide = 32;
constexpr int64_t kLaneLongSide = 64;

inline bool fits_a_lane(const MatrixView& a) {
  return a.short_side() <= kLaneShortSide && a.long_side() <= kLaneLongSide;
}

// How many of a batch share a vector: as many as it has lanes when the batch feeds every thread,
// else the batch spread evenly.
inline int64_t lane_group(int64_t batch, int threads, int vectors = 1) {
  const int64_t lanes = vectors * lanes_of(instruction_set());
  return std::clamp<int64_t>((batch + threads - 1) / threads, 1, lanes);
}

// Multiplications of a solver, up to a factor.
inline double cubic_cost(const MatrixView& a) {
  const auto n = static_cast<double>(a.short_side());
  return n * n * (static_cast<double>(a.long_side()) + 4.0 * n);
}

}  // namespace spectral
