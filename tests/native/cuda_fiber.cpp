// Never compiled with -fsanitize: a fiber's bookkeeping is no part of the kernels.
#include "cuda_fiber.h"

#include <cstdlib>
#include <cstring>

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

namespace sk_host {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kGuard = 0xa5;

#if defined(SK_TSAN)
constexpr unsigned kNoSync = 1;
constexpr size_t kMostFibers = 4096;

std::vector<void*> retired, retired_fibers;
char launch;  // its address stands for the end of the launch

void speak_for(const Fiber& fiber) {
  __tsan_switch_to_fiber(fiber.identity, kNoSync);
}
#endif

}  // namespace

#if defined(SK_TSAN)

void order(const std::vector<Fiber*>& fibers, const Fiber& scheduler) {
  // A place of its own for each meeting: what is left at an old one would order more than this.
  void* place = std::malloc(8);
  for (Fiber* fiber : fibers) {
    speak_for(*fiber);
    __tsan_release(place);
  }
  for (Fiber* fiber : fibers) {
    speak_for(*fiber);
    __tsan_acquire(place);
  }
  speak_for(scheduler);
  std::free(place);
}

// Blocks are not ordered among each other, so nothing may be freed, which counts as a write,
// before the launch ends.
void retire(void* memory) {
  retired.push_back(memory);
}

static void forget(const Fiber& fiber, const Fiber& scheduler) {
  speak_for(fiber);
  __tsan_release(&launch);
  speak_for(scheduler);
  // A later fiber may get the number of one that was destroyed and count as the same thread, which
  // hides races between blocks; but there are no more than some 8000 numbers.
  if (retired_fibers.size() < kMostFibers)
    retired_fibers.push_back(fiber.identity);
  else
    __tsan_destroy_fiber(fiber.identity);
}

void end_launch() {
  __tsan_acquire(&launch);
  for (void* identity : retired_fibers)
    __tsan_destroy_fiber(identity);
  for (void* memory : retired)
    std::free(memory);
  retired_fibers.clear();
  retired.clear();
}

#else

void order(const std::vector<Fiber*>&, const Fiber&) {}
void retire(void* memory) {
  std::free(memory);
}
static void forget(const Fiber&, const Fiber&) {}
void end_launch() {}

#endif

void adopt([[maybe_unused]] Fiber& fiber) {
#if defined(SK_TSAN)
  fiber.identity = __tsan_get_current_fiber();
#elif !defined(SK_ASAN)
  fiber.started = true;
#endif
}

void create(Fiber& fiber, void (*main)()) {
  fiber.stack = static_cast<unsigned char*>(std::malloc(kStackBytes));
  std::memset(fiber.stack, kGuard, kGuardBytes);
#if defined(SK_TSAN)
  fiber.identity = __tsan_create_fiber(0);
#endif
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, main, 0);
}

bool destroy(Fiber& fiber, const Fiber& scheduler) {
  bool intact = true;
  for (size_t i = 0; i < kGuardBytes; ++i)
    intact = intact && fiber.stack[i] == kGuard;
  forget(fiber, scheduler);
  retire(fiber.stack);
  return intact;
}

#if defined(SK_TSAN) || defined(SK_ASAN)

void switch_to(Fiber& from, Fiber& to) {
#if defined(SK_TSAN)
  speak_for(to);
#endif
  swapcontext(&from.context, &to.context);
}

#else

// swapcontext saves the signal mask by two system calls; only a fiber's first start needs it.
void switch_to(Fiber& from, Fiber& to) {
  if (_setjmp(from.place) != 0) return;
  if (to.started) _longjmp(to.place, 1);
  to.started = true;
  setcontext(&to.context);
}

#endif

}  // namespace sk_host
