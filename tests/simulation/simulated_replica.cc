#include "tests/simulation/simulated_replica.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/simulated_link.h"

namespace lckv::fleet_simulation {

SimulatedReplica::SimulatedReplica(std::string name, std::string fingerprint, Dice& dice)
    : name_(std::move(name)), fingerprint_(std::move(fingerprint)), dice_(dice) {}

void SimulatedReplica::tick(absl::Time now) {
  if (leader_ == nullptr && now >= restart_time_) {
    leader_ =
        std::make_unique<SimulatedLeader>(absl::StrCat(name_, "-", ++num_lives_), fingerprint_);
  }
  if (leader_ == nullptr || now < stalled_until_) return;
  std::vector<SimulatedLeader::Outgoing> frames;
  for (const auto& link : links_) link->hand_over(*leader_, now, frames);
  leader_->turn(now, frames);
  for (SimulatedLeader::Outgoing& outgoing : frames) {
    links_.at(SimulatedLink::number_of(outgoing.session))->send(std::move(outgoing), now);
  }
}

void SimulatedReplica::crash(absl::Time now) {
  if (leader_ == nullptr) return;
  for (const auto& link : links_) link->cut();
  leader_.reset();
  stalled_until_ = absl::InfinitePast();
  restart_time_ = now + absl::Milliseconds(static_cast<int>(dice_() % 3000));
}

void SimulatedReplica::set_draining(bool draining, bool moving) {
  if (leader_ != nullptr) leader_->set_draining(draining, moving);
}

std::string SimulatedReplica::complaint(bool at_end, absl::Time now) const {
  if (leader_ == nullptr) return "";
  if (leader_->num_unpromised() > 0) {
    return absl::StrCat(name_, " was given more than it had promised room for");
  }
  // One that hangs can free nothing.
  return at_end && now >= stalled_until_ ? leader_->leak() : "";
}

}  // namespace lckv::fleet_simulation
