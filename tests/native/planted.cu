// Kernels with one fault each, to prove that the host's device (cuda_host.h) finds it, and a few
// that are right. Run by tests/runtime/test_cuda_on_host.py.
#include "cuda/device.cuh"

namespace spectral {

constexpr int64_t kThreads = 64;

struct PlantedParams {
  double* y;
  int64_t fault;
};

// y[i] = the number that thread 63 - i left in shared memory. Fault 0: none; 1: no barrier; 2: a
// barrier of the warp, where the other warp is read.
SK_KERNEL(exchange, PlantedParams, 64) {
  double* numbers = SK_SHARED(double);
  numbers[threadIdx.x] = threadIdx.x;
  if (p.fault == 0) __syncthreads();
  if (p.fault == 2) __syncwarp();
  p.y[threadIdx.x] = numbers[kThreads - 1 - threadIdx.x];
}

// The same inside a warp. Fault 1: a shuffle where a barrier should be, which orders no memory.
SK_KERNEL(exchange_in_warp, PlantedParams, 64) {
  double* numbers = SK_SHARED(double);
  numbers[threadIdx.x] = threadIdx.x;
  if (p.fault == 0)
    __syncwarp();
  else
    warp_sum(1.0);
  p.y[threadIdx.x] = numbers[threadIdx.x ^ 1];
}

// Both warps read what the first one wrote. Fault 1: each has met only itself; that the first did
// so earlier orders nothing between the two.
SK_KERNEL(first_warp, PlantedParams, 64) {
  double* numbers = SK_SHARED(double);
  numbers[threadIdx.x] = threadIdx.x;
  __syncwarp();
  if (p.fault == 0) __syncthreads();
  p.y[threadIdx.x] = numbers[threadIdx.x % kWarp];
}

// Two rounds through the same shared memory. Fault 1: the second write does not wait for the reads
// of the first round.
SK_KERNEL(two_rounds, PlantedParams, 64) {
  double* numbers = SK_SHARED(double);
  double sum = 0.0;
  for (int round = 0; round < 2; ++round) {
    if (p.fault == 0) __syncthreads();
    numbers[threadIdx.x] = threadIdx.x + round;
    __syncthreads();
    sum += numbers[kThreads - 1 - threadIdx.x];
  }
  p.y[threadIdx.x] = sum;
}

// Blocks write each an entry of their own. Fault 1: all write the same one.
SK_KERNEL(a_block_each, PlantedParams, 64) {
  if (threadIdx.x == 0) p.y[p.fault == 1 ? 0 : blockIdx.x] = 1.0;
}

// Fault 0: none. 1: half of the threads never reach the barrier. 2: a lane that its own shuffle
// waits for has gone. 3: one warp waits at a barrier of the block, the other for a vote of itself
// and then ends. 4: a shuffle reads a lane outside of its mask. 5: a lane gives a mask without it.
SK_KERNEL(meetings, PlantedParams, 64) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  if (p.fault == 1 && threadIdx.x >= 32) return;
  if (p.fault == 2 && threadIdx.x == 5) return;
  if (p.fault == 3 && warp == 1) {
    p.y[threadIdx.x] = __any_sync(kFullWarp, lane == 3);
    return;
  }
  const unsigned low = 0xffffu;
  if (p.fault == 4 && lane < 16) __shfl_sync(low, 1.0, 20);
  if (p.fault == 5) __syncwarp(low);
  __syncthreads();
  p.y[threadIdx.x] = warp_sum(1.0);
}

// Fault 0: the last entry of shared memory; 1: one past it; 2: one past the end of y; 3: reads what
// nobody wrote.
SK_KERNEL(edges, PlantedParams, 64) {
  double* numbers = SK_SHARED(double);
  if (p.fault != 3) numbers[threadIdx.x + (p.fault == 1 ? 1 : 0)] = 1.0;
  __syncthreads();
  p.y[threadIdx.x + (p.fault == 2 ? 1 : 0)] = numbers[threadIdx.x];
}

struct OperationsParams {
  const void* data;
  double* loaded;
  int64_t* results;
  int64_t code, count;
};

// What the names of cuda_host.h give, row by row, for 64 threads in two warps.
SK_KERNEL(operations, OperationsParams, 64) {
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp;
  const int rows[] = {
      __shfl_sync(kFullWarp, t, 5),
      __shfl_sync(kFullWarp, t, lane + 1, 8),
      __shfl_xor_sync(kFullWarp, t, 4),
      __shfl_xor_sync(kFullWarp, t, 8, 8),
      __shfl_down_sync(kFullWarp, t, 3),
      __shfl_down_sync(kFullWarp, t, 3, 16),
      __shfl_up_sync(kFullWarp, t, 2),
      __shfl_up_sync(kFullWarp, t, 2, 4),
      static_cast<int>(__ballot_sync(kFullWarp, lane % 3 == 0)),
      __any_sync(kFullWarp, t == 40),
      __all_sync(kFullWarp, t < 40),
      __syncthreads_count(t % 5 == 0),
      __syncthreads_or(t == 63),
      __syncthreads_and(t != 63),
      warp_sum(t),
      warp_max(t == 20 ? 100 : -t),
      static_cast<int>(blockIdx.x * 1000 + gridDim.x * 100 + blockDim.x),
      lane % 2 == 0 ? __shfl_sync(0x55555555u, t, 2) : __shfl_sync(0xaaaaaaaau, t, 3),
  };
  constexpr int kRows = sizeof(rows) / sizeof(rows[0]);
  for (int row = 0; row < kRows; ++row)
    p.results[(static_cast<int64_t>(blockIdx.x) * kRows + row) * kThreads + t] = rows[row];
  if (blockIdx.x == 0)
    for (int64_t i = t; i < p.count; i += kThreads)
      p.loaded[i] = load_as<double>(p.data, p.code, i);
}

}  // namespace spectral
