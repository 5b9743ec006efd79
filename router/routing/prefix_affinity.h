// The same replica for prompts that begin alike.
#pragma once

#include <memory>

#include "router/routing/routing_policy.h"

namespace lckv {

// Follows the request's `affinity` where it has one, else the hash of its prompt's leading blocks,
// within the bound of bounded_hashing.h: prompts meet where their common blocks are cached.
std::unique_ptr<const RoutingPolicy> make_prefix_affinity();

}  // namespace lckv
