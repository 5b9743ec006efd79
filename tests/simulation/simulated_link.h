// The router's link to a simulated leader: the production link state behind a wire that delays, and
// that breaks with what was on it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "router/fleet/link_state.h"
#include "router/fleet/replica_set.h"
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
  void cut();  // the connections alone
  void set_draining(bool draining, bool moving);

  // The router's side.
  bool submit(const std::shared_ptr<SequenceSink>& sink, std::vector<internal::v1::Submit> submits,
              std::vector<uint64_t>& handles, absl::Time now);
  void cancel(uint64_t handle);
  void set_paused(uint64_t handle, bool paused, absl::Time now);
  void move_streams();
  ReplicaView view(absl::Time now) const;

  int num_followed() const { return num_followed_; }  // sessions that another one followed
  // Broken promises of the leader's side; empty: none.
  std::string complaint(bool at_end) const;

 private:
  template <class Frame>
  using Wire = std::deque<std::pair<absl::Time, Frame>>;
  // A session's connection.
  struct Connection {
    bool broken = false;  // what is left on the wire arrives, then the session ends
    Wire<internal::v1::RouterFrame> to_leader;
    Wire<internal::v1::WorkerFrame> to_router;
  };

  bool answers(absl::Time now) const { return leader_ != nullptr && now >= stalled_until_; }
  void run_leader(absl::Time now);
  void run_router(absl::Time now);
  void connect(uint64_t session);
  void disconnect(uint64_t session);
  void send(std::vector<LinkState::Outgoing> frames);
  void send(SimulatedLeader::Outgoing outgoing, absl::Time now);
  void receive(uint64_t session, internal::v1::WorkerFrame frame, absl::Time now);
  void with_late_frame(uint64_t session, const std::function<void()>& take_away);
  static void tell(const SessionState::Received& received, const internal::v1::WorkerFrame& frame);
  void lose(std::vector<LinkState::Route> orphans, LossKind kind);
  absl::Time arrival(absl::Time now, absl::Time last);

  const std::string address_;
  const std::string fingerprint_;
  const Defect defect_;
  Dice& dice_;

  std::unique_ptr<SimulatedLeader> leader_;  // null: dead
  int num_lives_ = 0;
  absl::Time restart_time_;
  absl::Time stalled_until_ = absl::InfinitePast();
  std::map<uint64_t, Connection> connections_;  // by session
  LinkState state_;
  absl::Time now_;
  int num_followed_ = 0;
};

}  // namespace lckv::fleet_simulation
