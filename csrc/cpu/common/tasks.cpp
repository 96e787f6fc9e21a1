#include "cpu/common/tasks.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>

namespace spectral {
namespace {

// Grows and is kept per thread, so that a call at every training step allocates nothing, up to a
// size that takes far longer to compute in than to get anew.
class Buffer {
 public:
  double* reserve(int64_t doubles) {
    if (doubles > capacity_) {
      release();
      const auto bytes = static_cast<size_t>((doubles + 7) / 8 * 8) * sizeof(double);
      memory_.reset(static_cast<double*>(std::aligned_alloc(64, bytes)));
      if (!memory_) throw std::bad_alloc();
      capacity_ = doubles;
    }
    return memory_.get();
  }

  void release_if_large() {
    constexpr int64_t kKeptDoubles = int64_t{1} << 23;
    if (capacity_ > kKeptDoubles) release();
  }

 private:
  struct Free {
    void operator()(double* p) const { std::free(p); }
  };

  void release() {
    memory_.reset();
    capacity_ = 0;
  }

  std::unique_ptr<double, Free> memory_;
  int64_t capacity_ = 0;
};

thread_local Buffer task_buffer, shared_buffer;

std::atomic<bool> is_forked_child{false};

// Registered when the module is loaded, before it can have started a thread.
const int registered = pthread_atfork(
    nullptr, nullptr, [] { is_forked_child.store(true, std::memory_order_relaxed); });

int team_size(int64_t count, int threads) {
  if (registered != 0 || is_forked_child.load(std::memory_order_relaxed)) return 1;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count)));
}

}  // namespace

double* workspace(int64_t doubles) {
  return task_buffer.reserve(doubles);
}

double* shared_workspace(int64_t doubles) {
  return shared_buffer.reserve(doubles);
}

void release_shared_workspace() {
  shared_buffer.release_if_large();
}

void run_parallel(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  const int team = team_size(count, threads);
  if (team == 1) {
    for (int64_t i = 0; i < count; ++i)
      body(i);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

void run_tasks(std::vector<Task>& tasks, int threads) {
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.cost > b.cost; });
  run_parallel(static_cast<int64_t>(tasks.size()), threads, [&tasks](int64_t i) {
    tasks[static_cast<size_t>(i)].run();
    task_buffer.release_if_large();
  });
}

}  // namespace spectral
