#include "router/admission.h"

namespace lckv {
namespace {

// The share of the time to its deadline that a call is expected to need at most: an outlook is a
// mean, and calls are longer and shorter.
constexpr double kShare = 0.8;

}  // namespace

Outlook outlook_of(const ReplicaSet& set, const RoutingKey& key, int32_t priority,
                   int64_t num_queued) {
  double num_ahead = 0;
  double seats_per_second = 0;
  absl::Duration run;
  for (const ReplicaView& replica : set.replicas) {
    if (!serves(key, replica)) continue;
    const internal::v1::Load& load = replica.load;
    for (const internal::v1::PriorityCount& waiting : load.waiting()) {
      if (waiting.priority() >= priority) num_ahead += waiting.count();
    }
    if (load.num_waiting() > 0) num_ahead += replica.num_in_flight;
    seats_per_second += load.seats_per_second();
    run += load.seats_per_second() * absl::Seconds(load.seat_seconds());
  }
  num_ahead += static_cast<double>(num_queued);
  if (num_ahead == 0 || seats_per_second <= 0) return {};
  return {.wait = absl::Seconds(num_ahead / seats_per_second), .run = run / seats_per_second};
}

absl::Duration lateness(const Outlook& outlook, absl::Time now, absl::Time deadline) {
  if (deadline == absl::InfiniteFuture() || outlook.wait == absl::ZeroDuration()) {
    return absl::ZeroDuration();
  }
  return outlook.wait + outlook.run - kShare * (deadline - now);
}

}  // namespace lckv
