#include "router/routing/round_robin.h"

namespace lckv {
namespace {

class RoundRobin final : public RoutingPolicy {
 public:
  std::string name() const override { return "round-robin"; }

  std::optional<size_t> pick(const RoutingKey& key, const ReplicaSet& set) const override {
    std::vector<size_t> able;
    for (size_t i = 0; i < set.replicas.size(); ++i) {
      if (can_take(key, set.replicas[i])) able.push_back(i);
    }
    if (able.empty()) return std::nullopt;
    return able[key.ticket % able.size()];
  }
};

}  // namespace

std::unique_ptr<const RoutingPolicy> make_round_robin() {
  return std::make_unique<const RoundRobin>();
}

}  // namespace lckv
