// The better of two replicas drawn by chance.
#pragma once

#include <memory>

#include "router/routing/routing_policy.h"

namespace lckv {

// Draws two by the call's ticket and takes the one with fewer sequences: close to the least loaded,
// and several routers with equally old news do not all run to the same one.
std::unique_ptr<const RoutingPolicy> make_two_choices();

}  // namespace lckv
