#include "router/routing/affinity_key.h"

#include "router/routing/bounded_hashing.h"
#include "router/routing/least_loaded.h"
#include "router/routing/stable_hash.h"

namespace lckv {
namespace {

class AffinityKey final : public RoutingPolicy {
 public:
  std::string name() const override { return "affinity-key"; }

  std::optional<size_t> pick(const RoutingKey& key, const ReplicaSet& set) const override {
    if (key.affinity.empty()) return pick_least_loaded(key, set);
    return pick_by_hash(stable_hash(key.affinity), key, set);
  }
};

}  // namespace

std::unique_ptr<const RoutingPolicy> make_affinity_key() {
  return std::make_unique<const AffinityKey>();
}

}  // namespace lckv
