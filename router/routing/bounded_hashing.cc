#include "router/routing/bounded_hashing.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "router/routing/least_loaded.h"
#include "router/routing/stable_hash.h"

namespace lckv {

std::optional<size_t> pick_by_hash(uint64_t hash, const RoutingKey& key, const ReplicaSet& set) {
  uint64_t total = key.num_sequences;
  std::vector<size_t> serving;
  for (size_t i = 0; i < set.replicas.size(); ++i) {
    if (!serves(key, set.replicas[i])) continue;
    total += num_sequences(set.replicas[i]);
    serving.push_back(i);
  }
  if (serving.empty()) return std::nullopt;
  const double mean = static_cast<double>(total) / static_cast<double>(serving.size());
  const uint64_t bound = std::max({static_cast<uint64_t>(std::ceil(kLoadFactor * mean)),
                                   kAlwaysTaken, uint64_t{key.num_sequences}});
  std::optional<size_t> best;
  uint64_t best_rank = 0;
  for (const size_t i : serving) {
    const ReplicaView& replica = set.replicas[i];
    if (replica.available_credit() < key.num_sequences) continue;
    if (num_sequences(replica) + key.num_sequences > bound) continue;
    const uint64_t rank = mix(stable_hash(replica.model->hello.replica_id()) ^ hash);
    if (best && rank <= best_rank) continue;
    best = i;
    best_rank = rank;
  }
  return best ? best : pick_least_loaded(key, set);
}

}  // namespace lckv
