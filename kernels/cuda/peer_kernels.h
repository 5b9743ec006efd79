// One exchange between ranks that have mapped each other's memory; peer_index.h says how they keep
// out of each other's way. All pointers are the device's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/peer_index.h"

namespace lckv {

struct PeerRanks {
  ExchangeMemory* memory[kMaxPeers] = {};  // by rank, as this device sees it
  ExchangeState* state = nullptr;          // as this device sees it
  int32_t rank = 0;
  int32_t size = 1;
};

// data[i] becomes the sum of all ranks' data[i], from rank 0 on. count floats, kHalfBytes at most.
void exchange_sums(const PeerRanks& ranks, float* data, int64_t count, cudaStream_t stream);

// out[p * stride ...] becomes the `bytes` that rank p gives, kHalfBytes at most. stride in bytes.
struct GatheredBytes {
  const std::byte* from = nullptr;
  int64_t bytes = 0;
  std::byte* out = nullptr;
  int64_t stride = 0;
};
void exchange_parts(const PeerRanks& ranks, const GatheredBytes& args, cudaStream_t stream);

// data becomes the root's; kHalfBytes at most.
void exchange_from(const PeerRanks& ranks, std::byte* data, int64_t bytes, int32_t root,
                   cudaStream_t stream);

// Tells every rank that this one takes part in nothing any more.
void say_gone(const PeerRanks& ranks, cudaStream_t stream);

}  // namespace lckv
