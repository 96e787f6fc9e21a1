// Barriers, shuffles and votes. Only barriers order memory, as on the device.
#include "cuda_block.h"

namespace sk_host {
namespace {

// Waits until the scheduler finds the meeting complete.
uint64_t wait(Meeting meeting, unsigned mask, uint64_t bits, int source) {
  Thread& me = block->threads[block->current];
  me.meeting = meeting;
  me.mask = mask;
  me.brought = bits;
  me.source = source;
  switch_to(me.fiber, block->scheduler);
  return me.received;
}

const char* state(const Thread& thread) {
  if (thread.ended) return "ended";
  switch (thread.meeting) {
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

void go_on(Thread& thread) {
  thread.meeting = Meeting::kNone;
  block->ready.push_back(static_cast<unsigned>(&thread - block->threads.data()));
}

void order_threads(const std::vector<Thread*>& threads) {
  std::vector<Fiber*> fibers;
  for (Thread* thread : threads)
    fibers.push_back(&thread->fiber);
  order(fibers, block->scheduler);
}

void complete_block() {
  std::vector<Thread*> all;
  uint64_t count = 0;
  for (Thread& thread : block->threads) {
    all.push_back(&thread);
    count += thread.brought;
  }
  order_threads(all);
  for (Thread* thread : all) {
    thread->received = count;
    go_on(*thread);
  }
  block->at_barrier = 0;
}

// The lanes of the mask, when all of them wait for the same thing; else nothing.
std::vector<Thread*> lanes_that_meet(unsigned first, const Thread& me) {
  std::vector<Thread*> lanes;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(me.mask >> i & 1u)) continue;
    Thread& other = block->threads[first + i];
    if (other.ended || other.meeting != me.meeting || other.mask != me.mask) return {};
    lanes.push_back(&other);
  }
  return lanes;
}

void complete_warp(unsigned first, const std::vector<Thread*>& lanes) {
  const Meeting meeting = lanes[0]->meeting;
  const unsigned mask = lanes[0]->mask;
  if (meeting == Meeting::kWarp) order_threads(lanes);
  uint64_t votes = 0;
  for (const Thread* lane : lanes)
    if (lane->brought != 0) votes |= uint64_t{1} << (lane - &block->threads[first]);
  for (Thread* lane : lanes) {
    if (meeting == Meeting::kVote) lane->received = votes;
    if (meeting != Meeting::kShuffle) continue;
    if (!(mask >> lane->source & 1u)) fail("a shuffle reads a lane that its mask leaves out");
    lane->received = block->threads[first + static_cast<unsigned>(lane->source)].brought;
  }
  for (Thread* lane : lanes)
    go_on(*lane);
}

}  // namespace

void arrived(unsigned i) {
  const Thread& me = block->threads[i];
  if (me.ended) return;
  if (me.meeting == Meeting::kBlock) {
    if (++block->at_barrier == block->threads.size()) complete_block();
    return;
  }
  const unsigned first = i / 32 * 32;
  if (!(me.mask >> (i - first) & 1u)) return fail("a lane is not in the mask that it gives");
  const std::vector<Thread*> lanes = lanes_that_meet(first, me);
  if (!lanes.empty()) complete_warp(first, lanes);
}

void explain_stall() {
  const std::vector<Thread>& all = block->threads;
  std::string told = "threads that wait for each other in vain:";
  for (size_t i = 0, parts = 0; i < all.size() && parts < 8; ++parts) {
    const std::string here = state(all[i]);
    size_t last = i;
    while (last + 1 < all.size() && here == state(all[last + 1]))
      ++last;
    told += (parts ? ", " : " ") + std::to_string(i) + "-" + std::to_string(last) + " " + here;
    i = last + 1;
  }
  fail(told);
}

int meet_block(bool predicate) {
  return static_cast<int>(wait(Meeting::kBlock, 0, predicate, 0));
}
void meet_warp(unsigned mask) {
  wait(Meeting::kWarp, mask, 0, 0);
}
uint64_t shuffle(unsigned mask, uint64_t bits, int source) {
  return wait(Meeting::kShuffle, mask, bits, source);
}
unsigned vote(unsigned mask, bool predicate) {
  return static_cast<unsigned>(wait(Meeting::kVote, mask, predicate, 0));
}

}  // namespace sk_host
