// The same replica for the same affinity key.
#pragma once

#include <memory>

#include "router/routing/routing_policy.h"

namespace lckv {

// Follows the request's `affinity` within the bound of bounded_hashing.h; requests without one go
// to the least loaded replica.
std::unique_ptr<const RoutingPolicy> make_affinity_key();

}  // namespace lckv
