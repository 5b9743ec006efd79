#include "worker/scheduler/request_queue.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "kernels/check.h"

namespace lckv {

int64_t RequestQueue::least_served() const {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const auto& [name, tenant] : tenants_) {
    if (tenant.num_sequences > 0) least = std::min(least, tenant.served);
  }
  return least;
}

void RequestQueue::forget_inactive() {
  const int64_t least = least_served();
  std::erase_if(tenants_, [least](const auto& entry) {
    return entry.second.num_sequences == 0 && entry.second.served <= least;
  });
}

void RequestQueue::enter(const std::string& tenant) {
  const int64_t least = least_served();
  Tenant& entered = tenants_[tenant];
  if (entered.num_sequences++ == 0 && least != std::numeric_limits<int64_t>::max()) {
    entered.served = std::max(entered.served, least);
  }
}

void RequestQueue::leave(const std::string& tenant) {
  Tenant& left = tenants_.at(tenant);
  LCKV_CHECK(left.num_sequences > 0);
  --left.num_sequences;
  forget_inactive();
}

void RequestQueue::serve(const std::string& tenant, int64_t row_layers) {
  LCKV_CHECK(row_layers >= 0);
  tenants_.at(tenant).served += row_layers;
}

RequestQueue::Arrival RequestQueue::arrival_of(const Sequence& sequence) {
  return {!sequence.spec->continued, sequence.arrival};
}

void RequestQueue::push(Sequence& sequence) {
  ByArrival& queue = waiting_[sequence.spec->priority][sequence.spec->tenant];
  const bool is_new = queue.emplace(arrival_of(sequence), &sequence).second;
  LCKV_CHECK(is_new);
  ++sizes_[sequence.spec->priority];
  ++size_;
}

void RequestQueue::remove(const Sequence& sequence) {
  const auto priority = waiting_.find(sequence.spec->priority);
  LCKV_CHECK(priority != waiting_.end());
  const auto tenant = priority->second.find(sequence.spec->tenant);
  LCKV_CHECK(tenant != priority->second.end());
  const size_t num_erased = tenant->second.erase(arrival_of(sequence));
  LCKV_CHECK(num_erased == 1);
  if (tenant->second.empty()) priority->second.erase(tenant);
  if (priority->second.empty()) waiting_.erase(priority);
  if (--sizes_.at(sequence.spec->priority) == 0) sizes_.erase(sequence.spec->priority);
  --size_;
}

Sequence* RequestQueue::head() const {
  for (const auto& [priority, by_tenant] : waiting_) {
    Sequence* best = nullptr;
    std::tuple<bool, int64_t, uint64_t> best_key;
    for (const auto& [name, by_arrival] : by_tenant) {
      const auto first = std::find_if(by_arrival.begin(), by_arrival.end(),
                                      [](const auto& entry) { return !entry.second->paused; });
      if (first == by_arrival.end()) continue;
      const auto& [is_new, arrival] = first->first;
      const std::tuple<bool, int64_t, uint64_t> key{is_new, tenants_.at(name).served, arrival};
      if (best == nullptr || key < best_key) {
        best = first->second;
        best_key = key;
      }
    }
    if (best != nullptr) return best;
  }
  return nullptr;
}

int32_t RequestQueue::num_above(int32_t priority, int32_t most) const {
  int32_t num_found = 0;
  for (auto at = waiting_.begin(); at != waiting_.end() && at->first > priority; ++at) {
    for (const auto& [name, by_arrival] : at->second) {
      for (const auto& [arrival, sequence] : by_arrival) {
        if (num_found == most) return most;
        if (!sequence->paused) ++num_found;
      }
    }
  }
  return num_found;
}

}  // namespace lckv
