// Collectives: what the ranks of one replica do together. What opens them says how long a call
// waits for a peer: never for ever.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace lckv {

// Owner: the engine. Thread: the engine's. Every rank makes the same calls in the same order.
// Errors: DeadlineExceeded where a peer did not come, Unavailable where one is gone.
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // data[count] becomes the sum over all ranks.
  virtual absl::Status all_reduce(float* data, int64_t count) = 0;
  // out[size * count]: rank r's data at r * count.
  virtual absl::Status all_gather(const float* data, int64_t count, float* out) = 0;
  virtual absl::Status broadcast(void* data, int64_t bytes, int root) = 0;
  virtual absl::Status barrier() = 0;
  // Returns when what was asked of the ranks is done, so that reading the device's results waits
  // for no peer.
  virtual absl::Status wait() = 0;
  // The same for results that were sent before more was asked: `are_there` says when.
  virtual absl::Status wait_for(absl::FunctionRef<bool()> are_there) = 0;
};

// The only rank of its replica.
std::unique_ptr<Collectives> single_rank_collectives();

}  // namespace lckv
