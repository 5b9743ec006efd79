// Collectives: what the ranks of one replica do together. Each call has a deadline.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace lckv {

// Owner: the engine. Thread: the engine's. Every rank makes the same calls in the same order.
// Errors: DeadlineExceeded where a peer did not come, Unavailable where one is gone.
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // data[count] becomes the sum over all ranks.
  virtual absl::Status all_reduce(float* data, int64_t count, absl::Duration timeout) = 0;
  // out[size * count]: rank r's data at r * count.
  virtual absl::Status all_gather(const float* data, int64_t count, float* out,
                                  absl::Duration timeout) = 0;
  virtual absl::Status broadcast(void* data, int64_t bytes, int root, absl::Duration timeout) = 0;
  virtual absl::Status barrier(absl::Duration timeout) = 0;
};

// The only rank of its replica.
std::unique_ptr<Collectives> single_rank_collectives();

}  // namespace lckv
