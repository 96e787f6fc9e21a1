// A block that runs: its threads, who waits for whom, and what went wrong.
#pragma once

#include <string>
#include <vector>

#include "cuda_fiber.h"
#include "cuda_host.h"

namespace sk_host {

enum class Meeting { kNone, kBlock, kWarp, kShuffle, kVote };

struct Thread {
  Fiber fiber;
  Meeting meeting = Meeting::kNone;
  unsigned mask = 0;
  uint64_t brought = 0, received = 0;
  int source = 0;
  bool ended = false;
};

struct Block {
  ThreadFunction run;
  const void* params;
  unsigned grid, index;
  unsigned char* shared;
  std::vector<Thread> threads;
  std::vector<unsigned> ready;
  Fiber scheduler;
  unsigned current;
  unsigned at_barrier;
  std::string error;
};

// The block that runs now.
extern Block* block;

void fail(const std::string& what);

// Called when thread i has given its turn back: lets those go on whose meeting is complete.
void arrived(unsigned i);

// The threads that can never go on, as an error: "0-3 at __syncthreads, 4-31 ended".
void explain_stall();

}  // namespace sk_host
