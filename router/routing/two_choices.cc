#include "router/routing/two_choices.h"

#include "router/routing/stable_hash.h"

namespace lckv {
namespace {

class TwoChoices final : public RoutingPolicy {
 public:
  std::string name() const override { return "power-of-two-choices"; }

  std::optional<size_t> pick(const RoutingKey& key, const ReplicaSet& set) const override {
    std::vector<size_t> able;
    for (size_t i = 0; i < set.replicas.size(); ++i) {
      if (can_take(key, set.replicas[i])) able.push_back(i);
    }
    if (able.size() < 2) return able.empty() ? std::nullopt : std::optional<size_t>(able[0]);
    const uint64_t drawn = mix(key.ticket + 1);
    const size_t first = (drawn >> 32) % able.size();
    // Of the others, so that the two differ.
    const size_t second = (first + 1 + (drawn & 0xffffffff) % (able.size() - 1)) % able.size();
    const auto load = [&](size_t i) { return num_sequences(set.replicas[able[i]]); };
    return able[load(second) < load(first) ? second : first];
  }
};

}  // namespace

std::unique_ptr<const RoutingPolicy> make_two_choices() {
  return std::make_unique<const TwoChoices>();
}

}  // namespace lckv
