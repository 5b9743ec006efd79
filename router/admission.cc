#include "router/admission.h"

#include <algorithm>

namespace lckv {
namespace {

// The share of the time to its deadline that a call is expected to need at most: an outlook is a
// mean, and calls are longer and shorter.
constexpr double kShare = 0.8;

// How fast a replica gives seats; 0 where it does not know. Where none has come free for a while,
// its running sequences end as fast as others did.
double seat_rate(const internal::v1::Load& load) {
  if (load.seats_per_second() <= 0 || load.seat_seconds() <= 0) return 0;
  return std::max(load.seats_per_second(), load.num_running() / load.seat_seconds());
}

}  // namespace

Outlook outlook_of(const ReplicaSet& set, const RoutingKey& key, int32_t priority,
                   int64_t num_queued) {
  auto num_ahead = static_cast<double>(num_queued);
  double seats_per_second = 0;
  absl::Duration run;
  for (const ReplicaView& replica : set.replicas) {
    if (!serves(key, replica)) continue;
    const internal::v1::Load& load = replica.load;
    const double rate = seat_rate(load);
    // Its next one need not wait, or nobody knows for how long.
    if (rate == 0 || (load.num_waiting() == 0 && num_queued == 0)) return {};
    for (const internal::v1::PriorityCount& waiting : load.waiting()) {
      if (waiting.priority() >= priority) num_ahead += waiting.count();
    }
    num_ahead += replica.num_in_flight;
    seats_per_second += rate;
    run += rate * absl::Seconds(load.seat_seconds());
  }
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
