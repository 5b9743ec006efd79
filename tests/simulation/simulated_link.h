// The router's link to a simulated leader: the production session state behind a wire that delays,
// and that breaks with what was on it.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "router/fleet/replica_set.h"
#include "router/fleet/session_state.h"
#include "tests/simulation/fleet_simulation.h"
#include "tests/simulation/simulated_leader.h"

namespace lckv::fleet_simulation {

using Dice = std::mt19937_64;

class SimulatedLink {
 public:
  SimulatedLink(std::string address, std::string fingerprint, Defect defect, Dice& dice);

  // One moment of the wire, the leader's loop and the router's clock.
  void tick(absl::Time now);
  // Faults.
  void crash(absl::Time now);
  void stall(absl::Time until) { stalled_until_ = until; }
  void cut();  // the connection alone
  void set_draining(bool draining, bool moving);

  // The router's side.
  bool submit(const std::shared_ptr<SequenceSink>& sink, std::vector<internal::v1::Submit> submits,
              std::vector<uint64_t>& handles, absl::Time now);
  void cancel(uint64_t handle);
  void set_paused(uint64_t handle, bool paused, absl::Time now);
  void move_streams();
  ReplicaView view(absl::Time now) const;

  // Broken promises of the leader's side; empty: none.
  std::string complaint(bool at_end) const;

 private:
  template <class Frame>
  using Wire = std::deque<std::pair<absl::Time, Frame>>;

  void send(internal::v1::RouterFrame frame, absl::Time now);
  void lose_session(absl::Time now);
  void with_late_frame(const std::function<void()>& take_away);
  static void tell(const SessionState::Received& received, const internal::v1::WorkerFrame& frame);
  void deliver_to_router(absl::Time now);
  void deliver_to_leader(absl::Time now);
  absl::Time arrival(absl::Time now, absl::Time last);

  const std::string address_;
  const std::string fingerprint_;
  const Defect defect_;
  Dice& dice_;

  std::unique_ptr<SimulatedLeader> leader_;  // null: dead
  int num_lives_ = 0;
  absl::Time restart_time_;
  absl::Time stalled_until_ = absl::InfinitePast();
  bool open_ = false;    // the leader knows the session
  bool broken_ = false;  // what is left on the wire arrives, then the session ends
  Wire<internal::v1::RouterFrame> to_leader_;
  Wire<internal::v1::WorkerFrame> to_router_;

  std::optional<SessionState> session_;
  std::shared_ptr<const ModelInfo> model_;
  absl::Time connect_time_ = absl::InfinitePast();
  absl::Time now_;
  uint64_t next_handle_ = 1;
};

}  // namespace lckv::fleet_simulation
