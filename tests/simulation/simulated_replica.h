// A replica's process: its lives, one leader after the other, and its loop over the links that lead
// to it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/simulation/dice.h"
#include "tests/simulation/simulated_leader.h"

namespace lckv::fleet_simulation {

class SimulatedLink;

class SimulatedReplica {
 public:
  SimulatedReplica(std::string name, std::string fingerprint, Dice& dice);

  // A link is numbered by its place, from 0.
  size_t num_links() const { return links_.size(); }
  void add_link(std::shared_ptr<SimulatedLink> link) { links_.push_back(std::move(link)); }

  // One turn of the leader's loop, unless it hangs.
  void tick(absl::Time now);
  // Faults.
  void crash(absl::Time now);
  void stall(absl::Time until) { stalled_until_ = until; }
  void set_draining(bool draining, bool moving);

  SimulatedLeader* leader() const { return leader_.get(); }  // null: dead
  // Broken promises; empty: none.
  std::string complaint(bool at_end, absl::Time now) const;

 private:
  const std::string name_;
  const std::string fingerprint_;
  Dice& dice_;
  std::unique_ptr<SimulatedLeader> leader_;
  std::vector<std::shared_ptr<SimulatedLink>> links_;
  int num_lives_ = 0;
  absl::Time restart_time_ = absl::InfinitePast();
  absl::Time stalled_until_ = absl::InfinitePast();
};

}  // namespace lckv::fleet_simulation
