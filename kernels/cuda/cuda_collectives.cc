#include "kernels/cuda/cuda_collectives.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/nccl_ranks.h"
#include "kernels/cuda/peer_exchange.h"
#include "kernels/cuda/rank_devices.h"
#include "kernels/cuda/stream.h"

namespace lckv {
namespace {

// Between two looks at what cannot be waited for with a deadline.
constexpr absl::Duration kLook = absl::Microseconds(20);
// For kernels to see that they are aborted, and to say whom they waited for.
constexpr absl::Duration kAbort = absl::Seconds(1);
// Of data that is moved at full speed, in bytes.
constexpr int64_t kAlignment = 16;
// Floats of each rank that are gathered at once to be summed in order.
constexpr int64_t kGathered = int64_t{1} << 18;

class CudaCollectives final : public Collectives {
 public:
  // One of `nccl` and `peers` may be null.
  CudaCollectives(const CudaCollectivesOptions& options, Ops& ops, cudaStream_t stream,
                  std::unique_ptr<NcclRanks> nccl, std::unique_ptr<PeerExchange> peers)
      : rank_(options.rank),
        size_(options.size),
        reproducible_(options.reproducible),
        timeout_(options.timeout),
        call_timeout_(options.call_timeout),
        ops_(ops),
        stream_(stream),
        nccl_(std::move(nccl)),
        peers_(std::move(peers)) {
    check_cuda(cudaEventCreateWithFlags(&reached_, cudaEventDisableTiming), "creating an event");
    // As much as any sum takes: recorded batches have its address.
    if (reproducible_ && nccl_ != nullptr) {
      grow(gathered_, static_cast<size_t>(size_ * kGathered) * sizeof(float), stream_);
    }
  }
  ~CudaCollectives() override {
    close();
    check_cuda(cudaEventDestroy(reached_), "destroying an event");
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status all_reduce(float* data, int64_t count) override;
  absl::Status all_gather(const float* data, int64_t count, float* out) override;
  absl::Status broadcast(void* data, int64_t bytes, int root) override;
  absl::Status barrier() override;
  absl::Status wait() override;
  absl::Status wait_for(absl::FunctionRef<bool()> are_there) override;

 private:
  // An error closes everything.
  absl::Status checked(absl::Status status) {
    return status.ok() ? status : fail(std::move(status));
  }
  absl::Status fail(absl::Status status);
  // Neither may wait for what the other has on the device: a kernel that waits for a peer is ended
  // before anything that may wait for the device, and NCCL before peers are told in the stream.
  // NCCL waits for graphs that have its exchanges to be freed, too.
  void close() {
    if (peers_ != nullptr) peers_->abort();
    ops_.forget_batches();
    nccl_.reset();
    peers_.reset();
  }
  absl::Status peer_that_did_not_come(absl::FunctionRef<bool()> are_there);
  // What every rank gives `bytes` to.
  bool goes_to_peers(int64_t bytes) const {
    return nccl_ == nullptr || (peers_ != nullptr && peers_->is_small(bytes));
  }
  absl::Status sum(float* data, int64_t count);
  absl::Status sum_in_order(float* data, int64_t count);
  absl::Status gather(const float* data, int64_t count, float* out);
  absl::Status send(const std::byte* from, std::byte* to, int64_t bytes, int root);
  // call(device copy of `bytes` of data, device memory for `out_bytes`), then out is filled from
  // there.
  template <class Call>
  absl::Status from_host(const void* data, int64_t bytes, void* out, int64_t out_bytes,
                         const Call& call);
  void copy(const void* from, void* to, int64_t bytes) {
    check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_),
               "copy");
  }

