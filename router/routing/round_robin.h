// One replica after the other.
#pragma once

#include <memory>

#include "router/routing/routing_policy.h"

namespace lckv {

// Takes turns by the call's ticket among the replicas that can take it, whatever their load.
std::unique_ptr<const RoutingPolicy> make_round_robin();

}  // namespace lckv
