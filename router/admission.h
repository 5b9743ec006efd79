// Admission: whether a new call can end before its deadline, by what its replicas say about who
// waits before it. Pure functions.
//
// A call that cannot is refused at once: it would take a seat, or a place in the row, from one that
// can, and end with nothing. Under overload the row then never grows beyond what deadlines allow,
// and replicas work on calls that will be finished.
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "router/fleet/replica_set.h"
#include "router/routing/routing_policy.h"

namespace lckv {

struct Outlook {
  absl::Duration wait;  // for a seat
  absl::Duration run;   // in it, as the calls of late
};

// Of a call that `num_queued` others wait before at this router. All zero where nobody waits before
// it, or where a replica that would serve it has room or knows too little.
Outlook outlook_of(const ReplicaSet& set, const RoutingKey& key, int32_t priority,
                   int64_t num_queued);

// How long after now it is worth asking again; zero or less where the call is likely to end by
// `deadline`.
absl::Duration lateness(const Outlook& outlook, absl::Time now, absl::Time deadline);

}  // namespace lckv
