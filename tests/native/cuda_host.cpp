// Runs the kernels of cuda_host.h: fibers, barriers, exchanges between lanes.
//
// This file is never compiled with -fsanitize: its own bookkeeping is no part of the kernels. With
// SK_TSAN every fiber is a thread to ThreadSanitizer, and only barriers order memory; shuffles and
// votes do not, as on the device. Fibers of different blocks are never ordered.
#include "cuda_host.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#if defined(SK_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#if !defined(SK_TSAN) && !defined(SK_ASAN)
#include <setjmp.h>
#endif

namespace sk_host {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kGuard = 0xa5;

struct Entry {
  ThreadFunction run;
  int64_t params_bytes, max_threads;
};

std::map<std::string, Entry>& entries() {
  static std::map<std::string, Entry> all;
  return all;
}

struct Fiber {
  ucontext_t context;
#if !defined(SK_TSAN) && !defined(SK_ASAN)
  jmp_buf place;
  bool started = false;
#endif
  void* identity = nullptr;  // ThreadSanitizer's
  unsigned char* stack = nullptr;
  Meeting meeting = Meeting::kNone;
  unsigned mask = 0;
  uint64_t brought = 0, received = 0;
  int source = 0;
  bool ended = false;
};

struct Launch {
  const Entry* kernel;
  const void* params;
  unsigned grid, block_threads, block;
  unsigned char* shared;
  std::vector<Fiber> fibers;
  std::vector<unsigned> ready;
  std::vector<void*> retired, retired_fibers;  // of blocks that have ended
  Fiber scheduler;
  unsigned current;
  unsigned at_barrier;
  std::string error;
};

Launch* now = nullptr;

#if defined(SK_TSAN)
constexpr unsigned kNoSync = 1;
constexpr size_t kMostFibers = 4096;

void* new_identity() {
  return __tsan_create_fiber(0);
}
void speak_for(const Fiber& fiber) {
  __tsan_switch_to_fiber(fiber.identity, kNoSync);
}
void forget(const Fiber& fiber) {
  speak_for(fiber);
  __tsan_release(now);
  speak_for(now->scheduler);
  // A later fiber may get the number of one that was destroyed and count as the same thread, which
  // hides races between blocks; but there are no more than some 8000 numbers.
  if (now->retired_fibers.size() < kMostFibers)
    now->retired_fibers.push_back(fiber.identity);
  else
    __tsan_destroy_fiber(fiber.identity);
}
// Blocks are never ordered among each other, so nothing may be freed, which counts as a write,
// before the end of the launch orders all of them before whatever the host does next.
void retire(void* memory) {
  now->retired.push_back(memory);
}
void end_launch() {
  __tsan_acquire(now);
  for (void* identity : now->retired_fibers)
    __tsan_destroy_fiber(identity);
  for (void* memory : now->retired)
    std::free(memory);
}
// Everything that any of these did before is seen by all of them after. A place of its own for
// each meeting, because what is left at an old one would order more than this meeting does.
void order(const std::vector<Fiber*>& fibers) {
  void* place = std::malloc(8);
  for (Fiber* fiber : fibers) {
    speak_for(*fiber);
    __tsan_release(place);
  }
  for (Fiber* fiber : fibers) {
    speak_for(*fiber);
    __tsan_acquire(place);
  }
  speak_for(now->scheduler);
  std::free(place);
}
#else
void* new_identity() {
  return nullptr;
}
void forget(const Fiber&) {}
void retire(void* memory) {
  std::free(memory);
}
void end_launch() {}
void speak_for(const Fiber&) {}
void order(const std::vector<Fiber*>&) {}
#endif

#if defined(SK_TSAN) || defined(SK_ASAN)
void switch_stack(Fiber& from, Fiber& to) {
  swapcontext(&from.context, &to.context);
}
#else
// swapcontext saves the signal mask by two system calls; only a fiber's first start needs it.
void switch_stack(Fiber& from, Fiber& to) {
  if (_setjmp(from.place) != 0) return;
  if (to.started) _longjmp(to.place, 1);
  to.started = true;
  setcontext(&to.context);
}
#endif

void switch_to(Fiber& from, Fiber& to) {
  speak_for(to);
  switch_stack(from, to);
}

void fiber_main() {
  now->kernel->run(now->params);
  Fiber& me = now->fibers[now->current];
  me.ended = true;
  switch_to(me, now->scheduler);
}

// Waits until the scheduler finds the meeting complete.
Fiber& wait(Meeting meeting, unsigned mask, uint64_t bits, int source) {
  Fiber& me = now->fibers[now->current];
  me.meeting = meeting;
  me.mask = mask;
  me.brought = bits;
  me.source = source;
  switch_to(me, now->scheduler);
  return me;
}

const char* name_of(Meeting meeting) {
  switch (meeting) {
    case Meeting::kBlock:
      return "at __syncthreads";
    case Meeting::kWarp:
      return "at __syncwarp";
    case Meeting::kShuffle:
      return "at a shuffle";
    case Meeting::kVote:
      return "at a vote";
    default:
      return "running";
  }
}

void fail(const std::string& what) {
  if (now->error.empty()) now->error = what + " in block " + std::to_string(now->block);
}

void complete_block() {
  std::vector<Fiber*> all;
  uint64_t count = 0;
  for (Fiber& fiber : now->fibers) {
    all.push_back(&fiber);
    count += fiber.brought;
  }
  order(all);
  for (unsigned i = 0; i < now->block_threads; ++i) {
    now->fibers[i].meeting = Meeting::kNone;
    now->fibers[i].received = count;
    now->ready.push_back(i);
  }
  now->at_barrier = 0;
}

// The lanes of the mask, when all of them wait for the same thing; else nothing.
std::vector<Fiber*> lanes_that_meet(unsigned first, const Fiber& me) {
  std::vector<Fiber*> lanes;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(me.mask >> i & 1u)) continue;
    Fiber& other = now->fibers[first + i];
    if (other.ended || other.meeting != me.meeting || other.mask != me.mask) return {};
    lanes.push_back(&other);
  }
  return lanes;
}

