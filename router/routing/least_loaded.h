// The replica with the fewest sequences.
#pragma once

#include <memory>
#include <optional>

#include "router/routing/routing_policy.h"

namespace lckv {

// Counts running and waiting sequences of all routers and own submits still under way; of equals
// the one with the most free blocks, of these the calls take turns.
std::unique_ptr<const RoutingPolicy> make_least_loaded();

// The same as a function, for policies whose own wish cannot be met.
std::optional<size_t> pick_least_loaded(const RoutingKey& key, const ReplicaSet& set);

}  // namespace lckv
