// PeerExchange: exchanges of ranks on one host through memory of their devices that all of them
// have mapped, in the order of the device's other operations.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/peer_kernels.h"
#include "kernels/cuda/rank_devices.h"

namespace lckv {

// Owner: the collectives of one rank. Thread: theirs. Every rank makes the same calls in the same
// order; all take memory of the device and return before their work is done.
class PeerExchange {
 public:
  // Maps the memory of all ranks, which call it at the same time, each on a thread that its device
  // belongs to, and tries whether sums through it are right. Errors: FailedPrecondition, with one
  // reason on all ranks, where one of them cannot or got no right sum; as of tell_each_other.
  static absl::StatusOr<std::unique_ptr<PeerExchange>> connect(const Meeting& meeting,
                                                               cudaStream_t stream);
  // Ends what waits for a peer, and tells all of them that this rank is gone.
  ~PeerExchange();
  PeerExchange(const PeerExchange&) = delete;
  PeerExchange& operator=(const PeerExchange&) = delete;

  // Whether NCCL would take longer to sum or gather so much. Every rank reads all that all ranks
  // give: that is cheap as long as latency is most of it.
  bool is_small(int64_t bytes) const;

  // data[count] becomes the sum over all ranks, added in their order.
  void all_reduce(float* data, int64_t count);
  // out[size * count]: rank r's data at r * count.
  void all_gather(const float* data, int64_t count, float* out);
  void broadcast(std::byte* data, int64_t bytes, int root);

  // What is on its way ends without the peers that it waits for.
  void abort();
  // Unavailable naming the ranks that are gone, DeadlineExceeded those that had not come when it
  // was aborted. Of what the device has done so far.
  absl::Status state() const;

 private:
  PeerExchange(const Meeting& meeting, cudaStream_t stream);
  absl::Status open(const std::vector<std::string>& handles);
  absl::Status try_sums(absl::Time deadline);
  bool ends_by(absl::Time deadline) const;

  const cudaStream_t stream_;
  PeerRanks ranks_;
  ExchangeState* state_ = nullptr;  // in page-locked memory
  bool is_exported_ = false;
  bool is_connected_ = false;
  std::vector<void*> opened_;          // of the peers
  std::unique_ptr<CudaBuffer> tried_;  // until it is known that sums are right
};

}  // namespace lckv