void complete_warp(unsigned first, const std::vector<Fiber*>& lanes) {
  const Meeting meeting = lanes[0]->meeting;
  const unsigned mask = lanes[0]->mask;
  if (meeting == Meeting::kWarp) order(lanes);
  uint64_t votes = 0;
  for (const Fiber* lane : lanes)
    if (lane->brought != 0) votes |= uint64_t{1} << (lane - &now->fibers[first]);
  for (Fiber* lane : lanes) {
    if (meeting == Meeting::kVote) lane->received = votes;
    if (meeting != Meeting::kShuffle) continue;
    if (!(mask >> lane->source & 1u)) fail("a shuffle reads a lane that its mask leaves out");
    lane->received = now->fibers[first + static_cast<unsigned>(lane->source)].brought;
  }
  for (Fiber* lane : lanes) {
    lane->meeting = Meeting::kNone;
    now->ready.push_back(static_cast<unsigned>(lane - now->fibers.data()));
  }
}

void arrived(unsigned i) {
  Fiber& me = now->fibers[i];
  if (me.ended) return;
  if (me.meeting == Meeting::kBlock) {
    if (++now->at_barrier == now->block_threads) complete_block();
    return;
  }
  const unsigned first = i / 32 * 32;
  if (!(me.mask >> (i - first) & 1u)) return fail("a lane is not in the mask that it gives");
  const std::vector<Fiber*> lanes = lanes_that_meet(first, me);
  if (!lanes.empty()) complete_warp(first, lanes);
}

// Names who waits where: "a barrier that not all reach: threads 0-3 at __syncthreads, ...".
void explain_stall() {
  std::string told = "threads that wait for each other in vain:";
  const auto state = [](const Fiber& f) { return f.ended ? "ended" : name_of(f.meeting); };
  for (unsigned i = 0, parts = 0; i < now->block_threads && parts < 8; ++parts) {
    unsigned last = i;
    const std::string here = state(now->fibers[i]);
    while (last + 1 < now->block_threads && here == state(now->fibers[last + 1]))
      ++last;
    told += (parts ? ", " : " ") + std::to_string(i) + "-" + std::to_string(last) + " " + here;
    i = last + 1;
  }
  fail(told);
}

void start_fiber(Fiber& fiber) {
  fiber.stack = static_cast<unsigned char*>(std::malloc(kStackBytes));
  std::memset(fiber.stack, kGuard, kGuardBytes);
  fiber.identity = new_identity();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
}

