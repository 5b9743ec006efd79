#include "router/routing/routing_policy.h"

#include <array>

#include "router/routing/least_loaded.h"

namespace lckv {
namespace {

struct PolicyEntry {
  const char* name;
  std::unique_ptr<const RoutingPolicy> (*make)();
};

// One line per policy.
constexpr std::array<PolicyEntry, 1> kPolicies = {{
    {"least-loaded", make_least_loaded},
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
