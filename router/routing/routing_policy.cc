#include "router/routing/routing_policy.h"

#include <array>

#include "router/routing/affinity_key.h"
#include "router/routing/least_loaded.h"
#include "router/routing/prefix_affinity.h"
#include "router/routing/round_robin.h"
#include "router/routing/two_choices.h"

namespace lckv {
namespace {

struct PolicyEntry {
  const char* name;
  std::unique_ptr<const RoutingPolicy> (*make)();
};

// One line per policy.
constexpr std::array<PolicyEntry, 5> kPolicies = {{
    {"prefix-affinity", make_prefix_affinity},
    {"least-loaded", make_least_loaded},
    {"round-robin", make_round_robin},
    {"power-of-two-choices", make_two_choices},
    {"affinity-key", make_affinity_key},
}};

}  // namespace

bool serves(const RoutingKey& key, const ReplicaView& replica) {
  return replica.state == ReplicaState::kReady && replica.model != nullptr &&
         (key.fingerprint.empty() || replica.model->hello.fingerprint() == key.fingerprint) &&
         takes_same_requests(*replica.model, *key.model);
}

bool can_take(const RoutingKey& key, const ReplicaView& replica) {
  return replica.available_credit() >= key.num_sequences && serves(key, replica);
}

uint64_t num_sequences(const ReplicaView& replica) {
  return uint64_t{replica.load.num_running()} + replica.load.num_waiting() + replica.num_in_flight;
}

std::unique_ptr<const RoutingPolicy> make_routing_policy(absl::string_view name) {
  for (const PolicyEntry& entry : kPolicies) {
    if (entry.name == name) return entry.make();
  }
  return nullptr;
}

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const PolicyEntry& entry : kPolicies) names.push_back(entry.name);
  return names;
}

}  // namespace lckv
