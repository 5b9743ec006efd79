#include "kernels/cuda/peer_exchange.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

// Bytes that all ranks together give; each reads as many. vLLM's one-shot kernel gives way to
// another at as much, FlashInfer's at half of it; on NVLink 4 and 5 MiB were measured to be where
// it does not pay any more (lightseekorg/tokenspeed#1234). Not measured here.
constexpr int64_t kSmallTraffic = int64_t{2} << 20;
static_assert(kSmallTraffic / 2 <= kHalfBytes, "two ranks exchange a small message at once");

// A handle gives its opener all of the block that the driver cut the memory from: of multiples of
// this it cuts none (CUDA Programming Guide, "Interprocess Communication").
constexpr size_t kSharedUnit = size_t{2} << 20;
constexpr size_t kMemoryBytes =
    (sizeof(ExchangeMemory) + kSharedUnit - 1) / kSharedUnit * kSharedUnit;

// Both halves of a rank's memory and the first one again, each time by every block there can be.
constexpr int kTrials = 3;
constexpr int64_t kTrialBytes = kMaxExchangeBlocks * kExchangeThreads * kUnitBytes;
constexpr int64_t kTrialFloats = kTrialBytes / static_cast<int64_t>(sizeof(float));
// Sums of integers, which floats hold exactly.
static_assert((kTrialFloats + kTrials) * (kMaxPeers * (kMaxPeers + 1) / 2) <= int64_t{1} << 24);
static_assert(exchange_blocks(kTrialBytes) == kMaxExchangeBlocks && kTrialBytes <= kHalfBytes);
constexpr absl::Duration kTrialTimeout = absl::Seconds(10);
constexpr absl::Duration kLook = absl::Microseconds(20);

uint64_t load(const uint64_t& word) {
  return std::atomic_ref<uint64_t>(const_cast<uint64_t&>(word)).load(std::memory_order_acquire);
}

// What a call could not do, with the error taken from the runtime.
absl::Status refused(absl::string_view what, cudaError_t error) {
  (void)cudaGetLastError();
  return absl::FailedPreconditionError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

// The first reason that a rank gives, in their order.
absl::Status agree(const Meeting& meeting, const std::string& subject, const absl::Status& own) {
  const auto reasons = tell_each_other(meeting, subject, std::string(own.message()));
  if (!reasons.ok()) return reasons.status();
  for (size_t rank = 0; rank < reasons->size(); ++rank) {
    if ((*reasons)[rank].empty()) continue;
    return absl::FailedPreconditionError(absl::StrCat("rank ", rank, ": ", (*reasons)[rank]));
  }
  return absl::OkStatus();
}

std::string ranks_text(const std::vector<int>& ranks) {
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

}  // namespace

PeerExchange::PeerExchange(const Meeting& meeting, cudaStream_t stream) : stream_(stream) {
  ranks_.rank = meeting.rank;
  ranks_.size = meeting.size;
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, kMemoryBytes), "allocating memory for exchanges");
  ranks_.memory[meeting.rank] = static_cast<ExchangeMemory*>(memory);
  check_cuda(cudaMemsetAsync(memory, 0, offsetof(ExchangeMemory, halves), stream),
             "clearing device memory");
  check_cuda(cudaHostAlloc(&memory, sizeof(ExchangeState), cudaHostAllocMapped),
             "allocating page-locked memory");
  state_ = new (memory) ExchangeState{};
  check_cuda(cudaHostGetDevicePointer(&memory, state_, 0), "mapping page-locked memory");
  ranks_.state = static_cast<ExchangeState*>(memory);
  // Taken before any peer waits for this rank: it may wait for the device.
  tried_ = std::make_unique<CudaBuffer>(kTrialBytes, stream, Cleared::kNo);
  // Peers write there as soon as they have opened it.
  check_cuda(cudaStreamSynchronize(stream), "clearing device memory");
}

absl::StatusOr<std::unique_ptr<PeerExchange>> PeerExchange::connect(const Meeting& meeting,
                                                                    cudaStream_t stream) {
  if (meeting.size > kMaxPeers) {
    return absl::FailedPreconditionError(
        absl::StrCat(meeting.size, " ranks; peer memory is for ", kMaxPeers, " at most"));
  }
  std::unique_ptr<PeerExchange> exchange(new PeerExchange(meeting, stream));
  cudaIpcMemHandle_t handle = {};
  const cudaError_t exported = cudaIpcGetMemHandle(&handle, exchange->ranks_.memory[meeting.rank]);
  exchange->is_exported_ = exported == cudaSuccess;
  // No handle is told as an empty one, so that nobody waits for it.
  const auto handles = tell_each_other(
      meeting, "peer memory",
      exchange->is_exported_ ? std::string(handle.reserved, sizeof(handle.reserved)) : "");
  if (!handles.ok()) return handles.status();
  const absl::Status opened = exchange->is_exported_
                                  ? exchange->open(*handles)
                                  : refused("device memory cannot be shared", exported);
  absl::Status agreed = agree(meeting, "mapping of peer memory", opened);
  if (!agreed.ok()) return agreed;
  // Half of what is left is for hearing how it went elsewhere.
  const absl::Duration left = meeting.deadline - absl::Now();
  const absl::Status tried = exchange->try_sums(absl::Now() + std::min(left / 2, kTrialTimeout));
  agreed = agree(meeting, "trial of peer memory", tried);
  if (!agreed.ok()) return agreed;
  exchange->tried_.reset();
  exchange->is_connected_ = true;
  return exchange;
}

