#include "kernels/cuda/nccl_ranks.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

// What NCCL says of a call, and in more words where it has them.
absl::Status status_of(const NcclLibrary& nccl, ncclResult_t result, ncclComm_t comm) {
  if (result == ncclSuccess) return absl::OkStatus();
  const char* const detail = nccl.last_error(comm);
  std::string text = absl::StrCat("NCCL: ", nccl.error_string(result));
  if (detail != nullptr && *detail != '\0') absl::StrAppend(&text, ": ", detail);
  // Of several lines, the first says it.
  text.resize(std::min(text.size(), text.find('\n')));
  const bool is_refused = result == ncclInvalidUsage || result == ncclInvalidArgument;
  return is_refused ? absl::FailedPreconditionError(text) : absl::UnavailableError(text);
}

absl::StatusOr<ncclUniqueId> meet(const NcclLibrary& nccl, const Meeting& meeting) {
  const std::string key = absl::StrCat("nccl/", meeting.life);
  ncclUniqueId id = {};
  if (meeting.rank == 0) {
    absl::Status status = status_of(nccl, nccl.get_unique_id(&id), nullptr);
    if (status.ok()) status = meeting.store.set(key, std::string(id.internal, sizeof(id.internal)));
    if (!status.ok()) return status;
    return id;
  }
  const auto bytes = meeting.store.get(key, meeting.deadline);
  if (!bytes.ok()) {
    return absl::Status(bytes.status().code(),
                        absl::StrCat("no NCCL id of rank 0: ", bytes.status().message()));
  }
  if (bytes->size() != sizeof(id.internal)) {
    return absl::FailedPreconditionError(absl::StrCat("rank 0's NCCL id has ", bytes->size(),
                                                      " bytes instead of ", sizeof(id.internal)));
  }
  std::memcpy(id.internal, bytes->data(), sizeof(id.internal));
  return id;
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

}  // namespace

absl::StatusOr<std::unique_ptr<NcclRanks>> NcclRanks::connect(const Meeting& meeting,
                                                              cudaStream_t stream) {
  const auto nccl = load_nccl_library();
  if (!nccl.ok()) return nccl.status();
  const auto id = meet(*nccl, meeting);
  if (!id.ok()) return id.status();
  int device = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  // NCCL waits without a deadline, so it does so on a thread of its own. One that waits in vain is
  // left behind: a replica that lacks a rank ends.
  auto joined = std::make_shared<std::promise<absl::StatusOr<ncclComm_t>>>();
  auto result = joined->get_future();
  std::thread([joined, device, nccl = *nccl, rank = meeting.rank, size = meeting.size, id = *id] {
    check_cuda(cudaSetDevice(device), "choosing the device");
    joined->set_value(join(nccl, rank, size, id));
  }).detach();
  if (result.wait_until(absl::ToChronoTime(meeting.deadline)) != std::future_status::ready) {
    return absl::DeadlineExceededError(
        absl::StrCat("not all ", meeting.size, " ranks connected in time"));
  }
  const auto comm = result.get();
  if (!comm.ok()) return comm.status();
  return std::unique_ptr<NcclRanks>(new NcclRanks(*nccl, *comm, stream));
}

absl::Status NcclRanks::all_reduce(float* data, int64_t count) {
  return status_of(nccl_,
                   nccl_.all_reduce(data, data, static_cast<size_t>(count), ncclFloat32, ncclSum,
                                    comm_, stream_),
                   comm_);
}

absl::Status NcclRanks::all_gather(const float* data, int64_t count, float* out) {
  return status_of(
      nccl_, nccl_.all_gather(data, out, static_cast<size_t>(count), ncclFloat32, comm_, stream_),
      comm_);
}

absl::Status NcclRanks::broadcast(const void* from, void* to, int64_t bytes, int root) {
  return status_of(
      nccl_, nccl_.broadcast(from, to, static_cast<size_t>(bytes), ncclInt8, root, comm_, stream_),
      comm_);
}

absl::Status NcclRanks::state() const {
  ncclResult_t found = ncclSuccess;
  const ncclResult_t asked = nccl_.get_async_error(comm_, &found);
  if (asked != ncclSuccess) return status_of(nccl_, asked, comm_);
  return found == ncclInProgress ? absl::OkStatus() : status_of(nccl_, found, comm_);
}

}  // namespace lckv
