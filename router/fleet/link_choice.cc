#include "router/fleet/link_choice.h"

#include <utility>

namespace lckv {

bool is_live(const ReplicaView& view) {
  return view.model != nullptr &&
         (view.state == ReplicaState::kReady || view.state == ReplicaState::kDraining ||
          view.state == ReplicaState::kUnresponsive);
}

void LinkChoice::settle(const std::vector<ReplicaView>& views) {
  std::map<std::string, std::string> chosen;
  for (const ReplicaView& view : views) {
    if (!is_live(view)) continue;
    const std::string& replica_id = view.model->hello.replica_id();
    const auto before = chosen_.find(replica_id);
    if (before != chosen_.end() && before->second == view.address) {
      chosen[replica_id] = view.address;
    } else {
      chosen.emplace(replica_id, view.address);
    }
  }
  chosen_ = std::move(chosen);
}

bool LinkChoice::is_superfluous(const ReplicaView& view) const {
  if (view.model == nullptr) return false;
  const auto chosen = chosen_.find(view.model->hello.replica_id());
  return chosen != chosen_.end() && chosen->second != view.address;
}

}  // namespace lckv