absl::Status PeerExchange::open(const std::vector<std::string>& handles) {
  for (int peer = 0; peer < ranks_.size; ++peer) {
    if (peer == ranks_.rank) continue;
    const std::string what = absl::StrCat("device memory of rank ", peer, " cannot be mapped");
    cudaIpcMemHandle_t handle = {};
    if (handles[peer].size() != sizeof(handle.reserved)) return absl::FailedPreconditionError(what);
    std::memcpy(handle.reserved, handles[peer].data(), sizeof(handle.reserved));
    void* memory = nullptr;
    const cudaError_t error = cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess);
    if (error != cudaSuccess) return refused(what, error);
    opened_.push_back(memory);
    ranks_.memory[peer] = static_cast<ExchangeMemory*>(memory);
  }
  return absl::OkStatus();
}

// What the driver maps without an error may yet not be the peer's memory: where PCIe's access
// control sends what is written to an IOMMU that translates, it is lost silently
// (vllm-project/vllm#51513).
absl::Status PeerExchange::try_sums(absl::Time deadline) {
  std::vector<float> values(kTrialFloats);
  const auto sum_of_ranks = static_cast<float>(ranks_.size * (ranks_.size + 1) / 2);
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto number = [trial](int64_t i) { return static_cast<float>(i + trial); };
    for (int64_t i = 0; i < kTrialFloats; ++i) {
      values[i] = static_cast<float>(ranks_.rank + 1) * number(i);
    }
    const auto copy = [this](const void* from, void* to) {
      check_cuda(cudaMemcpyAsync(to, from, kTrialBytes, cudaMemcpyDefault, stream_), "copy");
    };
    copy(values.data(), tried_->data());
    all_reduce(tried_->floats(), kTrialFloats);
    if (!ends_by(deadline)) {
      abort();
      return absl::FailedPreconditionError("what is written into peer memory does not arrive");
    }
    copy(tried_->data(), values.data());
    check_cuda(cudaStreamSynchronize(stream_), "copy");
    for (int64_t i = 0; i < kTrialFloats; ++i) {
      if (values[i] == sum_of_ranks * number(i)) continue;
      return absl::FailedPreconditionError("sums over peer memory are wrong");
    }
  }
  return absl::OkStatus();
}

// Whether all that the stream has to do is done by then.
bool PeerExchange::ends_by(absl::Time deadline) const {
  for (;;) {
    const cudaError_t state = cudaStreamQuery(stream_);
    if (state != cudaErrorNotReady) {
      check_cuda(state, "exchanging with other ranks");
      return true;
    }
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(kLook);
  }
}

PeerExchange::~PeerExchange() {
  abort();
  if (is_connected_) say_gone(ranks_, stream_);
  check_cuda(cudaStreamSynchronize(stream_), "leaving the ranks");
  for (void* const memory : opened_) check_cuda(cudaIpcCloseMemHandle(memory), "unmapping memory");
  check_cuda(cudaFreeHost(state_), "freeing page-locked memory");
  // What a peer may still have mapped must not be freed: the end of the process does that.
  if (!is_exported_) check_cuda(cudaFree(ranks_.memory[ranks_.rank]), "freeing device memory");
}

bool PeerExchange::is_small(int64_t bytes) const { return bytes * ranks_.size <= kSmallTraffic; }

void PeerExchange::all_reduce(float* data, int64_t count) {
  constexpr int64_t kMost = kHalfBytes / static_cast<int64_t>(sizeof(float));
  for (int64_t at = 0; at < count; at += kMost) {
    exchange_sums(ranks_, data + at, std::min(kMost, count - at), stream_);
  }
}

void PeerExchange::all_gather(const float* data, int64_t count, float* out) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  for (int64_t at = 0; at < bytes; at += kHalfBytes) {
    exchange_parts(ranks_,
                   {.from = reinterpret_cast<const std::byte*>(data) + at,
                    .bytes = std::min(kHalfBytes, bytes - at),
                    .out = reinterpret_cast<std::byte*>(out) + at,
                    .stride = bytes},
                   stream_);
  }
}

void PeerExchange::broadcast(std::byte* data, int64_t bytes, int root) {
  for (int64_t at = 0; at < bytes; at += kHalfBytes) {
    exchange_from(ranks_, data + at, std::min(kHalfBytes, bytes - at), root, stream_);
  }
}

void PeerExchange::abort() {
  std::atomic_ref<uint64_t>(state_->is_aborted).store(1, std::memory_order_release);
}

absl::Status PeerExchange::state() const {
  std::vector<int> gone;
  std::vector<int> late;
  for (int peer = 0; peer < ranks_.size; ++peer) {
    const uint64_t loss = load(state_->lost[peer]);
    if (loss == kIsGone) gone.push_back(peer);
    if (loss == kDidNotCome) late.push_back(peer);
  }
  if (!gone.empty()) {
    return absl::UnavailableError(
        absl::StrCat(ranks_text(gone), gone.size() == 1 ? " is gone" : " are gone"));
  }
  if (late.empty()) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(ranks_text(late), " did not come in time"));
}

}  // namespace lckv
