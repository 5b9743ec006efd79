#include "kernels/cuda/nccl_collectives.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/nccl_library.h"
#include "kernels/cuda/stream.h"

namespace lckv {
namespace {

// Between two looks at what cannot be waited for with a deadline.
constexpr absl::Duration kLook = absl::Microseconds(20);
// Of data that NCCL moves at its full speed, in bytes.
constexpr int64_t kAlignment = 16;
// Floats of each rank that are gathered at once to be summed in order.
constexpr int64_t kGathered = int64_t{1} << 18;

// What NCCL says of a call, and in more words where it has them.
absl::Status status_of(const NcclLibrary& nccl, ncclResult_t result, ncclComm_t comm) {
  if (result == ncclSuccess) return absl::OkStatus();
  const char* const detail = nccl.last_error(comm);
  std::string text = absl::StrCat("NCCL: ", nccl.error_string(result));
  if (detail != nullptr && *detail != '\0') absl::StrAppend(&text, ": ", detail);
  // Of several lines, the first says it.
  text.resize(std::min(text.size(), text.find('\n')));
  const bool is_refused = result == ncclInvalidUsage || result == ncclInvalidArgument;
  if (!is_refused) return absl::UnavailableError(text);
  return absl::FailedPreconditionError(
      absl::StrCat(text, "; each rank of a host needs a device of its own"));
}

// Returns when all ranks have come.
absl::StatusOr<ncclComm_t> join(const NcclLibrary& nccl, int rank, int size,
                                const ncclUniqueId& id) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  // The calls of one that does not block start a thread each and return before their work is in the
  // stream's order.
  config.blocking = 1;
  ncclComm_t comm = nullptr;
  const ncclResult_t result = nccl.init_rank(&comm, size, id, rank, &config);
  if (absl::Status status = status_of(nccl, result, nullptr); !status.ok()) return status;
  return comm;
}

class NcclCollectives final : public Collectives {
 public:
  NcclCollectives(const NcclLibrary& nccl, const NcclOptions& options, cudaStream_t stream)
      : nccl_(nccl),
        rank_(options.rank),
        size_(options.size),
        reproducible_(options.reproducible),
        timeout_(options.timeout),
        call_timeout_(options.call_timeout),
        stream_(stream) {
    check_cuda(cudaEventCreateWithFlags(&reached_, cudaEventDisableTiming), "creating an event");
  }
  ~NcclCollectives() override {
    close();
    check_cuda(cudaEventDestroy(reached_), "destroying an event");
  }

  absl::Status connect(const NcclOptions& options);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status all_reduce(float* data, int64_t count) override;
  absl::Status all_gather(const float* data, int64_t count, float* out) override;
  absl::Status broadcast(void* data, int64_t bytes, int root) override;
  absl::Status barrier() override;
  absl::Status wait() override;

 private:
  absl::StatusOr<ncclUniqueId> meet(const NcclOptions& options, absl::Time deadline);
  // An error closes the communicator.
  absl::Status checked(ncclResult_t result) {
    absl::Status status = status_of(nccl_, result, comm_);
    return status.ok() ? status : fail(std::move(status));
  }
  ncclResult_t state() const {
    ncclResult_t found = ncclSuccess;
    const ncclResult_t asked = nccl_.get_async_error(comm_, &found);
    if (asked != ncclSuccess) return asked;
    return found == ncclInProgress ? ncclSuccess : found;
  }
  absl::Status fail(absl::Status status);
  // Aborting needs no peer and leaves nothing that would wait for one.
  void close() {
    if (comm_ != nullptr) (void)nccl_.abort(std::exchange(comm_, nullptr));
  }
  absl::Status sum(float* data, int64_t count);
  absl::Status sum_in_order(float* data, int64_t count);
  // call(device copy of `bytes` of data, device memory for `out_bytes`), then out is filled from
  // there.
  template <class Call>
  absl::Status from_host(const void* data, int64_t bytes, void* out, int64_t out_bytes,
                         const Call& call);

