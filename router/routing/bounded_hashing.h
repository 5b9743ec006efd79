// Rendezvous hashing with bounded load: what the policies that follow a key share.
#pragma once

#include <cstdint>
#include <optional>

#include "router/routing/routing_policy.h"

namespace lckv {

// A replica is passed over while it holds more than kLoadFactor times the mean number of sequences
// of all replicas that serve the call's model, the call's own included, but never for less than
// kAlwaysTaken sequences.
inline constexpr double kLoadFactor = 1.1;
inline constexpr uint64_t kAlwaysTaken = 2;

// The replica whose id ranks highest together with `hash`, of those that can take the call and are
// within the bound; the least loaded where none is. Depends on replica ids and loads alone, so that
// routers agree; a replica that leaves moves no key but its own.
std::optional<size_t> pick_by_hash(uint64_t hash, const RoutingKey& key, const ReplicaSet& set);

}  // namespace lckv
