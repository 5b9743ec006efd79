#include "router/routing/prefix_affinity.h"

#include "router/routing/bounded_hashing.h"
#include "router/routing/stable_hash.h"

namespace lckv {
namespace {

class PrefixAffinity final : public RoutingPolicy {
 public:
  std::string name() const override { return "prefix-affinity"; }

  std::optional<size_t> pick(const RoutingKey& key, const ReplicaSet& set) const override {
    return pick_by_hash(key.affinity.empty() ? key.prefix_hash : stable_hash(key.affinity), key,
                        set);
  }
};

}  // namespace

std::unique_ptr<const RoutingPolicy> make_prefix_affinity() {
  return std::make_unique<const PrefixAffinity>();
}

}  // namespace lckv
