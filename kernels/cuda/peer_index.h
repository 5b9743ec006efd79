// The memory that ranks exchange through, and who of them touches which part of it when.
//
// Every rank has an ExchangeMemory on its device, which all ranks of the replica map. Exchanges are
// counted from 1 on; all ranks make the same ones in the same order. In exchange n a block writes
// its stripe of what the rank gives into the rank's own half n % 2, says so to the block of the
// same number on every rank (`arrived` = n, in that rank's memory), waits until all have said so,
// and reads their stripes. Nobody waits for the others to have read.
//
// Why nobody overwrites what is still read: a rank writes into half n % 2 again in exchange n + 2,
// which its device starts once its exchange n + 1 has ended. That saw every rank arrive in n + 1,
// and a rank arrives there only once its own exchange n, with all it had to read, has ended: one
// stream runs them one after the other. So two halves are enough, and a rank is never more than one
// exchange ahead of another. A rank that has lost a peer in an exchange knows nothing of the kind
// any more: it takes part in no later one (`cut_off_in`).
//
// The idea of a one-shot all-reduce over mapped peer memory is that of TensorRT-LLM's and vLLM's
// custom all-reduce (vllm-project/vllm#2192).
#pragma once

#include <cstddef>
#include <cstdint>

namespace lckv {

inline constexpr int kMaxPeers = 8;
inline constexpr int kExchangeThreads = 256;
// So few that all of them run at once, as blocks that wait for others must.
inline constexpr int kMaxExchangeBlocks = 32;
// Most that a rank gives in one exchange.
inline constexpr int64_t kHalfBytes = int64_t{1} << 20;
// Stripes begin at multiples of it, which devices move at once.
inline constexpr int64_t kUnitBytes = 16;

struct ExchangeMemory {
  // The last exchange in which rank p's block b has written its stripe; rank p writes it.
  uint64_t arrived[kMaxExchangeBlocks][kMaxPeers];
  uint64_t gone[kMaxPeers];  // 1: rank p will arrive in no exchange any more; rank p writes it
  uint64_t cut_off_in;       // the exchange in which a peer was lost, or 0; its own rank writes it
  // The rank's own count: kernels know an exchange's number from here, so that recorded ones may be
  // started again and again.
  uint64_t num_exchanges;  // until now
  uint32_t num_met;        // blocks of the exchange at hand that wait for nobody any more
  alignas(256) std::byte halves[2][kHalfBytes];
};

// In page-locked memory of the host.
struct ExchangeState {
  uint64_t is_aborted;       // by the host: who waits is to end
  uint64_t lost[kMaxPeers];  // by the device: a Loss
};
enum Loss : uint64_t { kNotLost, kDidNotCome, kIsGone };

// From unit to unit of a half's bytes.
struct Stripe {
  int64_t begin = 0;
  int64_t end = 0;
};

constexpr int exchange_blocks(int64_t bytes) {
  const int64_t units = (bytes + kUnitBytes - 1) / kUnitBytes;
  const int64_t blocks = (units + kExchangeThreads - 1) / kExchangeThreads;
  if (blocks < 1) return 1;
  return blocks < kMaxExchangeBlocks ? static_cast<int>(blocks) : kMaxExchangeBlocks;
}

// Depends on nothing but its arguments, which are the same on all ranks: the block that waits for
// the blocks of its number reads what these have written.
constexpr Stripe stripe_of(int64_t bytes, int block, int num_blocks) {
  const int64_t units = (bytes + kUnitBytes - 1) / kUnitBytes;
  const int64_t each = (units + num_blocks - 1) / num_blocks * kUnitBytes;
  const int64_t begin = each * block;
  const int64_t end = begin + each;
  return {begin < bytes ? begin : bytes, end < bytes ? end : bytes};
}

}  // namespace lckv