  const NcclLibrary nccl_;
  const int rank_;
  const int size_;
  const bool reproducible_;
  const absl::Duration timeout_;
  const absl::Duration call_timeout_;
  const cudaStream_t stream_;
  bool have_met_ = false;  // a wait has succeeded: every rank has loaded its model
  cudaEvent_t reached_ = nullptr;
  ncclComm_t comm_ = nullptr;  // null after an error
  absl::Status failure_;
  std::unique_ptr<CudaBuffer> gathered_;  // [size, kGathered]
  std::unique_ptr<CudaBuffer> staged_;    // of data in host memory
};

absl::StatusOr<ncclUniqueId> NcclCollectives::meet(const NcclOptions& options,
                                                   absl::Time deadline) {
  const std::string key = absl::StrCat("nccl/", options.life);
  ncclUniqueId id = {};
  if (rank_ == 0) {
    absl::Status status = status_of(nccl_, nccl_.get_unique_id(&id), nullptr);
    if (status.ok()) status = options.store.set(key, std::string(id.internal, sizeof(id.internal)));
    if (!status.ok()) return status;
    return id;
  }
  const auto bytes = options.store.get(key, deadline);
  if (!bytes.ok()) {
    return absl::Status(bytes.status().code(), absl::StrCat("no NCCL id of rank 0 within ",
                                                            absl::FormatDuration(options.timeout),
                                                            ": ", bytes.status().message()));
  }
  if (bytes->size() != sizeof(id.internal)) {
    return absl::FailedPreconditionError(absl::StrCat("rank 0's NCCL id has ", bytes->size(),
                                                      " bytes instead of ", sizeof(id.internal)));
  }
  std::memcpy(id.internal, bytes->data(), sizeof(id.internal));
  return id;
}

absl::Status NcclCollectives::connect(const NcclOptions& options) {
  const absl::Time deadline = absl::Now() + options.timeout;
  const auto id = meet(options, deadline);
  if (!id.ok()) return id.status();
  int device = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  // NCCL waits without a deadline, so it does so on a thread of its own. One that waits in vain is
  // left behind: a replica that lacks a rank ends.
  auto joined = std::make_shared<std::promise<absl::StatusOr<ncclComm_t>>>();
  auto result = joined->get_future();
  std::thread([joined, device, nccl = nccl_, rank = rank_, size = size_, id = *id] {
    check_cuda(cudaSetDevice(device), "choosing the device");
    joined->set_value(join(nccl, rank, size, id));
  }).detach();
  if (result.wait_until(absl::ToChronoTime(deadline)) != std::future_status::ready) {
    return absl::DeadlineExceededError(absl::StrCat("not all ", size_, " ranks connected within ",
                                                    absl::FormatDuration(options.timeout)));
  }
  const auto comm = result.get();
  if (comm.ok()) comm_ = *comm;
  return comm.status();
}

absl::Status NcclCollectives::wait() {
  if (!failure_.ok()) return failure_;
  const absl::Time deadline = absl::Now() + (have_met_ ? call_timeout_ : timeout_);
  check_cuda(cudaEventRecord(reached_, stream_), "marking the end of an exchange");
  for (;;) {
    const cudaError_t reached = cudaEventQuery(reached_);
    have_met_ = have_met_ || reached == cudaSuccess;
    if (reached == cudaSuccess) return absl::OkStatus();
    if (reached != cudaErrorNotReady) check_cuda(reached, "exchanging with other ranks");
    if (absl::Status status = checked(state()); !status.ok()) return status;
    if (absl::Now() >= deadline) {
      return fail(absl::DeadlineExceededError("a rank did not come in time"));
    }
    absl::SleepFor(kLook);
  }
}

absl::Status NcclCollectives::fail(absl::Status status) {
  failure_ = std::move(status);
  close();
  return failure_;
}

absl::Status NcclCollectives::all_reduce(float* data, int64_t count) {
  if (!failure_.ok()) return failure_;
  if (is_on_device(data)) return sum(data, count);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  return from_host(data, bytes, data, bytes, [&](std::byte* given, std::byte* out) {
    check_cuda(cudaMemcpyAsync(out, given, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_),
               "copy");
    return sum(reinterpret_cast<float*>(out), count);
  });
}

absl::Status NcclCollectives::sum(float* data, int64_t count) {
  if (reproducible_) return sum_in_order(data, count);
  return checked(nccl_.all_reduce(data, data, static_cast<size_t>(count), ncclFloat32, ncclSum,
                                  comm_, stream_));
}

// NCCL chooses how it sums by how much there is, that is, by how many rows a step has.
absl::Status NcclCollectives::sum_in_order(float* data, int64_t count) {
  const int64_t most = std::min(count, kGathered);
  grow(gathered_, static_cast<size_t>(size_ * most) * sizeof(float), stream_);
  for (int64_t at = 0; at < count; at += kGathered) {
    const int64_t some = std::min(kGathered, count - at);
    absl::Status status = checked(nccl_.all_gather(
        data + at, gathered_->floats(), static_cast<size_t>(some), ncclFloat32, comm_, stream_));
    if (!status.ok()) return status;
    sum_parts(gathered_->floats(), size_, some, data + at, stream_);
  }
  return absl::OkStatus();
}

absl::Status NcclCollectives::all_gather(const float* data, int64_t count, float* out) {
  if (!failure_.ok()) return failure_;
  const auto gather = [&](const float* from, float* to) {
    return checked(
        nccl_.all_gather(from, to, static_cast<size_t>(count), ncclFloat32, comm_, stream_));
  };
  if (is_on_device(data)) return gather(data, out);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  return from_host(data, bytes, out, size_ * bytes, [&](std::byte* given, std::byte* gathered) {
    return gather(reinterpret_cast<float*>(given), reinterpret_cast<float*>(gathered));
  });
}

absl::Status NcclCollectives::broadcast(void* data, int64_t bytes, int root) {
  LCKV_CHECK(root >= 0 && root < size_);
  if (!failure_.ok()) return failure_;
  const auto send = [&](const void* from, void* to) {
    return checked(
        nccl_.broadcast(from, to, static_cast<size_t>(bytes), ncclInt8, root, comm_, stream_));
  };
  if (is_on_device(data)) return send(data, data);
  return from_host(data, bytes, data, bytes, send);
}

absl::Status NcclCollectives::barrier() {
  float here = 1.0F;
  return all_reduce(&here, 1);
}

template <class Call>
absl::Status NcclCollectives::from_host(const void* data, int64_t bytes, void* out,
                                        int64_t out_bytes, const Call& call) {
  const int64_t found_at = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  grow(staged_, static_cast<size_t>(found_at + out_bytes), stream_);
  std::byte* const given = staged_->data();
  std::byte* const found = given + found_at;
  check_cuda(cudaMemcpyAsync(given, data, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_),
             "copy");
  if (absl::Status status = call(given, found); !status.ok()) return status;
  if (absl::Status status = wait(); !status.ok()) return status;
  check_cuda(
      cudaMemcpyAsync(out, found, static_cast<size_t>(out_bytes), cudaMemcpyDefault, stream_),
      "copy");
  check_cuda(cudaStreamSynchronize(stream_), "copy");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> connect_nccl(const NcclOptions& options, Ops& ops) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " of ", options.size, " ranks"));
  }
  const auto* const owner = dynamic_cast<const StreamOwner*>(&ops);
  LCKV_CHECK(owner != nullptr);
  const auto nccl = load_nccl_library();
  if (!nccl.ok()) return nccl.status();
  auto ranks = std::make_unique<NcclCollectives>(*nccl, options, owner->stream());
  if (absl::Status status = ranks->connect(options); !status.ok()) return status;
  return ranks;
}

}  // namespace lckv
