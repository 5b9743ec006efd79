// A replica's leader without I/O: the production scheduler over a device that draws each token from
// the one before it, behind the frames of its sessions.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/time/time.h"
#include "lckv/internal/v1/engine.pb.h"
#include "worker/scheduler/scheduler.h"

namespace lckv::fleet_simulation {

// What a model of this fingerprint generates as token `index` of a choice, behind `previous`.
uint32_t token_of(const std::string& fingerprint, uint64_t seed, uint32_t choice, size_t index,
                  uint32_t previous);

class SimulatedLeader {
 public:
  SimulatedLeader(std::string replica_id, std::string fingerprint);

  struct Outgoing {
    uint64_t session = 0;
    internal::v1::WorkerFrame frame;
  };

  // A session begins, with Hello.
  internal::v1::WorkerFrame open(uint64_t session);
  bool knows(uint64_t session) const { return sessions_.contains(session); }
  // Takes the router's frame; what it refuses is answered at once.
  void receive(uint64_t session, const internal::v1::RouterFrame& frame, absl::Time now,
               std::vector<Outgoing>& answers);
  // The session ended: so do its sequences.
  void forget(uint64_t session);
  // One turn of the engine's loop.
  void turn(absl::Time now, std::vector<Outgoing>& frames);
  void set_draining(bool draining, bool moving);
  bool moving() const { return moving_; }

  // Empty where everything that sequences held is free again.
  std::string leak() const;
  // Submits beyond what any frame had promised room for. A promised place may be gone when its
  // submit comes, because a paused sequence went back to the queue: that one is refused.
  int num_unpromised() const { return num_unpromised_; }

 private:
  struct Session {
    std::unordered_map<uint64_t, SequenceId> handles;
    uint64_t num_taken = 0;
    uint64_t promised = 0;  // submits, those taken included
    absl::Time beat_time = absl::InfinitePast();
  };
  struct Sequence {
    uint64_t session = 0;
    uint64_t handle = 0;
    std::shared_ptr<const SequenceSpec> spec;
    std::vector<int32_t> generated;
  };

  void submit(uint64_t session, const internal::v1::Submit& submit, absl::Time now,
              std::vector<Outgoing>& answers);
  void seated(const StepPlan& plan, std::vector<Outgoing>& frames) const;
  StepResult run(const StepPlan& plan);
  void tell(const std::vector<SequenceEvent>& events, std::vector<Outgoing>& frames);
  void end(SequenceId id);
  // What goes out with a session's frame, and is promised with it.
  internal::v1::Load load(Session& session);

  const std::string replica_id_;
  const std::string fingerprint_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<SequenceId, Sequence> sequences_;
  std::map<uint64_t, Session> sessions_;
  std::map<SeatId, SequenceId> seats_;
  uint64_t next_sequence_ = 1;
  uint64_t step_ = 0;
  bool draining_ = false;
  bool moving_ = false;
  int num_unpromised_ = 0;
};

}  // namespace lckv::fleet_simulation
