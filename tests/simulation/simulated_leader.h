// A replica's leader without I/O: the production scheduler over a device that draws each token from
// the one before it, behind the frames of one session at a time.
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

  internal::v1::WorkerFrame hello();
  // Takes the router's frame; what it refuses is answered at once.
  void receive(const internal::v1::RouterFrame& frame, absl::Time now,
               std::vector<internal::v1::WorkerFrame>& answers);
  // The session ended: so do its sequences.
  void forget_session();
  // One turn of the engine's loop.
  void turn(absl::Time now, std::vector<internal::v1::WorkerFrame>& frames);
  void set_draining(bool draining, bool moving);
  bool moving() const { return moving_; }

  // Empty where everything that sequences held is free again.
  std::string leak() const;
  // Submits beyond what any frame had promised room for. A promised place may be gone when its
  // submit comes, because a paused sequence went back to the queue: that one is refused.
  int num_unpromised() const { return num_unpromised_; }

 private:
  struct Sequence {
    uint64_t handle = 0;
    std::shared_ptr<const SequenceSpec> spec;
    std::vector<int32_t> generated;
  };

  void submit(const internal::v1::Submit& submit, absl::Time now,
              std::vector<internal::v1::WorkerFrame>& answers);
  StepResult run(const StepPlan& plan);
  internal::v1::WorkerFrame told(const std::vector<SequenceEvent>& events);
  // What goes out with a frame, and is promised with it.
  internal::v1::Load load();

  const std::string replica_id_;
  const std::string fingerprint_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<SequenceId, Sequence> sequences_;
  std::unordered_map<uint64_t, SequenceId> handles_;
  std::map<SeatId, SequenceId> seats_;
  uint64_t next_sequence_ = 1;
  uint64_t num_taken_ = 0;
  uint64_t step_ = 0;
  absl::Time beat_time_ = absl::InfinitePast();
  bool draining_ = false;
  bool moving_ = false;
  uint64_t promised_ = 0;  // submits of this session, those taken included
  int num_unpromised_ = 0;
};

}  // namespace lckv::fleet_simulation
