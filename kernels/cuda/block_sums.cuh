// Sums and the like over the threads of a block, in an order that the number of threads gives
// alone.
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

// Every thread gets the largest of a block of kThreads.
template <int kThreads, class Value>
__device__ Value block_max(Value value) {
  __shared__ Value largest[kThreads / kWarpThreads];
  const auto keep_larger = [&value](Value other) { value = value < other ? other : value; };
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    keep_larger(__shfl_xor_sync(~0U, value, distance));
  }
  __syncthreads();
  if (threadIdx.x % kWarpThreads == 0) largest[threadIdx.x / kWarpThreads] = value;
  __syncthreads();
  for (const Value other : largest) keep_larger(other);
  return value;
}

// Every thread of a block of kThreads gets the sum over those before it.
template <int kThreads, class Value>
__device__ Value block_sum_before(Value value) {
  __shared__ Value sums[kThreads / kWarpThreads];
  const auto lane = static_cast<int>(threadIdx.x % kWarpThreads);
  const auto warp = static_cast<int>(threadIdx.x / kWarpThreads);
  Value upto = value;
  for (int distance = 1; distance < kWarpThreads; distance *= 2) {
    const Value other = __shfl_up_sync(~0U, upto, distance);
    if (lane >= distance) upto += other;
  }
  __syncthreads();
  if (lane == kWarpThreads - 1) sums[warp] = upto;
  __syncthreads();
  Value before = 0;
  for (int i = 0; i < warp; ++i) before += sums[i];
  return before + upto - value;
}

}  // namespace lckv
