// RequestQueue: what waits for a seat, in the order it is to be admitted: by priority, then streams
// that go on after a loss, then the tenant that was served least, then arrival. Preempted sequences
// wait here too and keep their arrival.
//
// What a tenant was served counts in row-layers. A tenant is active from its first sequence to its
// last; one that becomes active is lifted to the least served of the active ones, so that idling
// saves up nothing. Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "worker/scheduler/sequence.h"

namespace lckv {

class RequestQueue {
 public:
  // A sequence of the tenant was submitted, and ended.
  void enter(const std::string& tenant);
  void leave(const std::string& tenant);
  void serve(const std::string& tenant, int64_t row_layers);

  // The caller keeps the sequence alive until it is removed.
  void push(Sequence& sequence);
  void remove(const Sequence& sequence);
  // The next one to be admitted among those not paused; null where there is none.
  Sequence* head() const;
  // Those not paused that wait at a higher priority than this; counts no further than `most`.
  int32_t num_above(int32_t priority, int32_t most) const;

  int32_t size() const { return size_; }
  // How many wait at each priority, highest first.
  const std::map<int32_t, int32_t, std::greater<>>& sizes() const { return sizes_; }

 private:
  struct Tenant {
    int64_t served = 0;
    int32_t num_sequences = 0;
  };
  // Continued ones first: false sorts before true.
  using Arrival = std::pair<bool, uint64_t>;
  using ByArrival = std::map<Arrival, Sequence*>;
  using ByTenant = std::map<std::string, ByArrival>;

  static Arrival arrival_of(const Sequence& sequence);
  // Inactive tenants served no more than the least served active one would be lifted anyway.
  void forget_inactive();
  int64_t least_served() const;

  std::map<std::string, Tenant> tenants_;
  std::map<int32_t, ByTenant, std::greater<>> waiting_;  // by priority
  std::map<int32_t, int32_t, std::greater<>> sizes_;
  int32_t size_ = 0;
};

}  // namespace lckv
