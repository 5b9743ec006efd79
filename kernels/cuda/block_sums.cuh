// Sums over the threads of a block, in an order that the number of threads gives alone.
#pragma once

#include <cuda_runtime.h>

namespace lckv {

inline constexpr int kWarpThreads = 32;

// Every lane gets the sum over the warp. Additions of two lanes commute, so all lanes get the same
// bits.
template <class Value>
__device__ Value warp_sum(Value value) {
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(~0U, value, distance);
  }
  return value;
}

// Every thread gets the sum over a block of kThreads.
template <int kThreads, class Value>
__device__ Value block_sum(Value value) {
  __shared__ Value sums[kThreads / kWarpThreads];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarpThreads == 0) sums[threadIdx.x / kWarpThreads] = value;
  __syncthreads();
  Value total = sums[0];
  for (int warp = 1; warp < kThreads / kWarpThreads; ++warp) total += sums[warp];
  return total;
}

}  // namespace lckv