  const int rank_;
  const int size_;
  const bool reproducible_;
  const absl::Duration timeout_;
  const absl::Duration call_timeout_;
  Ops& ops_;
  const cudaStream_t stream_;
  bool have_met_ = false;  // a wait has succeeded: every rank has loaded its model
  cudaEvent_t reached_ = nullptr;
  std::unique_ptr<NcclRanks> nccl_;  // null after an error, as the next
  std::unique_ptr<PeerExchange> peers_;
  absl::Status failure_;
  std::unique_ptr<CudaBuffer> gathered_;  // [size, kGathered]
  std::unique_ptr<CudaBuffer> staged_;    // of data in host memory
};

absl::Status CudaCollectives::wait() {
  if (!failure_.ok()) return failure_;
  check_cuda(cudaEventRecord(reached_, stream_), "marking the end of an exchange");
  return wait_for([this] {
    const cudaError_t reached = cudaEventQuery(reached_);
    if (reached != cudaErrorNotReady) check_cuda(reached, "exchanging with other ranks");
    return reached == cudaSuccess;
  });
}

absl::Status CudaCollectives::wait_for(absl::FunctionRef<bool()> are_there) {
  if (!failure_.ok()) return failure_;
  const absl::Time deadline = absl::Now() + (have_met_ ? call_timeout_ : timeout_);
  for (;;) {
    // Asked for first: a peer that goes once all have what they need is no loss.
    absl::Status nccl_state = nccl_ == nullptr ? absl::OkStatus() : nccl_->state();
    const bool is_over = are_there();
    // An exchange that has lost a peer ends too.
    if (peers_ != nullptr) {
      if (absl::Status status = checked(peers_->state()); !status.ok()) return status;
    }
    have_met_ = have_met_ || is_over;
    if (is_over) return absl::OkStatus();
    if (!nccl_state.ok()) return fail(std::move(nccl_state));
    if (absl::Now() >= deadline) return fail(peer_that_did_not_come(are_there));
    absl::SleepFor(kLook);
  }
}

// As exactly as it is known.
absl::Status CudaCollectives::peer_that_did_not_come(absl::FunctionRef<bool()> are_there) {
  if (peers_ != nullptr) {
    peers_->abort();
    const absl::Time end = absl::Now() + kAbort;
    while (absl::Now() < end && !are_there()) absl::SleepFor(kLook);
    if (absl::Status status = peers_->state(); !status.ok()) return status;
  }
  return absl::DeadlineExceededError("a rank did not come in time");
}

absl::Status CudaCollectives::fail(absl::Status status) {
  failure_ = std::move(status);
  close();
  return failure_;
}

absl::Status CudaCollectives::all_reduce(float* data, int64_t count) {
  if (!failure_.ok()) return failure_;
  if (is_on_device(data)) return sum(data, count);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  return from_host(data, bytes, data, bytes, [&](std::byte* given, std::byte* out) {
    copy(given, out, bytes);
    return sum(reinterpret_cast<float*>(out), count);
  });
}

absl::Status CudaCollectives::sum(float* data, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  if (goes_to_peers(bytes)) {
    peers_->all_reduce(data, count);
    return absl::OkStatus();
  }
  return reproducible_ ? sum_in_order(data, count) : checked(nccl_->all_reduce(data, count));
}

// NCCL chooses how it sums by how much there is, that is, by how many rows a step has.
absl::Status CudaCollectives::sum_in_order(float* data, int64_t count) {
  for (int64_t at = 0; at < count; at += kGathered) {
    const int64_t some = std::min(kGathered, count - at);
    absl::Status status = gather(data + at, some, gathered_->floats());
    if (!status.ok()) return status;
    sum_parts(gathered_->floats(), size_, some, data + at, stream_);
  }
  return absl::OkStatus();
}

absl::Status CudaCollectives::gather(const float* data, int64_t count, float* out) {
  if (!goes_to_peers(count * static_cast<int64_t>(sizeof(float)))) {
    return checked(nccl_->all_gather(data, count, out));
  }
  peers_->all_gather(data, count, out);
  return absl::OkStatus();
}

absl::Status CudaCollectives::send(const std::byte* from, std::byte* to, int64_t bytes, int root) {
  if (nccl_ != nullptr) return checked(nccl_->broadcast(from, to, bytes, root));
  if (from != to) copy(from, to, bytes);
  peers_->broadcast(to, bytes, root);
  return absl::OkStatus();
}

absl::Status CudaCollectives::all_gather(const float* data, int64_t count, float* out) {
  if (!failure_.ok()) return failure_;
  if (is_on_device(data)) return gather(data, count, out);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  return from_host(data, bytes, out, size_ * bytes, [&](std::byte* given, std::byte* gathered) {
    return gather(reinterpret_cast<float*>(given), count, reinterpret_cast<float*>(gathered));
  });
}

absl::Status CudaCollectives::broadcast(void* data, int64_t bytes, int root) {
  LCKV_CHECK(root >= 0 && root < size_);
  if (!failure_.ok()) return failure_;
  auto* const own = static_cast<std::byte*>(data);
  if (is_on_device(data)) return send(own, own, bytes, root);
  return from_host(data, bytes, data, bytes, [&](std::byte* given, std::byte* found) {
    return send(given, found, bytes, root);
  });
}

absl::Status CudaCollectives::barrier() {
  float here = 1.0F;
  return all_reduce(&here, 1);
}

template <class Call>
absl::Status CudaCollectives::from_host(const void* data, int64_t bytes, void* out,
                                        int64_t out_bytes, const Call& call) {
  const int64_t found_at = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  grow(staged_, static_cast<size_t>(found_at + out_bytes), stream_);
  std::byte* const given = staged_->data();
  std::byte* const found = given + found_at;
  copy(data, given, bytes);
  if (absl::Status status = call(given, found); !status.ok()) return status;
  if (absl::Status status = wait(); !status.ok()) return status;
  copy(found, out, out_bytes);
  check_cuda(cudaStreamSynchronize(stream_), "copy");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> connect_cuda_ranks(
    const CudaCollectivesOptions& options, Ops& ops) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " of ", options.size, " ranks"));
  }
  const auto* const owner = dynamic_cast<const StreamOwner*>(&ops);
  LCKV_CHECK(owner != nullptr);
  const cudaStream_t stream = owner->stream();
  const Meeting meeting{.rank = options.rank,
                        .size = options.size,
                        .life = options.life,
                        .store = options.store,
                        .deadline = absl::Now() + options.timeout};
  const auto devices = tell_devices(meeting, current_device());
  if (!devices.ok()) return devices.status();
  if (!options.shares_device) {
    if (absl::Status status = check_devices_differ(*devices); !status.ok()) return status;
  }
  absl::StatusOr<std::unique_ptr<PeerExchange>> peers =
      are_on_one_host(*devices) ? PeerExchange::connect(meeting, stream)
                                : absl::FailedPreconditionError(
                                      "the ranks are on several hosts, or in several containers");
  if (!peers.ok() && !absl::IsFailedPrecondition(peers.status())) return peers.status();
  if (options.shares_device) {
    if (!peers.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("--allow-shared-device: ", peers.status().message()));
    }
    options.say("ranks exchange everything through peer memory, as one device may be shared");
    return std::make_unique<CudaCollectives>(options, ops, stream, nullptr, *std::move(peers));
  }
  auto nccl = NcclRanks::connect(meeting, stream);
  if (!nccl.ok()) return nccl.status();
  options.say(peers.ok() ? "ranks sum small messages through peer memory, the rest goes over NCCL"
                         : absl::StrCat("ranks exchange everything over NCCL, as peer memory is "
                                        "not to be had: ",
                                        peers.status().message()));
  return std::make_unique<CudaCollectives>(options, ops, stream, *std::move(nccl),
                                           peers.ok() ? *std::move(peers) : nullptr);
}

}  // namespace lckv
