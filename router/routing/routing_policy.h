// Which replica takes a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "router/fleet/replica_set.h"

namespace lckv {

struct RoutingKey {
  std::shared_ptr<const ModelInfo> model;  // that the request was checked against
  std::string fingerprint;                 // not empty: no other will do
  std::string affinity;                    // the caller's; may be empty
  uint64_t prefix_hash = 0;                // of the prompt's leading blocks, see stable_hash.h
  uint32_t num_sequences = 1;
  uint64_t ticket = 0;  // differs from call to call, to break ties evenly
};

// Pure: equal arguments, equal answer. Immutable, any thread.
class RoutingPolicy {
 public:
  virtual ~RoutingPolicy() = default;
  virtual std::string name() const = 0;
  // Index in the set of a replica that can take all sequences of the call now; empty: none can.
  virtual std::optional<size_t> pick(const RoutingKey& key, const ReplicaSet& set) const = 0;
};

// Ready and of the kind the call needs, whatever its load.
bool serves(const RoutingKey& key, const ReplicaView& replica);
// serves(), and has credit for all sequences.
bool can_take(const RoutingKey& key, const ReplicaView& replica);

// Running, waiting and under way to it.
uint64_t num_sequences(const ReplicaView& replica);

// Null for an unknown name; policy_names() lists the known ones, the default first.
std::unique_ptr<const RoutingPolicy> make_routing_policy(absl::string_view name);
std::vector<std::string> policy_names();

}  // namespace lckv