bool intact(const unsigned char* guard) {
  for (size_t i = 0; i < kGuardBytes; ++i)
    if (guard[i] != kGuard) return false;
  return true;
}

void end_fiber(Fiber& fiber) {
  if (!intact(fiber.stack)) fail("a thread needs more stack than cuda_host.cpp gives it");
  forget(fiber);
  retire(fiber.stack);
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

void run_block(size_t shared_bytes) {
  now->shared = new_shared(shared_bytes);
  now->at_barrier = 0;
  now->fibers.assign(now->block_threads, Fiber());
  now->ready.clear();
  for (unsigned i = 0; i < now->block_threads; ++i) {
    start_fiber(now->fibers[i]);
    now->ready.push_back(i);
  }
  std::vector<unsigned> turn;
  while (!now->ready.empty() && now->error.empty()) {
    turn.swap(now->ready);
    now->ready.clear();
    for (const unsigned i : turn) {
      now->current = i;
      switch_to(now->scheduler, now->fibers[i]);
      arrived(i);
    }
  }
  for (const Fiber& fiber : now->fibers)
    if (!fiber.ended && now->error.empty()) explain_stall();
#if !defined(SK_ASAN)
  if (!intact(now->shared + shared_bytes)) fail("a write past the end of shared memory");
#endif
  for (Fiber& fiber : now->fibers)
    end_fiber(fiber);
  retire(now->shared);
}

}  // namespace

Registration::Registration(const char* name, ThreadFunction run, int64_t params_bytes,
                           int64_t max_threads) {
  entries()[name] = {run, params_bytes, max_threads};
}

Index thread_index() {
  return {now->current};
}
Index block_index() {
  return {now->block};
}
Index block_size() {
  return {now->block_threads};
}
Index grid_size() {
  return {now->grid};
}
void* shared_memory() {
  return now->shared;
}

int meet_block(bool predicate) {
  return static_cast<int>(wait(Meeting::kBlock, 0, predicate, 0).received);
}
void meet_warp(unsigned mask) {
  wait(Meeting::kWarp, mask, 0, 0);
}
uint64_t shuffle(unsigned mask, uint64_t bits, int source) {
  return wait(Meeting::kShuffle, mask, bits, source).received;
}
unsigned vote(unsigned mask, bool predicate) {
  return static_cast<unsigned>(wait(Meeting::kVote, mask, predicate, 0).received);
}

}  // namespace sk_host

// The size of a kernel's struct of parameters, -1 where there is no such kernel.
extern "C" int64_t sk_host_params_bytes(const char* name) {
  const auto found = sk_host::entries().find(name);
  return found == sk_host::entries().end() ? -1 : found->second.params_bytes;
}

// Runs a kernel. Returns null, or what went wrong (valid until the next launch).
extern "C" const char* sk_host_launch(const char* name, const void* params, int64_t params_bytes,
                                      int64_t grid, int64_t block, int64_t shared_bytes) {
  using namespace sk_host;
  static std::string error;
  const auto found = entries().find(name);
  if (found == entries().end()) return (error = std::string("no kernel ") + name).c_str();
  const Entry& kernel = found->second;
  if (kernel.params_bytes != params_bytes)
    return (error = "parameters of " + std::to_string(params_bytes) + " bytes; the struct has " +
                    std::to_string(kernel.params_bytes))
        .c_str();
  if (block < 1 || block % 32 != 0 || block > kernel.max_threads || grid < 1)
    return (error = "grid " + std::to_string(grid) + ", block " + std::to_string(block) +
                    "; expected whole warps, at most " + std::to_string(kernel.max_threads))
        .c_str();
  Launch launch = {};
  launch.kernel = &kernel;
  launch.params = params;
  launch.grid = static_cast<unsigned>(grid);
  launch.block_threads = static_cast<unsigned>(block);
  now = &launch;
#if defined(SK_TSAN)
  launch.scheduler.identity = __tsan_get_current_fiber();
#endif
#if !defined(SK_TSAN) && !defined(SK_ASAN)
  launch.scheduler.started = true;
#endif
  for (int64_t b = 0; b < grid && launch.error.empty(); ++b) {
    launch.block = static_cast<unsigned>(b);
    run_block(static_cast<size_t>(shared_bytes));
  }
  end_launch();
  now = nullptr;
  error = launch.error;
  return error.empty() ? nullptr : error.c_str();
}
