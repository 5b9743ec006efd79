// Which link each live replica is reached by, where several lead to it. A state machine without
// I/O.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "router/fleet/replica_set.h"

namespace lckv {

// Its session has said Hello and has not ended.
bool is_live(const ReplicaView& view);

// Owner: the fleet, under its lock. Links are told by their addresses, of which two that expect
// different models may be equal: at most one of these can be live.
class LinkChoice {
 public:
  // Of all links: a replica is reached as it was before, or by the first that is live.
  void settle(const std::vector<ReplicaView>& views);
  bool reaches(const std::string& replica_id) const { return chosen_.contains(replica_id); }
  // The replica is reached, by another link than this.
  bool is_superfluous(const ReplicaView& view) const;

 private:
  std::map<std::string, std::string> chosen_;  // address by replica id
};

}  // namespace lckv
