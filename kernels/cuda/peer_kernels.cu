#include "kernels/cuda/launch.h"
#include "kernels/cuda/peer_kernels.h"
#include "kernels/cuda/system_scope.cuh"

namespace lckv {
namespace {

// Flags lie in the device's own memory and are read all the time, the host's
// word, across the bus, once in so many times.
constexpr uint32_t kPollsPerLook = 256;

__device__ ExchangeMemory& own(const PeerRanks& ranks) { return *ranks.memory[ranks.rank]; }

__device__ std::byte* half_of(const PeerRanks& ranks, int32_t rank, uint64_t exchange) {
  return ranks.memory[rank]->halves[exchange % 2];
}

__device__ Stripe own_stripe(int64_t bytes) {
  return stripe_of(bytes, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
}

// By the threads of a block, from a unit's beginning on. A peer's memory is far away: several words
// are under way at once.
template <class Word>
__device__ void copy_words(const std::byte* from, std::byte* to, Stripe stripe) {
  constexpr int kAtOnce = 4;
  constexpr auto kWord = static_cast<int64_t>(sizeof(Word));
  constexpr int64_t kStep = kExchangeThreads * kWord;
  const int64_t whole = stripe.begin + (stripe.end - stripe.begin) / kWord * kWord;
  int64_t at = stripe.begin + threadIdx.x * kWord;
  for (; at + (kAtOnce - 1) * kStep < whole; at += kAtOnce * kStep) {
    Word words[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      words[i] = *reinterpret_cast<const Word*>(from + at + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) *reinterpret_cast<Word*>(to + at + i * kStep) = words[i];
  }
  for (; at < whole; at += kStep) {
    *reinterpret_cast<Word*>(to + at) = *reinterpret_cast<const Word*>(from + at);
  }
  for (int64_t i = whole + threadIdx.x; i < stripe.end; i += kExchangeThreads) to[i] = from[i];
}

__device__ void copy_stripe(const std::byte* from, std::byte* to, Stripe stripe) {
  const auto both = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (both % sizeof(uint4) == 0) {
    copy_words<uint4>(from, to, stripe);
  } else if (both % sizeof(uint32_t) == 0) {
    copy_words<uint32_t>(from, to, stripe);
  } else {
    copy_words<std::byte>(from, to, stripe);
  }
}

// Counted by the last block to meet: the same for all, whenever they ask.
__device__ uint64_t this_exchange(const PeerRanks& ranks) {
  return *static_cast<const volatile uint64_t*>(&own(ranks).num_exchanges) + 1;
}

__device__ void count_block(const PeerRanks& ranks, uint64_t exchange) {
  if (threadIdx.x != 0 || atomicAdd(&own(ranks).num_met, 1U) + 1 < gridDim.x) return;
  own(ranks).num_met = 0;
  own(ranks).num_exchanges = exchange;
}

// The same for all threads of the exchange in which a peer is lost, whenever
// they ask.
__device__ bool is_cut_off(const PeerRanks& ranks, uint64_t exchange) {
  const uint64_t cut_off_in = *static_cast<const volatile uint64_t*>(&own(ranks).cut_off_in);
  return cut_off_in != 0 && cut_off_in != exchange;
}

// False where it is lost.
__device__ bool wait_for(const PeerRanks& ranks, uint64_t exchange, int32_t peer) {
  ExchangeMemory& here = own(ranks);
  const uint64_t* const arrived = &here.arrived[blockIdx.x][peer];
  for (uint32_t polls = 1; load_acquire_system(arrived) < exchange; ++polls) {
    if (polls % kPollsPerLook != 0) continue;
    const bool is_gone = load_acquire_system(&here.gone[peer]) != 0;
    if (!is_gone && load_acquire_system(&ranks.state->is_aborted) == 0) continue;
    // It may have arrived before it went.
    if (load_acquire_system(arrived) >= exchange) break;
    store_release_system(&here.cut_off_in, exchange);
    store_release_system(&ranks.state->lost[peer], is_gone ? kIsGone : kDidNotCome);
    return false;
  }
  return true;
}

// After the block has written its stripe. The same for all its threads: whether
// it may read those of the blocks of its number. The first barrier and the
// release make what all threads of a block wrote seen by whoever acquires the
// flag, the acquire and the second one by all threads there.
__device__ bool meet(const PeerRanks& ranks, uint64_t exchange) {
  __syncthreads();
  const auto peer = static_cast<int32_t>(threadIdx.x);
  const bool is_for_peer = peer < ranks.size;
  if (is_for_peer) {
    store_release_system(&ranks.memory[peer]->arrived[blockIdx.x][ranks.rank], exchange);
  }
  // Nobody waits before all of its peers can go on.
  __syncwarp();
  const int is_lost = is_for_peer && !wait_for(ranks, exchange, peer) ? 1 : 0;
  const bool is_any_lost = __syncthreads_or(is_lost) != 0;
  count_block(ranks, exchange);
  return !is_any_lost;
}

// Four sums from rank 0 on. All loads are under way before the first addition.
template <int kRanks>
__device__ float4 sum_of_ranks(const PeerRanks& ranks, uint64_t exchange, int64_t at) {
  float4 values[kRanks];
#pragma unroll
  for (int peer = 0; peer < kRanks; ++peer) {
    values[peer] = *reinterpret_cast<const float4*>(half_of(ranks, peer, exchange) + at);
  }
  float4 sum = values[0];
#pragma unroll
  for (int peer = 1; peer < kRanks; ++peer) {
    sum.x += values[peer].x;
    sum.y += values[peer].y;
    sum.z += values[peer].z;
    sum.w += values[peer].w;
  }
  return sum;
}

template <int kRanks>
__global__ void __launch_bounds__(kExchangeThreads, 1)
    exchange_sums_kernel(const __grid_constant__ PeerRanks ranks, float* data, int64_t count) {
  const uint64_t exchange = this_exchange(ranks);
  if (is_cut_off(ranks, exchange)) return;
  const Stripe stripe = own_stripe(count * static_cast<int64_t>(sizeof(float)));
  copy_stripe(reinterpret_cast<const std::byte*>(data), half_of(ranks, ranks.rank, exchange),
              stripe);
  if (!meet(ranks, exchange)) return;
  const bool is_aligned = reinterpret_cast<uintptr_t>(data) % sizeof(float4) == 0;
  for (int64_t at = stripe.begin + threadIdx.x * kUnitBytes; at < stripe.end;
       at += kExchangeThreads * kUnitBytes) {
    const float4 sum = sum_of_ranks<kRanks>(ranks, exchange, at);
    float* const out = data + at / static_cast<int64_t>(sizeof(float));
    if (is_aligned && at + kUnitBytes <= stripe.end) {
      *reinterpret_cast<float4*>(out) = sum;
      continue;
    }
    const int64_t left = (stripe.end - at) / static_cast<int64_t>(sizeof(float));
    out[0] = sum.x;
    if (left > 1) out[1] = sum.y;
    if (left > 2) out[2] = sum.z;
    if (left > 3) out[3] = sum.w;
  }
}

__global__ void __launch_bounds__(kExchangeThreads, 1)
    exchange_parts_kernel(const __grid_constant__ PeerRanks ranks, GatheredBytes args) {
  const uint64_t exchange = this_exchange(ranks);
  if (is_cut_off(ranks, exchange)) return;
  const Stripe stripe = own_stripe(args.bytes);
  copy_stripe(args.from, half_of(ranks, ranks.rank, exchange), stripe);
  if (!meet(ranks, exchange)) return;
  for (int32_t peer = 0; peer < ranks.size; ++peer) {
    copy_stripe(half_of(ranks, peer, exchange), args.out + peer * args.stride, stripe);
  }
}

// Ranks that give nothing arrive too: the root may not run ahead of them.
__global__ void __launch_bounds__(kExchangeThreads, 1)
    exchange_from_kernel(const __grid_constant__ PeerRanks ranks, std::byte* data, int64_t bytes,
                         int32_t root) {
  const uint64_t exchange = this_exchange(ranks);
  if (is_cut_off(ranks, exchange)) return;
  const Stripe stripe = own_stripe(bytes);
  if (ranks.rank == root) copy_stripe(data, half_of(ranks, root, exchange), stripe);
  if (!meet(ranks, exchange) || ranks.rank == root) return;
  copy_stripe(half_of(ranks, root, exchange), data, stripe);
}

__global__ void say_gone_kernel(const __grid_constant__ PeerRanks ranks) {
  store_release_system(&ranks.memory[threadIdx.x]->gone[ranks.rank], 1);
}

LaunchShape shape_of(int64_t bytes) {
  return {.grid = dim3(static_cast<unsigned>(exchange_blocks(bytes))),
          .threads = kExchangeThreads,
          .is_cooperative = true};
}

}  // namespace

void exchange_sums(const PeerRanks& ranks, float* data, int64_t count, cudaStream_t stream) {
  constexpr decltype(&exchange_sums_kernel<1>) kKernels[kMaxPeers] = {
      exchange_sums_kernel<1>, exchange_sums_kernel<2>, exchange_sums_kernel<3>,
      exchange_sums_kernel<4>, exchange_sums_kernel<5>, exchange_sums_kernel<6>,
      exchange_sums_kernel<7>, exchange_sums_kernel<8>};
  launch("all_reduce", stream, shape_of(count * static_cast<int64_t>(sizeof(float))),
         kKernels[ranks.size - 1], ranks, data, count);
}

void exchange_parts(const PeerRanks& ranks, const GatheredBytes& args, cudaStream_t stream) {
  launch("all_gather", stream, shape_of(args.bytes), exchange_parts_kernel, ranks, args);
}

void exchange_from(const PeerRanks& ranks, std::byte* data, int64_t bytes, int32_t root,
                   cudaStream_t stream) {
  launch("broadcast", stream, shape_of(bytes), exchange_from_kernel, ranks, data, bytes, root);
}

void say_gone(const PeerRanks& ranks, cudaStream_t stream) {
  launch("leaving the ranks", stream, {.grid = dim3(1), .threads = ranks.size}, say_gone_kernel,
         ranks);
}

}  // namespace lckv
