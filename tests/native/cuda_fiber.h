// Fibers: the threads of a block as stacks that take turns in one operating-system thread.
//
// Under ThreadSanitizer (SK_TSAN) each is a thread of its own, and taking turns orders no memory:
// only `order` does. Fibers of different blocks are never ordered before the launch ends.
#pragma once

#include <ucontext.h>

#if !defined(SK_TSAN) && !defined(SK_ASAN)
#include <setjmp.h>
#endif

#include <vector>

namespace sk_host {

struct Fiber {
  ucontext_t context;
#if !defined(SK_TSAN) && !defined(SK_ASAN)
  jmp_buf place;
  bool started = false;
#endif
  void* identity = nullptr;  // ThreadSanitizer's
  unsigned char* stack = nullptr;
};

// The caller's own stack as a fiber that others can switch to.
void adopt(Fiber& fiber);

// A fiber that runs main when it is first switched to; main must not return.
void create(Fiber& fiber, void (*main)());

// Returns false when the fiber wrote past the end of its stack.
bool destroy(Fiber& fiber, const Fiber& scheduler);

void switch_to(Fiber& from, Fiber& to);

// Everything that any of these did before is seen by all of them after.
void order(const std::vector<Fiber*>& fibers, const Fiber& scheduler);

// Frees memory that fibers used, at the latest when the launch ends.
void retire(void* memory);

// Orders all fibers since the last call before whatever the scheduler does next.
void end_launch();

}  // namespace sk_host
