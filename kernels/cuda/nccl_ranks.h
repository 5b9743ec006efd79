// NcclRanks: one rank's end of NCCL's exchanges, in the order of the device's other operations.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/nccl_library.h"
#include "kernels/cuda/rank_devices.h"

namespace lckv {

// Owner: the collectives of one rank. Thread: theirs. Calls take memory of the device and return
// once their work is in the stream's order.
class NcclRanks {
 public:
  // Returns when all ranks have come. NCCL's id goes through the store. Errors: FailedPrecondition
  // where NCCL is not to be had or refuses the devices, DeadlineExceeded, Unavailable, and what the
  // store says.
  static absl::StatusOr<std::unique_ptr<NcclRanks>> connect(const Meeting& meeting,
                                                            cudaStream_t stream);
  // Aborts: that needs no peer and leaves nothing that would wait for one.
  ~NcclRanks() { (void)nccl_.abort(comm_); }
  NcclRanks(const NcclRanks&) = delete;
  NcclRanks& operator=(const NcclRanks&) = delete;

  absl::Status all_reduce(float* data, int64_t count);
  absl::Status all_gather(const float* data, int64_t count, float* out);
  absl::Status broadcast(const void* from, void* to, int64_t bytes, int root);
  // Of what is on its way. Unavailable where a peer or the way to it is gone.
  absl::Status state() const;

 private:
  NcclRanks(const NcclLibrary& nccl, ncclComm_t comm, cudaStream_t stream)
      : nccl_(nccl), comm_(comm), stream_(stream) {}

  const NcclLibrary nccl_;
  const ncclComm_t comm_;
  const cudaStream_t stream_;
};

}  // namespace lckv
