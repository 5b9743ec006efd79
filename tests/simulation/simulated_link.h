// One of the router's links to a simulated replica: the production link state behind a wire that
// delays, and that breaks with what was on it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "router/fleet/link_state.h"
#include "router/fleet/replica_set.h"
#include "tests/simulation/dice.h"
#include "tests/simulation/fleet_simulation.h"
#include "tests/simulation/simulated_replica.h"

namespace lckv::fleet_simulation {

class SimulatedLink {
 public:
  // `number`: of the replica's links.
  SimulatedLink(std::string address, SimulatedReplica& replica, size_t number, Defect defect,
                Dice& dice);

  // The leader's side, which knows sessions by numbers that are one link's alone.
  static size_t number_of(uint64_t session) { return session >> 32; }
  void hand_over(SimulatedLeader& leader, absl::Time now,
                 std::vector<SimulatedLeader::Outgoing>& answers);
  void send(SimulatedLeader::Outgoing outgoing, absl::Time now);

  // One moment of the wire and of the router's clock.
  void tick(absl::Time now);
  // Faults of the connections: all, or one.
  void cut();
  void cut_one();

  // The router's side.
  bool submit(const std::shared_ptr<SequenceSink>& sink, std::vector<internal::v1::Submit> submits,
              std::vector<uint64_t>& handles, absl::Time now);
  void cancel(uint64_t handle);
  void set_paused(uint64_t handle, bool paused, absl::Time now);
  void move_streams();
  // For good. How many streams go on elsewhere.
  size_t stop();
  ReplicaView view(absl::Time now) const;

  int num_followed() const { return num_followed_; }  // sessions that another one followed

 private:
  template <class Frame>
  using Wire = std::deque<std::pair<absl::Time, Frame>>;
  // A session's connection.
  struct Connection {
    bool broken = false;  // what is left on the wire arrives, then the session ends
    Wire<internal::v1::RouterFrame> to_leader;
    Wire<internal::v1::WorkerFrame> to_router;
  };

  uint64_t at_leader(uint64_t session) const { return uint64_t{number_} << 32 | session; }
  void cut(Connection& connection);
  void connect(uint64_t session);
  void disconnect(uint64_t session);
  void send(std::vector<LinkState::Outgoing> frames);
  void receive(uint64_t session, internal::v1::WorkerFrame frame, absl::Time now);
  void with_late_frame(uint64_t session, const std::function<void()>& take_away);
  static void tell(const SessionState::Received& received, const internal::v1::WorkerFrame& frame);
  void lose(std::vector<LinkState::Route> orphans, LossKind kind);
  absl::Time arrival(absl::Time now, absl::Time last);

  const std::string address_;
  SimulatedReplica& replica_;
  const size_t number_;
  const Defect defect_;
  Dice& dice_;

  std::map<uint64_t, Connection> connections_;  // by session
  LinkState state_;
  absl::Time now_;
  int num_followed_ = 0;
};

}  // namespace lckv::fleet_simulation
