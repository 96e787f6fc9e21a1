// How kernels are run: tasks over threads, and the memory they work in.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/matrix_view.h"

namespace spectral {

struct Task {
  double cost;
  std::function<void()> run;
};

// Longest first, taken one by one: with a few large matrices anything else leaves threads idle. An
// exception in a task (memory) is carried out of the parallel region. Sorts `tasks`.
void run_tasks(std::vector<Task>& tasks, int threads);

// At least so many doubles of the calling thread's own, until its next request or the task's end.
double* workspace(int64_t doubles);
// Apart from it, what the tasks of a call share; requested by the thread that makes them.
double* shared_workspace(int64_t doubles);
// To be called when the sharing is over.
void release_shared_workspace();

// Multiplications of a solver, up to a factor.
inline double cubic_cost(const MatrixView& a) {
  const auto n = static_cast<double>(a.short_side());
  return n * n * (static_cast<double>(a.long_side()) + 4.0 * n);
}

}  // namespace spectral
