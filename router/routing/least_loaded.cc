#include "router/routing/least_loaded.h"

#include <tuple>

namespace lckv {
namespace {

class LeastLoaded final : public RoutingPolicy {
 public:
  std::string name() const override { return "least-loaded"; }
  std::optional<size_t> pick(const RoutingKey& key, const ReplicaSet& set) const override {
    return pick_least_loaded(key, set);
  }
};

}  // namespace

std::optional<size_t> pick_least_loaded(const RoutingKey& key, const ReplicaSet& set) {
  // Smaller is better. Free blocks are a share, so that replicas of unequal size compare.
  using Rank = std::tuple<uint64_t, double, uint64_t>;
  std::optional<size_t> best;
  Rank best_rank;
  const size_t count = set.replicas.size();
  for (size_t i = 0; i < count; ++i) {
    const ReplicaView& replica = set.replicas[i];
    if (!can_take(key, replica)) continue;
    const auto& load = replica.load;
    const double used = load.num_blocks() == 0 ? 0.0
                                               : 1.0 - static_cast<double>(load.num_free_blocks()) /
                                                           static_cast<double>(load.num_blocks());
    const Rank rank{num_sequences(replica), used, (i + count - key.ticket % count) % count};
    if (!best || rank < best_rank) {
      best = i;
      best_rank = rank;
    }
  }
  return best;
}

std::unique_ptr<const RoutingPolicy> make_least_loaded() {
  return std::make_unique<const LeastLoaded>();
}

}  // namespace lckv
