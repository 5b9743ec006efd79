// A call and its client: the production relay, told by links, queued and read as GenerateCall does.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "router/call_queue.h"
#include "router/relay.h"
#include "router/retry_budget.h"
#include "tests/simulation/fleet_simulation.h"
#include "tests/simulation/simulated_link.h"

namespace lckv::fleet_simulation {

// What calls share.
struct World {
  Defect defect = Defect::kNone;
  Dice& dice;
  std::map<std::string, std::shared_ptr<SimulatedLink>> links;  // by address; null: closed
  std::unique_ptr<CallQueue> queue;
  RetryBudget retries{RetryBudgetOptions()};
  absl::Time now;
};

class SimulatedCall final : public SequenceSink,
                            public WaitingCall,
                            public std::enable_shared_from_this<SimulatedCall> {
 public:
  SimulatedCall(World& world, GenerateSpec spec);

  void begin();
  // Reads up to `num_events` of what waits.
  void read(int num_events);
  void hang_up();
  bool ended() const { return relay_.ended(); }
  int num_resumes() const { return static_cast<int>(relay_.summary().num_resumes); }
  // What the client got against what an undisturbed run gives; empty: equal.
  std::string verdict() const;

  void on_seated(ChoiceAttempt attempt) override { relay_.on_seated(as_told(attempt)); }
  void on_update(ChoiceAttempt attempt, const SequenceUpdate& update) override;
  void on_refused(ChoiceAttempt attempt, const internal::v1::Refused& refused) override;
  void on_lost(ChoiceAttempt attempt, LossKind kind, const absl::Status& why) override;
  Assignment assign(const ReplicaView& replica, const std::vector<uint32_t>& choices) override;
  void expire(const absl::Status& why) override;

 private:
  struct Seat {
    SimulatedLink* link = nullptr;  // there to the end of the simulation
    uint64_t handle = 0;
    uint32_t attempt = 0;
  };
  struct Got {
    std::string fingerprint;
    std::vector<uint32_t> ids;
    bool finished = false;
  };

  ChoiceAttempt as_told(ChoiceAttempt attempt) const;
  CallQueue::Entry entry_for(std::vector<uint32_t> choices);
  void pump();

  World& world_;
  Relay relay_;
  const absl::Time arrival_;
  bool hung_up_ = false;
  uint32_t num_retries_ = 0;
  std::string disorder_;  // what the client saw first that cannot be
  std::vector<Seat> seats_;
  std::vector<Got> got_;
};

}  // namespace lckv::fleet_simulation
