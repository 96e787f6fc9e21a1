// Runs kernels written with device.cuh: one block after the other, its threads by turns.
#include <cstdlib>
#include <map>

#include "cuda_block.h"

namespace sk_host {

Block* block = nullptr;

namespace {

constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kGuard = 0xa5;

struct Kernel {
  ThreadFunction run;
  int64_t params_bytes, max_threads;
};

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

void thread_main() {
  block->run(block->params);
  Thread& me = block->threads[block->current];
  me.ended = true;
  switch_to(me.fiber, block->scheduler);
}

// Shared memory of exactly the size that was asked for, NaN to every type of float; with the
// address sanitizer malloc guards its end, without it these bytes do.
unsigned char* new_shared(size_t bytes) {
#if defined(SK_ASAN)
  auto* shared = static_cast<unsigned char*>(std::malloc(bytes));
#else
  auto* shared = static_cast<unsigned char*>(std::malloc(bytes + kGuardBytes));
  std::memset(shared + bytes, kGuard, kGuardBytes);
#endif
  std::memset(shared, 0xff, bytes);
  return shared;
}

void end_shared(unsigned char* shared, size_t bytes) {
#if !defined(SK_ASAN)
  for (size_t i = 0; i < kGuardBytes; ++i)
    if (shared[bytes + i] != kGuard) fail("a write past the end of shared memory");
#else
  (void)bytes;
#endif
  retire(shared);
}

void start_threads() {
  block->at_barrier = 0;
  block->ready.clear();
  for (unsigned i = 0; i < block->threads.size(); ++i) {
    block->threads[i] = Thread();
    create(block->threads[i].fiber, thread_main);
    block->ready.push_back(i);
  }
}

void take_turns() {
  std::vector<unsigned> turn;
  while (!block->ready.empty() && block->error.empty()) {
    turn.swap(block->ready);
    block->ready.clear();
    for (const unsigned i : turn) {
      block->current = i;
      switch_to(block->scheduler, block->threads[i].fiber);
      arrived(i);
    }
  }
  for (const Thread& thread : block->threads)
    if (!thread.ended && block->error.empty()) explain_stall();
}

void run_block(size_t shared_bytes) {
  block->shared = new_shared(shared_bytes);
  start_threads();
  take_turns();
  end_shared(block->shared, shared_bytes);
  for (Thread& thread : block->threads)
    if (!destroy(thread.fiber, block->scheduler))
      fail("a thread needs more stack than cuda_fiber.cpp gives it");
}

std::string refusal(const Kernel& kernel, int64_t params_bytes, int64_t grid, int64_t threads) {
  if (kernel.params_bytes != params_bytes)
    return "parameters of " + std::to_string(params_bytes) + " bytes; the struct has " +
           std::to_string(kernel.params_bytes);
  if (threads < 1 || threads % 32 != 0 || threads > kernel.max_threads || grid < 1)
    return "grid " + std::to_string(grid) + ", block " + std::to_string(threads) +
           "; expected whole warps, at most " + std::to_string(kernel.max_threads);
  return "";
}

std::string run(const Kernel& kernel, const void* params, int64_t grid, int64_t threads,
                int64_t shared_bytes) {
  Block all = {};
  all.run = kernel.run;
  all.params = params;
  all.grid = static_cast<unsigned>(grid);
  all.threads.resize(static_cast<size_t>(threads));
  block = &all;
  adopt(all.scheduler);
  for (int64_t b = 0; b < grid && all.error.empty(); ++b) {
    all.index = static_cast<unsigned>(b);
    run_block(static_cast<size_t>(shared_bytes));
  }
  end_launch();
  block = nullptr;
  return all.error;
}

}  // namespace

void fail(const std::string& what) {
  if (block->error.empty()) block->error = what + " in block " + std::to_string(block->index);
}

Registration::Registration(const char* name, ThreadFunction run, int64_t params_bytes,
                           int64_t max_threads) {
  kernels()[name] = {run, params_bytes, max_threads};
}

Index thread_index() {
  return {block->current};
}
Index block_index() {
  return {block->index};
}
Index block_size() {
  return {static_cast<unsigned>(block->threads.size())};
}
Index grid_size() {
  return {block->grid};
}
void* shared_memory() {
  return block->shared;
}

}  // namespace sk_host

// The size of a kernel's struct of parameters, -1 where there is no such kernel.
extern "C" int64_t sk_host_params_bytes(const char* name) {
  const auto found = sk_host::kernels().find(name);
  return found == sk_host::kernels().end() ? -1 : found->second.params_bytes;
}

// Runs a kernel. Returns null, or what went wrong (valid until the next launch).
extern "C" const char* sk_host_launch(const char* name, const void* params, int64_t params_bytes,
                                      int64_t grid, int64_t threads, int64_t shared_bytes) {
  static std::string error;
  const auto found = sk_host::kernels().find(name);
  if (found == sk_host::kernels().end())
    error = std::string("no kernel ") + name;
  else
    error = sk_host::refusal(found->second, params_bytes, grid, threads);
  if (error.empty()) error = sk_host::run(found->second, params, grid, threads, shared_bytes);
  return error.empty() ? nullptr : error.c_str();
}
